# What makes a machine a host of this fleet: it asks the hub for its configuration.
{
  imports = [ ./agent.nix ];

  services.bento.agent = {
    enable = true;
    hub = {
      address = "hub.example.org";
      hostKeys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzrqJEQg7md5z/sBMxAWqutOvle06BEkXGJtOe6s/GJ" ];
    };
    signers = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGq573wedqowvWicwgDRToY66/aZd5yYqikW+aDQgeE admin@example.org" ];
  };
}
