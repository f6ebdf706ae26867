# What is looked at before a host is deployed or installed, of its evaluated configuration: the conditions that it sets itself, what is
# laid out on its disks, and how it is reached. An option that the host's nixpkgs does not have is null, or as empty as it can be.
config:
let
  inherit (builtins) attrNames concatMap filter isAttrs isList mapAttrs;
  loader = config.boot.loader or { };
  agent = config.services.bento.agent or { };
  build = config.system.build;
  text = value: if value == null || value == "" then null else toString value;

  # what fails may also be a condition that can't be worked out
  holds = assertion:
    let tried = builtins.tryEval assertion.assertion;
    in tried.success && tried.value;

  # disko's options have more in them than what somebody wrote: only what decides about a layout is taken
  node = kind: name: value: {
    inherit name;
    type = if kind == "partitions" then "partition" else value.type or "unknown";
    device = text (value.device or null);
    format = text (value.format or null);
    mountpoint = text (value.mountpoint or null);
    # the group that it is a part of
    member = text ({ lvm_pv = value.vg or null; mdraid = value.name or null; zfs = value.pool or null; }.${value.type or ""} or null);
    size = text (value.size or null);
    # what a partition is for
    purpose = if kind == "partitions" then value.type or "8300" else null;
    children =
      (if isAttrs (value.content or null) then [ (node "content" name value.content) ] else [ ])
      ++ concatMap (kind: children kind (value.${kind} or { })) [ "partitions" "subvolumes" "lvs" "datasets" ];
  };
  children = kind: value:
    if isAttrs value then map (name: node kind name value.${name}) (filter (name: isAttrs value.${name}) (attrNames value))
    else if isList value then map (child: node kind (child.name or kind) child) value
    else [ ];
  groups = kind: children kind (config.disko.devices.${kind} or { });
in
{
  failed = map (assertion: assertion.message) (filter (assertion: !holds assertion) (config.assertions or [ ]));
  warnings = config.warnings or [ ];
  layout =
    if !(config ? disko && (config.disko.devices or { }) ? disk) || config.disko.devices.disk == { } then null
    else {
      disks = groups "disk";
      volumes = concatMap groups [ "mdadm" "lvm_vg" "zpool" "bcachefs_filesystems" "nodev" ];
    };
  # whether there is something that partitions the disks, and something that tries it out
  scripts = filter (name: build ? ${name}) [ "diskoScript" "installTest" ];
  boot = {
    # how the boot loader is started
    efi = loader.systemd-boot.enable or false || (loader.grub.enable or false && loader.grub.efiSupport or false);
    bios = loader.grub.enable or false && filter (device: device != "nodev") (loader.grub.devices or [ ]) != [ ];
    # where it lies
    efiMountpoint = loader.efi.efiSysMountPoint or "/boot";
  };
  fileSystems = mapAttrs (_: fileSystem: text (fileSystem.device or null)) (config.fileSystems or { });
  ports = config.services.openssh.ports or [ 22 ];
  agent = agent.enable or false;
  identity = text (agent.identityFile or null);
}
