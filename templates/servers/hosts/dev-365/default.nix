# Serves web pages.
{
  # `bento provision` shows the machine's disks; a name in /dev/disk/by-id is always the same disk
  disks.main = "/dev/sda";
  servers.web = { enable = true; domain = "www.example.org"; };
}
