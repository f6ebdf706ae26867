# The fleet as its hub knows it: every host with the key that it logs in with. Import this on the hub.
{
  imports = [ ./hub.nix ];

  services.bento.hub = {
    enable = true;
    hosts = {
      router.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAeKKQ4KD0hhr7VKL/1DBzIxGtSEnW53c6JbTmKtG9St root@router" ];
      t470.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEjII1DRISOv02meWVoHbvBQJ3hu5IJpuM8CP+u1OtdJ root@t470" ];
      nas.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIONflBC9T+8vmVd5Z+SmsaCztzhob2zrqW0diR1nrbNS root@nas" ];
      kikimora.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAF3yggHkM+GoqL3kXWW1XprNkZT8L10Ez3BsBnUh63D root@kikimora" ];
    };
  };
}
