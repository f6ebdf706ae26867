# The fleet as its hub knows it: every host with the public key that it logs in with, which is the host's own
# /etc/ssh/ssh_host_ed25519_key.pub unless its services.bento.agent.identityFile says otherwise. Import this on the hub.
{
  imports = [ ./hub.nix ];

  services.bento.hub = {
    enable = true;
    hosts = {
      example.keys = [ ];
    };
  };
}
