# The hub's side: for each host of the fleet a system user, a directory that is the root of all that it sees, and an
# SFTP server that lets it read its release and write its logs, and nothing else.
#
# This file stands alone, so that a fleet without flakes can keep a copy of it.
{ config, lib, ... }:
let
  inherit (lib) mkEnableOption mkIf mkOption types;
  cfg = config.services.bento.hub;
  hosts = lib.attrValues cfg.hosts;
in
{
  options.services.bento.hub = {
    enable = mkEnableOption "the bento hub, where hosts fetch their releases and leave their reports";

    chrootDir = mkOption {
      type = types.path;
      default = "/home/chroot";
      apply = toString;
      description = "Where the hosts' directories are: what config.sh calls CHROOT_DIR. Every directory above it must belong to root, or sshd refuses it.";
    };

    group = mkOption {
      type = types.nonEmptyStr;
      default = "sftp_users";
      description = "The group of the hosts' users, which sshd's rules are for.";
    };

    hosts = mkOption {
      default = { };
      example = { router.keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG... root@router" ]; };
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
            type = types.listOf types.singleLineStr;
            default = [ ];
            description = "The host's public keys. Without any, its directory is there but nobody can log in.";
          };
        };
      }));
    };
  };

  config = mkIf cfg.enable {
    users.groups.${cfg.group} = { };
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

    # sshd insists that the root of a chroot belongs to root and that nobody else can write to it.
    systemd.tmpfiles.rules = [ "d ${cfg.chrootDir} 0755 root root -" ]
      ++ lib.concatMap
      (host: [
        "d ${cfg.chrootDir}/${host.name} 0750 root ${cfg.group} -"
        "d ${cfg.chrootDir}/${host.name}/logs 0700 ${host.name} ${cfg.group} -"
      ])
      hosts;

    services.openssh.enable = true;
    services.openssh.extraConfig = lib.mkAfter ''
      Match Group ${cfg.group}
        ChrootDirectory ${cfg.chrootDir}/%u
        ForceCommand internal-sftp
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
  };
}
