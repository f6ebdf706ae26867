# The hub's side: for each host of the fleet a directory that is the root of all that it sees, and an SFTP server that lets
# it read its release and write its logs, and nothing else: OpenSSH, with a system user for each host, or bento's own, with
# none. Where it is wanted, also a web page with metrics, and a binary cache.
#
# This file stands alone, so that a fleet without flakes can keep a copy of it.
{ config, lib, options, pkgs, ... }:
let
  inherit (lib) mkDefault mkEnableOption mkIf mkMerge mkOption optional optionalAttrs types;
  cfg = config.services.bento.hub;
  hosts = lib.attrValues cfg.hosts;
  embedded = cfg.server == "embedded";

  # The settings that the hub's own services read. JSON's strings and lists are TOML's too.
  settings = ''
    [hub]
    directory = ${builtins.toJSON cfg.chrootDir}
  '' + lib.concatMapStrings
    (host: ''

      [hosts.${builtins.toJSON host.name}]
      keys = ${builtins.toJSON host.keys}
      tags = ${builtins.toJSON host.tags}
    '')
    hosts;
  directory = "bento-hub";

  isLoopback = address: lib.hasPrefix "127." address || lib.hasPrefix "[::1]:" address;
  tokenArguments = lib.optionalString (cfg.web.tokenFile != null) " --token %d/token";
  credentials = optional (cfg.web.tokenFile != null) "token:${cfg.web.tokenFile}";
  port = address: builtins.fromJSON (lib.last (lib.splitString ":" address));

  # what both services have in common: they need next to nothing of the machine
  service = {
    wantedBy = [ "multi-user.target" ];
    after = [ "network.target" ];
    environment.BENTO_DIR = "/etc/${directory}";
    # what differs between two systems, the store knows
    path = [ config.nix.package ];
    restartTriggers = [ config.environment.etc."${directory}/bento.toml".source ];
    serviceConfig = {
      Restart = "on-failure";
      RestartSec = 5;
      CapabilityBoundingSet = "";
      LockPersonality = true;
      LoadCredential = credentials;
      MemoryDenyWriteExecute = true;
      NoNewPrivileges = true;
      PrivateDevices = true;
      PrivateTmp = true;
      ProtectClock = true;
      ProtectControlGroups = true;
      ProtectHome = "read-only";
      ProtectHostname = true;
      ProtectKernelLogs = true;
      ProtectKernelModules = true;
      ProtectKernelTunables = true;
      ProtectSystem = "strict";
      RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
      RestrictNamespaces = true;
      RestrictRealtime = true;
      RestrictSUIDSGID = true;
      SystemCallArchitectures = "native";
    };
  };
  common = lib.recursiveUpdate service;

  # How many connections may be about to log in: every host may come in the same moment, and once more before it is through.
  crowd = lib.max 100 (2 * lib.length hosts);
  # each of them is one process or more of sshd's, and a few files of its first one
  limits = { LimitNOFILE = mkDefault "${toString (1024 + 4 * crowd)}:524288"; TasksMax = mkDefault "infinity"; };
  # what sshd is told for all, if it is not told otherwise; older collections of packages have nothing but text for that
  sshdSettings = settings:
    if options.services.openssh ? settings
    then { settings = lib.mapAttrs (_: mkDefault) settings; }
    else { extraConfig = lib.mkBefore (lib.concatStrings (lib.mapAttrsToList (name: value: "${name} ${value}\n") settings)); };
  # whether systemd starts one sshd for each connection
  onDemand = config.services.openssh.startWhenNeeded or false;
  # OpenSSH holds what one has done wrong against its address since that version
  sshd = config.services.openssh.package or config.programs.ssh.package;
  hasPenalties = lib.versionAtLeast (lib.getVersion sshd) "9.8";

  # not every collection of packages has these
  hasHarmonia = options.services ? harmonia && options.services.harmonia ? cache;
  hasPrometheus = options.services ? prometheus;
in
{
  options.services.bento.hub = {
    enable = mkEnableOption "the bento hub, where hosts fetch their releases and leave their reports";

    package = mkOption {
      type = types.package;
      default = pkgs.bento-fleet or (throw "services.bento.hub.package is not set, and the packages have no `bento-fleet': use bento's overlay, or its nixosModules.hub");
      defaultText = lib.literalExpression "pkgs.bento-fleet";
      description = "The bento package, which the embedded server and the web page are part of. With OpenSSH alone none is needed.";
    };

    server = mkOption {
      type = types.enum [ "openssh" "embedded" ];
      default = "openssh";
      description = "What serves the hosts: the machine's sshd, with a system user for each host, or bento itself, on a port of its own and without any.";
    };

    chrootDir = mkOption {
      type = types.path;
      default = "/home/chroot";
      apply = toString;
      description = "Where the hosts' directories are: what config.sh calls CHROOT_DIR. Every directory above it must belong to root, or sshd refuses it.";
    };

    group = mkOption {
      type = types.strMatching ".+";
      default = "sftp_users";
      description = "The group of the hosts' users, which sshd's rules are for; or the embedded server's.";
    };

    quota = mkOption {
      type = types.nullOr types.ints.positive;
      default = if embedded then 256 else null;
      defaultText = lib.literalExpression "256 if the server is embedded, else null";
      description = ''
        How much one host may leave in its logs, in MiB. With OpenSSH it is the file system that counts: that of chrootDir
        must be mounted with `usrquota`, and, if it is ext4, have been made with the feature `quota` (`tune2fs -O quota`).
        Without a number it does not count.
      '';
    };

    sharedAddresses = mkOption {
      type = types.listOf (types.strMatching "[0-9a-fA-F.:]+(/[0-9]+)?");
      default = [ ];
      example = [ "203.0.113.7" "2001:db8:1::/48" ];
      description = ''
        Addresses, or networks, that many hosts come from: a site behind one router, a VPN. OpenSSH refuses an address for a
        while when logins from there fail or take too long, and so all hosts of a site for what one of them does; not these.
      '';
    };

    hosts = mkOption {
      default = { };
      example = { router = { keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG... root@router" ]; tags = [ "home" ]; }; };
      description = "The hosts of the fleet, by name. The name is also the user that the host logs in as.";
      type = types.attrsOf (types.submodule ({ name, ... }: {
        options = {
          name = mkOption {
            type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
            default = name;
            readOnly = true;
            internal = true;
            description = "The host's name: it has to be one that a user can have.";
          };
          keys = mkOption {
            type = types.listOf (types.strMatching "[^\n]+");
            default = [ ];
            description = "The host's public keys. Without any, its directory is there but nobody can log in.";
          };
          tags = mkOption {
            type = types.listOf (types.strMatching "[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}");
            default = [ ];
            description = "Words by which several hosts are selected, as `@TAG`: bento reads them in the file that `settingsFile` names.";
          };
        };
      }));
    };

    settingsFile = mkOption {
      type = types.str;
      default = "/etc/${directory}/bento.toml";
      readOnly = true;
      description = "Where the hosts are written down for bento: `BENTO_DIR` of the hub's own services is this file's folder.";
    };

    embedded = {
      listen = mkOption {
        type = types.strMatching ".+:[0-9]+";
        default = "[::]:2022";
        description = "Where the embedded server listens.";
      };
      openFirewall = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the firewall lets hosts through to it.";
      };
      perAddress = mkOption {
        type = types.ints.between 1 65535;
        default = 1000;
        description = "How many connections from one address (of IPv6, from one /64) may wait to log in at a time. More of them are refused, and hosts try again.";
      };
      perHost = mkOption {
        type = types.ints.between 1 65535;
        default = 16;
        description = "How many connections one host may have at a time. More of them are refused, and hosts try again.";
      };
      user = mkOption {
        type = types.strMatching ".+";
        default = "bento-hub";
        description = "The user that it runs as, and whom the hosts' directories belong to. `bento deploy` must be run as this user too.";
      };
    };

    web = {
      enable = mkEnableOption "the web page that shows where the hosts stand, with metrics for Prometheus at /metrics";
      listen = mkOption {
        type = types.strMatching ".+:[0-9]+";
        default = "127.0.0.1:8022";
        description = "Where the page is. Without a token it is for this machine alone.";
      };
      tokenFile = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/run/secrets/bento-hub";
        description = "A file, outside of the store, with the token that the page asks for.";
      };
      scrape = mkOption {
        type = types.bool;
        default = false;
        description = "Whether this machine's Prometheus (services.prometheus) collects the metrics.";
      };
    };

    cache = {
      enable = mkEnableOption "a binary cache (harmonia) of this machine's store, for hosts that fetch what the hub has built";
      listen = mkOption {
        type = types.strMatching ".+:[0-9]+";
        default = "[::]:5000";
        description = "Where the cache listens.";
      };
      openFirewall = mkOption {
        type = types.bool;
        default = true;
        description = "Whether the firewall lets hosts through to it.";
      };
      signingKeyFiles = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "/run/secrets/cache-key" ];
        description = "Files, outside of the store, with the keys that the cache signs with (`nix-store --generate-binary-cache-key`). The hosts trust their public halves: release.trusted-public-keys in bento's settings.";
      };
    };
  };

  config = mkIf cfg.enable (mkMerge ([
    {
      assertions = [
        {
          assertion = !cfg.web.enable || cfg.web.tokenFile != null || isLoopback cfg.web.listen;
          message = "services.bento.hub.web.listen (${cfg.web.listen}) is an address that others can reach: the page needs a tokenFile, or 127.0.0.1";
        }
        {
          assertion = !cfg.cache.enable || hasHarmonia;
          message = "services.bento.hub.cache needs a nixpkgs that has services.harmonia.cache";
        }
        {
          assertion = !cfg.cache.enable || cfg.cache.signingKeyFiles != [ ];
          message = "services.bento.hub.cache.signingKeyFiles is empty: hosts take nothing from a cache that does not sign";
        }
        {
          assertion = !cfg.web.scrape || (cfg.web.enable && hasPrometheus);
          message = "services.bento.hub.web.scrape needs services.bento.hub.web.enable, and a nixpkgs that has services.prometheus";
        }
        {
          assertion = cfg.sharedAddresses == [ ] || (!embedded && hasPenalties);
          message = "services.bento.hub.sharedAddresses is about OpenSSH from 9.8 on, and the hub's server is ${if embedded then "bento's own" else "OpenSSH ${lib.getVersion sshd}"}: leave it empty";
        }
      ];

      users.groups.${cfg.group} = { };
      environment.etc."${directory}/bento.toml".text = settings;
    }

    (mkIf (!embedded) {
      users.users = lib.listToAttrs (map
        (host: lib.nameValuePair host.name {
          isSystemUser = true;
          inherit (cfg) group;
          description = "bento host ${host.name}";
          home = "${cfg.chrootDir}/${host.name}";
          createHome = false;
          openssh.authorizedKeys.keys = host.keys;
        })
        hosts);

      # sshd insists that the root of a chroot belongs to root and that nobody else can write to it. The group may read the
      # logs, as the web page does; hosts see none but their own.
      systemd.tmpfiles.rules = [ "d ${cfg.chrootDir} 0755 root root -" ]
        ++ lib.concatMap
        (host: [
          "d ${cfg.chrootDir}/${host.name} 0750 root ${cfg.group} -"
          "d ${cfg.chrootDir}/${host.name}/logs 0750 ${host.name} ${cfg.group} -"
        ])
        hosts;

      services.openssh.enable = true;
      services.openssh.extraConfig = lib.mkAfter ''
        Match Group ${cfg.group}
          ChrootDirectory ${cfg.chrootDir}/%u
          ForceCommand internal-sftp -u 0027 -P symlink,hardlink,mkdir,rmdir,setstat
          AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u
          AuthenticationMethods publickey
          PasswordAuthentication no
          KbdInteractiveAuthentication no
          DisableForwarding yes
          AllowTcpForwarding no
          AllowStreamLocalForwarding no
          AllowAgentForwarding no
          X11Forwarding no
          PermitTunnel no
          PermitTTY no
          PermitUserRC no
        Match all
      '';
    })

    # What OpenSSH and systemd refuse a crowd by: both take one for an attack. Penalties for an address stay, as they are what
    # keeps those away that try out passwords.
    (mkIf (!embedded) {
      services.openssh = sshdSettings ({
        MaxStartups = toString crowd;
      } // optionalAttrs (cfg.sharedAddresses != [ ]) {
        PerSourcePenaltyExemptList = lib.concatStringsSep "," cfg.sharedAddresses;
      });
    })
    (mkIf (!embedded && !onDemand) { systemd.services.sshd.serviceConfig = limits; })
    (mkIf (!embedded && onDemand) {
      systemd.sockets.sshd.socketConfig = { MaxConnections = mkDefault crowd; TriggerLimitIntervalSec = mkDefault 0; };
    })

    # what a host's user owns is its logs, so the file system's count of that is the quota
    (mkIf (!embedded && cfg.quota != null) {
      systemd.services.bento-hub-quota = {
        description = "Limits to what hosts may leave on the bento hub";
        wantedBy = [ "multi-user.target" ];
        after = [ "local-fs.target" "systemd-tmpfiles-setup.service" ];
        path = [ pkgs.linuxquota (pkgs.util-linux or pkgs.utillinux) ];
        serviceConfig = { Type = "oneshot"; RemainAfterExit = true; };
        script = ''
          place=$(findmnt --noheadings --output TARGET --target ${lib.escapeShellArg cfg.chrootDir})
          for host in ${lib.escapeShellArgs (map (host: host.name) hosts)}; do
            setquota -u "$host" 0 ${toString (cfg.quota * 1024)} 0 20000 "$place" || {
              echo "services.bento.hub.quota: the file system at $place does not count what users have: mount it with usrquota; ext4 also needs tune2fs -O quota, once, while it is not mounted" >&2
              exit 1
            }
          done
        '';
      };
    })

    (mkIf embedded {
      users.users.${cfg.embedded.user} = mkIf (cfg.embedded.user == "bento-hub") {
        isSystemUser = true;
        inherit (cfg) group;
        description = "bento hub";
      };
      systemd.tmpfiles.rules = [ "d ${cfg.chrootDir} 0750 ${cfg.embedded.user} ${cfg.group} -" ];
      networking.firewall.allowedTCPPorts = mkIf cfg.embedded.openFirewall [ (port cfg.embedded.listen) ];
      systemd.services.bento-hub = common {
        description = "bento hub: releases for the fleet's hosts";
        serviceConfig = {
          ExecStart = "${cfg.package}/bin/bento hub serve --listen ${cfg.embedded.listen} --host-key /var/lib/${directory}/host_key"
            + " --per-address ${toString cfg.embedded.perAddress} --per-host ${toString cfg.embedded.perHost}"
            + lib.optionalString (cfg.quota != null) " --quota ${toString cfg.quota}"
            + lib.optionalString cfg.web.enable " --web=${cfg.web.listen}${tokenArguments}";
          User = cfg.embedded.user;
          Group = cfg.group;
          inherit (limits) LimitNOFILE;
          StateDirectory = directory;
          StateDirectoryMode = "0700";
          ReadWritePaths = [ cfg.chrootDir ];
          # this would take openat2 away, by which a host is kept in its directory
          RestrictSUIDSGID = false;
          UMask = "0027";
        };
      };
    })

    (mkIf (!embedded && cfg.web.enable) {
      systemd.services.bento-hub-web = common {
        description = "bento hub: where the fleet's hosts stand";
        serviceConfig = {
          ExecStart = "${cfg.package}/bin/bento hub web --listen ${cfg.web.listen}${tokenArguments}";
          DynamicUser = true;
          SupplementaryGroups = [ cfg.group ];
        };
      };
    })

    (mkIf (cfg.cache.enable && cfg.cache.openFirewall) {
      networking.firewall.allowedTCPPorts = [ (port cfg.cache.listen) ];
    })
  ]
  ++ optional (hasHarmonia) (mkIf cfg.cache.enable {
    services.harmonia.cache = {
      enable = true;
      signKeyPaths = cfg.cache.signingKeyFiles;
      settings.bind = cfg.cache.listen;
    };
  })
  ++ optional (hasPrometheus) (mkIf cfg.web.scrape {
    services.prometheus.scrapeConfigs = [
      ({
        job_name = "bento";
        static_configs = [{ targets = [ cfg.web.listen ]; }];
      } // optionalAttrs (cfg.web.tokenFile != null) { bearer_token_file = cfg.web.tokenFile; })
    ];
  })));
}
