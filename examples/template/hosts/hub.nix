{
  imports = [ ./hardware.nix ];

  # every host, with its /etc/ssh/ssh_host_ed25519_key.pub
  services.bento.hub = {
    enable = true;
    hosts = {
      hub.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzrqJEQg7md5z/sBMxAWqutOvle06BEkXGJtOe6s/GJ root@hub" ];
      web.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIONflBC9T+8vmVd5Z+SmsaCztzhob2zrqW0diR1nrbNS root@web" ];
    };
  };
}
