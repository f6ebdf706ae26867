# What all machines have in common. What they boot from follows from their disk layout.
{ lib, modulesPath, ... }:
{
  imports = [
    (modulesPath + "/installer/scan/not-detected.nix")
    ./ssh.nix
    ./users.nix
  ];

  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
  boot.loader.systemd-boot.enable = lib.mkDefault true;
  boot.loader.efi.canTouchEfiVariables = lib.mkDefault true;
  # what the root of a common machine may lie behind
  boot.initrd.availableKernelModules = [ "ahci" "nvme" "sd_mod" "usb_storage" "virtio_blk" "virtio_pci" "virtio_scsi" "xhci_pci" ];

  networking.useNetworkd = true;
  networking.useDHCP = lib.mkDefault true;
  time.timeZone = lib.mkDefault "UTC";

  nix.settings = {
    experimental-features = [ "nix-command" "flakes" ];
    trusted-users = [ "root" "@wheel" ];
  };
  nix.gc = { automatic = true; dates = "weekly"; options = "--delete-older-than 30d"; };

  system.stateVersion = "26.05";
}
