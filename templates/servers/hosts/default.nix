# The machines: a NixOS configuration for each directory here but common. Takes the pinned sources, and more modules for all machines.
{ sources, modules ? [ ] }:
let
  directories = builtins.filter (name: (builtins.readDir ./.).${name} == "directory") (builtins.attrNames (builtins.readDir ./.));
  machines = builtins.filter (name: name != "common") directories;
  machine = name: import (sources.nixpkgs + "/nixos/lib/eval-config.nix") {
    # the configuration says which, as nixpkgs.hostPlatform
    system = null;
    specialArgs = { inherit sources; };
    modules = [
      (sources.disko + "/module.nix")
      ../modules/disk-layouts
      ../modules/services
      ./common
      (./. + "/${name}")
      { networking.hostName = name; }
    ] ++ modules;
  };
in
builtins.listToAttrs (map (name: { inherit name; value = machine name; }) machines)
