# The router, which is the fleet's hub too. It has no flake: it follows the machine's channel.
{ pkgs, ... }:
{
  imports = [
    ./hardware-configuration.nix
    ./utils/bento.nix
    ./utils/common-stuff.nix
    ./utils/fleet.nix
  ];

  networking = {
    hostName = "router";
    nat = {
      enable = true;
      internalInterfaces = [ "lan0" ];
      externalInterface = "wan0";
    };
    firewall.allowedUDPPorts = [ 53 67 ];
  };
  boot.kernel.sysctl."net.ipv4.ip_forward" = 1;
  environment.systemPackages = [ pkgs.iproute2 ];
}
