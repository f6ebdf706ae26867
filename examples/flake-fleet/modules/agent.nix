# The host's side: a service that asks the hub for a new release and takes it up, and the timer that starts it.
#
# This file stands alone, so that a fleet without flakes can keep a copy of it.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkEnableOption mkIf mkOption types;
  cfg = config.services.bento.agent;

  # The settings as TOML. Written here, not by a program, so that the file is the same text on every system that
  # evaluates it and needs nothing to build. JSON's strings are TOML's basic strings.
  key = name: if builtins.match "[A-Za-z0-9_-]+" name != null then name else builtins.toJSON name;
  inline = value:
    if builtins.isAttrs value
    then "{ ${lib.concatStringsSep ", " (lib.mapAttrsToList (name: inner: "${key name} = ${inline inner}") value)} }"
    else if builtins.isList value then "[${lib.concatMapStringsSep ", " inline value}]"
    else builtins.toJSON value;
  toTOML = path: set:
    let
      present = lib.filterAttrs (_: value: value != null) set;
      tables = lib.filterAttrs (_: builtins.isAttrs) present;
      plain = lib.filterAttrs (_: value: !builtins.isAttrs value) present;
    in
    lib.concatStrings (
      lib.optional (path != [ ] && plain != { }) "\n[${lib.concatMapStringsSep "." key path}]\n"
      ++ lib.mapAttrsToList (name: value: "${key name} = ${inline value}\n") plain
      ++ lib.mapAttrsToList (name: toTOML (path ++ [ name ])) tables
    );
in
{
  options.services.bento.agent = {
    enable = mkEnableOption "the bento agent, which keeps this host at the release that its hub publishes";

    package = mkOption {
      type = types.package;
      default = pkgs.bento-fleet or (throw "services.bento.agent.package is not set, and the packages have no `bento-fleet': use bento's overlay, or its nixosModules.agent");
      defaultText = lib.literalExpression "pkgs.bento-fleet";
      description = "The bento package to run. It is called `bento-fleet' among packages, because nixpkgs' `bento' is another program.";
    };

    host = mkOption {
      type = types.nonEmptyStr;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "This host's name at the hub.";
    };

    hub = {
      address = mkOption {
        type = types.nonEmptyStr;
        example = "hub.example.org";
        description = "The hub's name or address.";
      };
      port = mkOption {
        type = types.port;
        default = 22;
        description = "The port of the hub's SFTP server.";
      };
      user = mkOption {
        type = types.nonEmptyStr;
        default = cfg.host;
        defaultText = lib.literalExpression "config.services.bento.agent.host";
        description = "The user that this host logs in as.";
      };
      hostKeys = mkOption {
        type = types.listOf types.singleLineStr;
        default = [ ];
        example = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG..." ];
        description = "The hub's public host keys. A hub that shows another key is not talked to: there is no trust on first use.";
      };
    };

    identityFile = mkOption {
      type = types.path;
      default = "/etc/ssh/ssh_host_ed25519_key";
      apply = toString;
      description = "The private key that this host shows to the hub. It is read when the agent runs and never enters the Nix store.";
    };

    timeout = mkOption {
      type = types.ints.positive;
      default = 20;
      description = "How long to wait for the hub's answers, in seconds.";
    };

    interval = mkOption {
      type = types.nonEmptyStr;
      default = "*:0/15";
      example = "hourly";
      description = "When to ask the hub, as a calendar event (see systemd.time(7)). A time that passed while the host was off is made up for.";
    };

    randomizedDelay = mkOption {
      type = types.nonEmptyStr;
      default = "10min";
      description = "The longest that this host waits after each such time, as a time span (see systemd.time(7)). Each host has a delay of its own and keeps it, so that a fleet does not ask all at once.";
    };

    bootDelay = mkOption {
      type = types.nonEmptyStr;
      default = "30s";
      description = "When to ask the hub after a boot, as a time span (see systemd.time(7)). A system with a new kernel has to prove itself then.";
    };

    stateDir = mkOption {
      type = types.path;
      default = "/var/lib/bento";
      apply = toString;
      description = "Where the agent keeps its state, the fetched releases and the reports not yet delivered.";
    };

    buildOptions = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--fallback" ];
      description = "Further options for Nix when it builds this host's system.";
    };

    settings = mkOption {
      type = types.attrsOf types.anything;
      default = { };
      example = { hub.timeout = 60; };
      description = "Further settings for the agent's configuration file, over what the other options say. null leaves a setting out.";
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.hub.hostKeys != [ ];
        message = "services.bento.agent.hub.hostKeys is empty: the agent needs the hub's public host key, as `ssh-keyscan ${cfg.hub.address}` on a trusted network prints it.";
      }
      {
        assertion = lib.all (key: builtins.match "[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?" key != null) cfg.hub.hostKeys;
        message = "services.bento.agent.hub.hostKeys: each key is its type and its base64, as in /etc/ssh/ssh_host_ed25519_key.pub.";
      }
    ];

    environment.etc."bento/agent.toml".text = toTOML [ ] (lib.recursiveUpdate
      {
        inherit (cfg) host;
        state-dir = cfg.stateDir;
        hub = {
          inherit (cfg.hub) address port user;
          host-keys = cfg.hub.hostKeys;
          identity = cfg.identityFile;
          inherit (cfg) timeout;
        };
        nix.build-options = cfg.buildOptions;
      }
      cfg.settings);

    environment.systemPackages = [ cfg.package ];

    systemd.services.bento-upgrade = {
      description = "bento: take up the release that the hub publishes";
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # The agent runs the activation that would restart it: it must live to see the end and report it.
      restartIfChanged = false;
      unitConfig.X-StopOnRemoval = false;
      path = [ config.nix.package pkgs.git ];
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${cfg.package}/bin/bento agent run --config /etc/bento/agent.toml";
        # what the agent has started, an activation above all, outlives it
        KillMode = "process";
        UMask = "0077";
      };
    };

    systemd.timers.bento-upgrade = {
      description = "bento: ask the hub for a new release";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = cfg.interval;
        RandomizedDelaySec = cfg.randomizedDelay;
        FixedRandomDelay = true;
        Persistent = true;
      };
    };

    # A restart may be part of taking up a release: what it left is gone on with soon, whatever the interval.
    systemd.timers.bento-boot = {
      description = "bento: go on after a boot";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnBootSec = cfg.bootDelay;
        AccuracySec = "1s";
        Unit = "bento-upgrade.service";
      };
    };
  };
}
