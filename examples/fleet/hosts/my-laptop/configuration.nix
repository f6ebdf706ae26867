{ pkgs, ... }:
{
  imports = [
    ./hardware-configuration.nix
    ./home.nix
    ./utils/bento.nix
    ./utils/common-stuff.nix
  ];

  networking.hostName = "t470";
  networking.networkmanager.enable = true;
  # a laptop is often off: ask when it comes up, and once an hour
  services.bento.agent.interval = "hourly";
  environment.systemPackages = with pkgs; [ firefox git ];
}
