{ pkgs, ... }:
{
  boot.kernelPackages = pkgs.linuxPackages_latest;
  services.nginx = {
    enable = true;
    virtualHosts."www.example.org".root = pkgs.writeTextDir "index.html" "<h1>It works</h1>";
  };
  networking.firewall.allowedTCPPorts = [ 80 ];
}
