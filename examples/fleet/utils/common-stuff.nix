# What all machines have in common.
{ lib, pkgs, ... }:
{
  time.timeZone = "Europe/Paris";
  i18n.defaultLocale = "en_US.UTF-8";
  services.openssh = {
    enable = true;
    settings.PasswordAuthentication = false;
  };
  environment.systemPackages = with pkgs; [ htop tmux vim ];
  users.users.root.openssh.authorizedKeys.keys = [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzrqJEQg7md5z/sBMxAWqutOvle06BEkXGJtOe6s/GJ admin"
  ];
  networking.firewall.enable = lib.mkDefault true;
  system.stateVersion = "25.11";
}
