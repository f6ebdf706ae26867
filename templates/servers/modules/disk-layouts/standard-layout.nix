# One partition to boot from and one for everything else; a second disk, if there is one, is for data.
{ config, lib, ... }:
let
  cfg = config.disks;
  filesystem = mountpoint: {
    size = "100%";
    content = { type = "filesystem"; format = "ext4"; inherit mountpoint; mountOptions = [ "noatime" ]; };
  };
in
lib.mkIf (cfg.layout == "standard") {
  disko.devices.disk = {
    main = {
      type = "disk";
      device = cfg.main;
      content = {
        type = "gpt";
        partitions = {
          ESP = {
            size = "512M";
            type = "EF00";
            content = { type = "filesystem"; format = "vfat"; mountpoint = "/boot"; mountOptions = [ "umask=0077" ]; };
          };
          root = filesystem "/";
        };
      };
    };
  } // lib.optionalAttrs (cfg.data != null) {
    data = {
      type = "disk";
      device = cfg.data;
      content = { type = "gpt"; partitions.data = filesystem "/data"; };
    };
  };
}
