# Has the databases.
{
  disks.main = "/dev/nvme0n1";
  servers.database = { enable = true; names = [ "shop" ]; };
}
