# What can happen to a host, on NixOS: a VM test that runs the scenarios of machines/shared.py, which are run on the fixture
# distribution by machines/run. Gives the test.
#
# The VMs evaluate no NixOS: what the host can be changed to are its specialisations, which are in its store, and releases name
# them.
{ pkgs, bento }:
let
  inherit (pkgs) lib;
  keys = import (pkgs.path + "/nixos/tests/ssh-keys.nix") pkgs;
  changes = import ./machines/changes.nix { interface = "eth1"; };
  address = "192.168.1.2";
in
pkgs.testers.runNixOSTest {
  name = "bento-scenarios";

  nodes.hub = {
    imports = [ ../modules/hub.nix ];
    services.bento.hub = { enable = true; hosts.web.keys = [ keys.snakeOilEd25519PublicKey ]; };
    environment.systemPackages = [ bento pkgs.libressl.nc ];
    environment.etc."ssh/hub" = { source = keys.snakeOilPrivateKey; mode = "0400"; };
    services.openssh.hostKeys = [{ type = "ecdsa"; path = "/etc/ssh/hub"; }];
  };

  nodes.web = { lib, ... }: {
    imports = [ ../modules/agent.nix ];
    environment.etc."ssh/web" = { source = keys.snakeOilEd25519PrivateKey; mode = "0400"; };
    services.openssh.enable = true;
    services.bento.agent = {
      enable = true;
      package = bento;
      hub = { address = "192.168.1.1"; hostKeys = [ keys.snakeOilPublicKey ]; };
      identityFile = "/etc/ssh/web";
      signers = [ keys.snakeOilEd25519PublicKey ];
      # nobody but the scenario starts it, but after a restart it goes on by itself
      interval = "2040-01-01";
      bootDelay = "10s";
      confirm = { tries = 3; settle = 5; };
      settings.system.activation-timeout = 60;
    };
    boot.loader.systemd-boot = { enable = true; bootCounting.enable = true; };
    boot.loader.efi.canTouchEfiVariables = true;
    virtualisation = { useBootLoader = true; useEFIBoot = true; memorySize = 2048; diskSize = 8192; };
    specialisation = lib.mapAttrs (_: configuration: { inherit configuration; }) changes;
  };

  # Python that is checked where it is run
  skipTypeCheck = true;
  skipLint = true;
  testScript = { nodes, ... }:
    let
      # by their changes; the host has them, the hub only knows of them
      systems = builtins.unsafeDiscardStringContext (builtins.toJSON (lib.mapAttrs
        (_: specialisation: { inherit (specialisation.configuration.system.build.toplevel) outPath drvPath; })
        nodes.web.specialisation));
      # takes NixOS's place on the hub: a host's configuration is the name of a system
      stub = pkgs.runCommand "stub" { inherit systems; passAsFile = [ "systems" ]; } ''
        mkdir -p $out/nixos
        cp $systemsPath $out/nixos/systems.json
        echo '{ configuration }: let systems = builtins.fromJSON (builtins.readFile ./systems.json); in {
          config.system.build.toplevel = systems.''${import configuration} // { type = "derivation"; name = "system"; };
        }' > $out/nixos/default.nix
      '';
    in
    ''
      import json
      import sys

      sys.path.insert(0, "${./machines}")
      from vms import VMs

      systems = json.loads(${builtins.toJSON systems})
      VMs(hub, web, "${address}", systems, "${stub}", "${keys.snakeOilEd25519PrivateKey}").run(subtest)
    '';
}
