# A host. The directory's name is the host's name at the hub. Put the machine's own configuration here: its
# hardware-configuration.nix, and what /etc/nixos/configuration.nix says.
{
  imports = [
    ./utils/bento.nix
  ];

  networking.hostName = "example";
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.11";
}
