# The template `servers`, as `bento init` lays it out in the directory SERVERS, on nixpkgs and disko of this machine: each machine's
# derivations, and what becomes of its disks. tests/provisioning.rs evaluates this.
{ servers, nixpkgs, disko, bento ? null }:
let
  sources = { inherit nixpkgs disko; } // (if bento == null then { } else { inherit bento; });
  machines = import (servers + "/hosts") {
    inherit sources;
    modules = [
      ({ pkgs, lib, ... }: {
        # generated files that a snapshot of nixpkgs may lack are not read
        nixpkgs.overlays = [ (import ../../../checks/hosts/absent.nix) ];
        documentation.enable = false;
      })
      (if bento == null then { } else {
        services.bento.agent = {
          hub.hostKeys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIONflBC9T+8vmVd5Z+SmsaCztzhob2zrqW0diR1nrbNS hub" ];
          signers = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGq573wedqowvWicwgDRToY66/aZd5yYqikW+aDQgeE admin" ];
        };
      })
    ];
  };
in
builtins.mapAttrs
  (name: machine: {
    toplevel = machine.config.system.build.toplevel.drvPath;
    disko = machine.config.system.build.diskoScript.drvPath;
    inherit (machine.config.networking) hostName;
    failed = map (assertion: assertion.message) (builtins.filter (assertion: !assertion.assertion) machine.config.assertions);
    inherit (machine.config) warnings;
    devices = map (disk: disk.device) (builtins.attrValues machine.config.disko.devices.disk);
    fileSystems = builtins.mapAttrs (_: fileSystem: fileSystem.fsType) machine.config.fileSystems;
    ports = machine.config.networking.firewall.allowedTCPPorts;
    agent = machine.config.services.bento.agent.enable or false;
  })
  machines
