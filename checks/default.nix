# The flake's checks that need NixOS: the sample fleets and the modules evaluated with nixpkgs, and what they make of
# them tried with the programs that will read it.
{ self, nixpkgs, pkgs }:
let
  inherit (nixpkgs) lib;
  inherit (pkgs.stdenv.hostPlatform) system;

  flakeFleet = (import ../examples/flake-fleet/flake.nix).outputs { self = flakeFleet; inherit nixpkgs; };
  template = (import ../examples/template/flake.nix).outputs { self = template // { outPath = ../examples/template; }; inherit nixpkgs; bento = self; };

  # a host of a sample fleet, with bento's package among its packages and as the machine that this check is for
  host = modules: nixpkgs.lib.nixosSystem {
    modules = modules ++ [
      {
        nixpkgs.overlays = [ self.overlays.default ];
        nixpkgs.hostPlatform = lib.mkForce system;
        documentation.nixos.enable = false;
      }
    ];
  };
  router = host [ ../examples/fleet/hosts/router/configuration.nix ];

  # A host's assertions, and what the modules make of its options. The system itself is not evaluated: that is what
  # `nix flake check` does in the fleet's own flake.
  evaluated = name: { config, ... }:
    let failed = map (assertion: assertion.message) (lib.filter (assertion: !assertion.assertion) config.assertions);
    in if failed != [ ] then throw "${name}: ${lib.concatStringsSep "; " failed}"
    else
      pkgs.writeText "${name}-evaluates" (builtins.unsafeDiscardStringContext (builtins.toJSON {
        inherit (config.networking) hostName;
        agent = config.environment.etc."bento/agent.toml".text;
        service = config.systemd.units."bento-upgrade.service".text;
        timer = config.systemd.units."bento-upgrade.timer".text;
        tmpfiles = config.systemd.tmpfiles.rules;
        users = lib.mapAttrs (_: user: { inherit (user) home group; }) config.users.users;
      }));
in
{
  # What can happen to a host, on machines with NixOS.
  scenarios = import ./vms.nix { inherit pkgs; bento = self.packages.${system}.default; };

  fixture =
    let failed = import ./fixture/tests.nix;
    in if failed == [ ] then pkgs.writeText "fixture-tests" "passed"
    else throw "the fixture distribution's tests fail: ${lib.generators.toPretty { } failed}";

  nixos = evaluated "router" router;
  fleet = evaluated "web1" (flakeFleet.nixosConfigurations.web1.extendModules {
    modules = [{ nixpkgs.overlays = [ self.overlays.default ]; nixpkgs.hostPlatform = lib.mkForce system; }];
  });
  template = evaluated "template" (template.nixosConfigurations.web.extendModules {
    modules = [{ nixpkgs.hostPlatform = lib.mkForce system; }];
  });

  # The agent's file is TOML, with what the options say.
  agent-config = pkgs.runCommand "agent-config"
    {
      nativeBuildInputs = [ pkgs.python3 ];
      file = router.config.environment.etc."bento/agent.toml".source;
      expected = builtins.toJSON {
        host = "router";
        state-dir = "/var/lib/bento";
        inherit (router.config.services.bento.agent) signers;
        unsigned-releases = false;
        hub = {
          address = "hub.example.org";
          port = 22;
          user = "router";
          host-keys = router.config.services.bento.agent.hub.hostKeys;
          identity = "/etc/ssh/ssh_host_ed25519_key";
          timeout = 20;
        };
        nix.build-options = [ ];
      };
    } ''
    python3 -c 'import json, os, tomllib; got = tomllib.load(open(os.environ["file"], "rb")); assert got == json.loads(os.environ["expected"]), got'
    touch $out
  '';

  # systemd finds nothing to say about the agent's units.
  agent-units = pkgs.runCommand "agent-units" { nativeBuildInputs = [ pkgs.systemd ]; } ''
    mkdir units
    cp ${router.config.systemd.units."bento-upgrade.service".unit}/bento-upgrade.service units/
    cp ${router.config.systemd.units."bento-upgrade.timer".unit}/bento-upgrade.timer units/
    sed -i 's|^ExecStart=.*|ExecStart=${pkgs.coreutils}/bin/true|' units/bento-upgrade.service
    SYSTEMD_UNIT_PATH=$PWD/units: systemd-analyze verify --man=no --recursive-errors=no units/* > $out 2>&1 || { cat $out; exit 1; }
  '';

  # sshd takes the hub's rules.
  hub-sshd = pkgs.runCommand "hub-sshd" { nativeBuildInputs = [ pkgs.openssh ]; } ''
    sshd -G -f ${router.config.environment.etc."ssh/sshd_config".source} > $out
    grep -A 2 '^Match Group sftp_users' ${router.config.environment.etc."ssh/sshd_config".source} | grep -F 'ForceCommand internal-sftp'
  '';
}
