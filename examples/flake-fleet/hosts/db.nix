{
  fileSystems."/var/lib/postgresql" = {
    device = "/dev/disk/by-label/data";
    fsType = "xfs";
  };
  networking.firewall.allowedTCPPorts = [ 5432 ];
}
