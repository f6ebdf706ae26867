# In disko's place, for tests: the options and outputs of its that are used, of its names, and for the simple layouts that the tests have.
{ config, lib, pkgs, ... }:
let
  disks = lib.attrValues (config.disko.devices.disk or { });
  partitions = builtins.concatLists (lib.mapAttrsToList
    (disk: { content ? { }, ... }: lib.mapAttrsToList
      (name: partition: partition // { device = "/dev/disk/by-partlabel/disk-${disk}-${name}"; })
      (content.partitions or { }))
    (config.disko.devices.disk or { }));
  mounted = lib.filter (partition: partition.content ? mountpoint) partitions;
  script = name: pkgs.runCommand name { devices = map (disk: disk.device) disks; } ''
    { echo '#!/bin/sh'; for device in $devices; do echo "echo would erase $device"; done; } > $out
    chmod 755 $out
  '';
in
{
  options.disko.devices = lib.mkOption { type = lib.types.attrsOf lib.types.anything; default = { }; description = "The devices."; };

  config = {
    fileSystems = lib.listToAttrs (map
      (partition: lib.nameValuePair partition.content.mountpoint { inherit (partition) device; fsType = partition.content.format; options = partition.content.mountOptions or [ "defaults" ]; })
      mounted);
    system.build = {
      diskoScript = script "disko";
      installTest = script "vm-test-run-${config.networking.hostName}-disko";
    };
  };
}
