# Functions for a user's flake. Takes bento's own flake (`bento`) and the systems that it is made for.
{ bento, nixpkgs, systems }:
let
  inherit (nixpkgs) lib;

  # The commands that make sense as `nix run .#COMMAND`.
  commands = {
    deploy = "Evaluate the hosts, and publish what has changed to the hub or push it over SSH";
    build = "Evaluate and build the hosts, without publishing anything";
    diff = "Show what deploying would change on each host";
    status = "Show which system each host should run, and which it runs";
    flake-update = "Update the inputs of the fleet's flakes";
    check = "Evaluate the hosts and validate their disk layouts";
    provision = "Install NixOS on a machine that runs another Linux, as one of the hosts";
    update = "Update the pins or locks, show what that changes, and deploy it";
    hub = "Serve the hosts their releases (`hub serve`), or a web page of the fleet (`hub web`)";
  };
in
{
  # Takes the user's flake (`self`) and gives its `apps`, for all systems: `nix run .#deploy` and the other commands above,
  # and `.` for bento itself. They work on the fleet in BENTO_DIR, else on the one in
  # the current directory, else on the flake that they were run from.
  mkApps = { self, package ? (system: bento.packages.${system}.default) }:
    lib.genAttrs systems (system:
      let
        app = name: arguments: description: {
          type = "app";
          program = toString (nixpkgs.legacyPackages.${system}.writeShellScript "bento-${name}" ''
            if [ -z "''${BENTO_DIR-}" ]; then
              if [ -e flake.nix ] || [ -d hosts ]; then BENTO_DIR=$PWD; else BENTO_DIR=${self}; fi
            fi
            export BENTO_DIR
            exec ${package system}/bin/bento ${arguments} "$@"
          '');
          meta = { inherit description; };
        };
      in
      { default = app "fleet" "" "bento, on this fleet"; }
      // lib.mapAttrs (name: app name name) commands);

  # Takes the user's flake (`self`) and gives its `checks`: the system of each of its hosts, under the system that the
  # host is. So `nix flake check` evaluates and builds the fleet.
  mkChecks = { self }:
    lib.mapAttrs
      (_: hosts: lib.listToAttrs (map (host: lib.nameValuePair "host-${host.name}" host.toplevel) hosts))
      (lib.groupBy (host: host.system) (lib.mapAttrsToList
        (name: host: {
          inherit name;
          inherit (host.pkgs.stdenv.hostPlatform) system;
          inherit (host.config.system.build) toplevel;
        })
        self.nixosConfigurations or { }));
}
