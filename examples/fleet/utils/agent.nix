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

  # Tells each user that is logged in graphically, over that user's own message bus.
  tellDesktops = pkgs.writeShellScript "bento-tell-desktops" ''
    case $BENTO_OUTCOME in
      success | autoupdate) title="The system was updated"; urgency=normal ;;
      rollback) title="The system went back to an earlier one"; urgency=critical ;;
      *) title="The system could not be updated"; urgency=normal ;;
    esac
    text=$BENTO_REASON
    [ -z "$BENTO_REBOOT_NEEDED" ] || text="Restart this machine when it suits you. $text"
    for bus in /run/user/*/bus; do
      uid=''${bus#/run/user/}
      uid=''${uid%/bus}
      [ "$uid" -ge 1000 ] 2> /dev/null || continue
      ${pkgs.util-linux}/bin/setpriv --reuid "$uid" --clear-groups --regid "$(${pkgs.coreutils}/bin/id -g "$uid")" \
        ${pkgs.coreutils}/bin/env DBUS_SESSION_BUS_ADDRESS="unix:path=$bus" \
        ${pkgs.libnotify}/bin/notify-send --app-name=bento --urgency="$urgency" "$title" "$text" || true
    done
  '';
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

    signers = mkOption {
      type = types.listOf types.singleLineStr;
      default = [ ];
      example = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG... admin" ];
      description = "The public keys of those who sign releases. This host takes up what one of them has signed, and nothing else, whatever the hub serves.";
    };

    unsignedReleases = mkOption {
      type = types.bool;
      default = false;
      description = "Take up releases that nobody signed: whoever has the hub then has this host.";
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

    evaluator = mkOption {
      type = types.nullOr (types.enum [ "nix" "builtin" ]);
      default = null;
      description = "Who evaluates what is built from source: this machine's Nix (also if null), or bento itself, which takes less memory. What is built is the same.";
    };

    confirm = {
      tries = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        description = "How many times a system on trial may try to reach the hub; 6 if null.";
      };
      settle = mkOption {
        type = types.nullOr types.ints.unsigned;
        default = null;
        description = "For how many seconds after the activation no unit may fail; 10 if null.";
      };
      failedUnits = mkOption {
        type = types.nullOr (types.enum [ "refuse" "accept" ]);
        default = null;
        description = "What to make of units that fail with the new system and did not before: go back to the old one (\"refuse\", also if null), or keep the new one all the same.";
      };
      checks = mkOption {
        default = null;
        example = [{ name = "page"; http = "http://localhost/"; tries = 5; pause = 2; } { name = "backup"; command = [ "backup" "--check" ]; }];
        description = "Further things that a system on trial has to show: that a program ends with status 0, that a server answers an HTTP request, or that one takes connections. The checks of the system that runs judge the new one.";
        type = types.nullOr (types.listOf (types.submodule {
          options = {
            name = mkOption { type = types.nonEmptyStr; description = "What it is called in reports."; };
            command = mkOption { type = types.nullOr (types.listOf types.str); default = null; description = "A program and its arguments."; };
            http = mkOption { type = types.nullOr (types.strMatching "http://.+"); default = null; description = "A URL."; };
            tcp = mkOption { type = types.nullOr (types.strMatching ".+:[0-9]+"); default = null; description = "A host and a port."; };
            tries = mkOption { type = types.ints.positive; default = 3; description = "How many times it is tried."; };
            pause = mkOption { type = types.ints.unsigned; default = 5; description = "Seconds between two tries."; };
            timeout = mkOption { type = types.ints.positive; default = 10; description = "Seconds that one try may take."; };
          };
        }));
        apply = checks: if checks == null then null else map (lib.filterAttrs (_: value: value != null)) checks;
      };
    };

    before = {
      free = mkOption {
        type = types.nullOr types.ints.unsigned;
        default = null;
        description = "MiB that must be free where the state, the store and the boot entries are before a system is tried out; 16 if null.";
      };
      program = mkOption {
        type = types.nullOr types.nonEmptyStr;
        default = null;
        description = "A program in the new system, by its path there, that must agree before that is tried out; \"pre-activate-safety-checks\" if null. A system without it is not asked.";
      };
    };

    page = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether to have a page for the user at this machine, at http://localhost:51337/: what it runs, what came of the last release, and a button that asks the hub now. It is there for this machine alone, and runs only while somebody looks.";
      };
      port = mkOption {
        type = types.port;
        default = 51337;
        description = "The port of the page.";
      };
      logGroups = mkOption {
        type = types.nullOr (types.listOf types.nonEmptyStr);
        default = null;
        example = [ "users" ];
        description = "The groups whose members see the log on the page; if null, those who may read the journal: wheel, adm and systemd-journal.";
      };
    };

    notify = {
      command = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "/run/current-system/sw/bin/logger" "the system was updated" ];
        description = "A program and its arguments, run when an attempt at a release has ended. BENTO_HOST, BENTO_RELEASE, BENTO_OUTCOME, BENTO_REASON and BENTO_REBOOT_NEEDED in its environment say how.";
      };
      desktop = mkOption {
        type = types.bool;
        default = false;
        description = "Tell the users that are logged in graphically what came of a release, as a notification on their desktop.";
      };
    };

    reboot = {
      policy = mkOption {
        type = types.nullOr (types.enum [ "never" "when-needed" "window" ]);
        default = null;
        description = "When to restart for a system with another kernel, initrd or systemd. If null, at once where the host's directory has a file REBOOT, and else never. Until the restart, and for good if the system does not come up, the boot entry names the system before.";
      };
      window = mkOption {
        type = types.nullOr (types.strMatching "[0-9]{2}:[0-9]{2}-[0-9]{2}:[0-9]{2}");
        default = null;
        example = "03:00-05:00";
        description = "The part of the day in which the policy \"window\" restarts, by this host's clock. The agent runs at its beginning too, whatever the interval.";
      };
      kexec = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = "Whether to start the new kernel from the running one, without the firmware, where that is possible.";
      };
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
        assertion = cfg.reboot.policy == "window" -> cfg.reboot.window != null;
        message = "services.bento.agent.reboot.policy is \"window\": say which, in services.bento.agent.reboot.window.";
      }
      {
        assertion = cfg.notify.desktop -> cfg.notify.command == [ ];
        message = "services.bento.agent.notify has both a command and desktop: the command can do what desktop does, and more.";
      }
      {
        assertion = cfg.hub.hostKeys != [ ];
        message = "services.bento.agent.hub.hostKeys is empty: the agent needs the hub's public host key, as `ssh-keyscan ${cfg.hub.address}` on a trusted network prints it.";
      }
      {
        assertion = lib.all (key: builtins.match "[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?" key != null) cfg.hub.hostKeys;
        message = "services.bento.agent.hub.hostKeys: each key is its type and its base64, as in /etc/ssh/ssh_host_ed25519_key.pub.";
      }
      {
        assertion = (cfg.signers != [ ]) != cfg.unsignedReleases;
        message = "services.bento.agent.signers: say whose releases this host takes up, as `bento keys` shows the keys; or set unsignedReleases, and not both.";
      }
    ];

    environment.etc."bento/agent.toml".text = toTOML [ ] (lib.recursiveUpdate
      ({
        inherit (cfg) host;
        state-dir = cfg.stateDir;
        inherit (cfg) signers;
        unsigned-releases = cfg.unsignedReleases;
        hub = {
          inherit (cfg.hub) address port user;
          host-keys = cfg.hub.hostKeys;
          identity = cfg.identityFile;
          inherit (cfg) timeout;
        };
        nix.build-options = cfg.buildOptions;
        confirm = {
          inherit (cfg.confirm) tries settle checks;
          failed-units = cfg.confirm.failedUnits;
        };
        reboot = { inherit (cfg.reboot) policy window kexec; };
      } // lib.optionalAttrs (cfg.before.free != null || cfg.before.program != null) {
        before = { inherit (cfg.before) free program; };
      } // lib.optionalAttrs (cfg.evaluator != null) {
        nix = { build-options = cfg.buildOptions; inherit (cfg) evaluator; };
      } // lib.optionalAttrs (cfg.page.logGroups != null) {
        page.log-groups = cfg.page.logGroups;
      } // lib.optionalAttrs (cfg.notify.desktop || cfg.notify.command != [ ]) {
        notify.command = if cfg.notify.desktop then [ "${tellDesktops}" ] else cfg.notify.command;
      })
      cfg.settings);

    environment.systemPackages = [ cfg.package ];

    systemd.services.bento-upgrade = {
      description = "bento: take up the release that the hub publishes";
      wants = [ "network-online.target" ];
      # and, in a boot, what that may have to prove
      after = [ "network-online.target" "bento-booted.service" ];
      # The agent runs the activation that would restart it: it must live to see the end and report it.
      restartIfChanged = false;
      unitConfig.X-StopOnRemoval = false;
      path = [ config.nix.package pkgs.git ]
        ++ lib.optional (cfg.reboot.kexec == true) pkgs.kexec-tools
        ++ lib.optional (config.boot.loader.grub.enable or false) pkgs.grub2;
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${cfg.package}/bin/bento agent run --config /etc/bento/agent.toml";
        # another run is at work, by hand or by bootstrap.sh: that is no failure, least of all of the release that it tries out
        SuccessExitStatus = 75;
        # what the agent has started, an activation above all, outlives it
        KillMode = "process";
        UMask = "0077";
        # What systemd can take from it without taking it from Nix's builds, which may run in this unit too, and from checks:
        # activations have a unit of their own. Nothing may be mounted over a part of /proc (ProtectKernelLogs,
        # ProtectKernelTunables, ProtectProc), as Nix can't shut builds in then: it fails, or builds without a sandbox. Nothing
        # may shut devices off (ProtectClock, PrivateDevices), as bootctl and builds need some. The system calls and
        # capabilities that these would take away are taken away below.
        LockPersonality = true;
        NoNewPrivileges = true;
        ProtectKernelModules = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" "AF_NETLINK" ];
        SystemCallArchitectures = "native";
        SystemCallFilter = "~@clock @module @obsolete @raw-io @swap" + lib.optionalString (cfg.reboot.kexec != true) " @reboot";
        SystemCallErrorNumber = "EPERM";
        CapabilityBoundingSet = "~CAP_SYS_TIME CAP_SYSLOG CAP_WAKE_ALARM CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_AUDIT_WRITE CAP_SYS_MODULE CAP_SYS_PACCT CAP_LEASE CAP_BLOCK_SUSPEND CAP_BPF CAP_CHECKPOINT_RESTORE CAP_IPC_LOCK CAP_IPC_OWNER CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_NET_BROADCAST CAP_PERFMON CAP_SYS_NICE CAP_SYS_RAWIO CAP_SYS_RESOURCE CAP_SYS_TTY_CONFIG"
          + lib.optionalString (cfg.reboot.kexec != true) " CAP_SYS_BOOT";
      };
    };

    # The page: it reads the agent's state, and asks systemd to start the agent. Nothing of it runs until somebody looks.
    systemd.sockets.bento-page = mkIf cfg.page.enable {
      description = "bento: the page for the user at this machine";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "127.0.0.1:${toString cfg.page.port}" ]
        ++ lib.optional (config.networking.enableIPv6 or false) "[::1]:${toString cfg.page.port}"
        ++ [ "/run/bento/page.sock" ];
      socketConfig.SocketMode = "0666";
    };
    systemd.services.bento-page = mkIf cfg.page.enable {
      description = "bento: the page for the user at this machine";
      requires = [ "bento-page.socket" ];
      after = [ "bento-page.socket" ];
      serviceConfig = {
        ExecStart = "${cfg.package}/bin/bento agent page --idle 300 --config /etc/bento/agent.toml";
        UMask = "0077";
        # root without any of its capabilities: that may read the state, which is root's, and speak to systemd
        CapabilityBoundingSet = "";
        NoNewPrivileges = true;
        ProtectSystem = "strict";
        ReadWritePaths = [ "-${cfg.stateDir}" ];
        ProtectHome = true;
        ProtectProc = "invisible";
        PrivateTmp = true;
        PrivateDevices = true;
        ProtectClock = true;
        ProtectHostname = true;
        ProtectControlGroups = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        RestrictAddressFamilies = [ "AF_UNIX" "AF_INET" "AF_INET6" ];
        IPAddressDeny = "any";
        IPAddressAllow = "localhost";
        SystemCallArchitectures = "native";
        SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
        MemoryMax = "128M";
        TasksMax = 64;
      };
    };

    # The secrets are in memory, and gone with the power: they are there again before what may need them. (A system before its
    # first release has none.)
    systemd.services.bento-secrets = {
      description = "bento: put this host's secrets in place";
      wantedBy = [ "sysinit.target" ];
      before = [ "sysinit.target" "shutdown.target" ];
      conflicts = [ "shutdown.target" ];
      after = [ "local-fs.target" ];
      unitConfig = {
        DefaultDependencies = false;
        RequiresMountsFor = cfg.stateDir;
        ConditionPathExists = "${cfg.stateDir}/secrets";
      };
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${cfg.package}/bin/bento agent secrets --config /etc/bento/agent.toml";
        UMask = "0077";
      };
    };

    # Secrets are in place before the activation; users that it brings get theirs here, before their services start.
    system.activationScripts.bento-secrets = {
      deps = [ "users" "groups" ];
      text = ''
        if [ -e /run/bento/secrets ] && [ -e /etc/bento/agent.toml ]; then
          ${cfg.package}/bin/bento agent secrets --config /etc/bento/agent.toml || true
        fi
      '';
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

    # Whatever the interval, the agent runs once in the window: a machine that polls at other times would never restart.
    systemd.timers.bento-window = mkIf (cfg.reboot.policy == "window" && cfg.reboot.window != null) {
      description = "bento: restart in the window, if a system waits for that";
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnCalendar = lib.head (lib.splitString "-" cfg.reboot.window);
        RandomizedDelaySec = "1min";
        Unit = "bento-upgrade.service";
      };
    };

    # Where the boot loader counts boots, one is good only when the system that was booted has proven itself.
    systemd.services.bento-booted = {
      description = "bento: the booted system has shown that it works";
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      before = [ "boot-complete.target" ];
      requiredBy = [ "boot-complete.target" ];
      restartIfChanged = false;
      unitConfig.X-StopOnRemoval = false;
      inherit (config.systemd.services.bento-upgrade) path;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart = "${cfg.package}/bin/bento agent booted --config /etc/bento/agent.toml";
        KillMode = "process";
        UMask = "0077";
      };
    };

    # A kernel that panics, or an initrd that finds no root, ends in a restart, and that in the system before.
    boot.kernelParams = [ "panic=10" "boot.panic_on_fail" ];

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
