# `hosts` is the whole fleet: each host knows the others' names.
{ hosts, lib, ... }:
{
  imports = [ ./modules/agent.nix ];

  services.bento.agent = {
    enable = true;
    hub.address = "hub.example.org";
    hub.hostKeys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzrqJEQg7md5z/sBMxAWqutOvle06BEkXGJtOe6s/GJ" ];
    signers = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGq573wedqowvWicwgDRToY66/aZd5yYqikW+aDQgeE admin@example.org" ];
  };
  services.openssh.enable = true;
  networking.hosts = lib.listToAttrs (lib.imap1 (n: name: lib.nameValuePair "10.0.0.${toString n}" [ name ]) (lib.attrNames hosts));
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "25.11";
}
