# What makes a machine a host of this fleet: it asks the hub for its releases.
{
  imports = [ ./agent.nix ];

  services.bento.agent = {
    enable = true;
    hub = {
      # the hub, as the hosts reach it, and its /etc/ssh/ssh_host_ed25519_key.pub
      address = "hub.example.org";
      hostKeys = [ @HOST_KEYS@ ];
    };
    # whose releases the hosts take up: the public key of SIGNING_KEY in config.sh
    signers = [ @SIGNERS@ ];
  };
}
