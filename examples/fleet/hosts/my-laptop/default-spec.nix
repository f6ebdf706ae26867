# A second system to choose at boot, for journeys.
{ lib, ... }:
{
  specialisation.on-the-road.configuration = {
    services.openssh.enable = lib.mkForce false;
    networking.firewall.allowedTCPPorts = lib.mkForce [ ];
  };
}
