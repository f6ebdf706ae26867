# How the disks of a machine are laid out. A machine says which disks it has; what is on them follows.
{ lib, ... }:
let
  device = lib.types.strMatching "/dev/.+";
in
{
  imports = [ ./standard-layout.nix ];

  options.disks = {
    layout = lib.mkOption {
      type = lib.types.enum [ "standard" ];
      default = "standard";
      description = "The layout of the disks.";
    };
    main = lib.mkOption {
      type = device;
      example = "/dev/disk/by-id/nvme-SAMSUNG_MZVL2512HCJQ-00B00_S675NX0R123456";
      description = "The disk that the system is on. All of it is erased when the machine is provisioned.";
    };
    data = lib.mkOption {
      type = lib.types.nullOr device;
      default = null;
      description = "A disk for /data, if there is one. It is erased as well.";
    };
  };
}
