# Keeps backups, on a disk of their own.
{
  disks.main = "/dev/sda";
  disks.data = "/dev/sdb";

  users.users.backup = { isSystemUser = true; group = "backup"; home = "/data/backup"; createHome = true; };
  users.groups.backup = { };
}
