# Watches the others.
{
  disks.main = "/dev/sda";
  servers.monitoring.watches = [ "dev-365" "dev-901" "dev-142" "dev-605" ];
}
