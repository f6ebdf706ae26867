# What all hosts have in common: they ask the hub for their configuration.
{
  services.bento.agent = {
    enable = true;
    hub = {
      # the hub's name, and its /etc/ssh/ssh_host_ed25519_key.pub
      address = "hub.example.org";
      hostKeys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzrqJEQg7md5z/sBMxAWqutOvle06BEkXGJtOe6s/GJ" ];
    };
    # whose releases the hosts take up: the public key that SIGNING_KEY in config.sh belongs to
    signers = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGq573wedqowvWicwgDRToY66/aZd5yYqikW+aDQgeE admin@example.org" ];
  };
  services.openssh.enable = true;
  system.stateVersion = "26.05";
}
