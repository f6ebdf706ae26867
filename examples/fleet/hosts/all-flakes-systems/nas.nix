{
  fileSystems."/srv" = {
    device = "/dev/disk/by-label/srv";
    fsType = "btrfs";
    options = [ "noatime" "compress=zstd" ];
  };
  networking.firewall.allowedTCPPorts = [ 2049 ];
}
