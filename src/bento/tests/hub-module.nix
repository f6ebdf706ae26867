# Hubs made with the NixOS module, and what becomes of their options: tests/modules.rs evaluates this.
let
  host = module: import <nixpkgs/nixos/lib/eval-config.nix> {
    system = "x86_64-linux";
    modules = [
      ../../../modules/hub.nix
      module
      ({ pkgs, ... }: {
        # generated files that a snapshot of nixpkgs may lack are not read
        nixpkgs.overlays = [ (import ../../../checks/hosts/absent.nix) ];
        documentation.enable = false;
        boot.loader.grub.device = "nodev";
        fileSystems."/" = { device = "/dev/vda"; fsType = "ext4"; };
        networking.hostName = "hub";
        system.stateVersion = "26.11";
        services.bento.hub = {
          enable = true;
          package = pkgs.writeShellScriptBin "bento" "exit 1";
          hosts.web = { keys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIONflBC9T+8vmVd5Z+SmsaCztzhob2zrqW0diR1nrbNS root@web" ]; tags = [ "home" ]; };
          hosts.db = { };
        };
      })
    ];
  };
  hubs = builtins.mapAttrs (_: host) {
    plain = { };
    full = {
      services.prometheus.enable = true;
      services.bento.hub = {
        sharedAddresses = [ "203.0.113.7" "2001:db8:1::/48" ];
        quota = 64;
        web = { enable = true; listen = "[::]:8022"; tokenFile = "/run/secrets/hub"; scrape = true; };
        cache = { enable = true; signingKeyFiles = [ "/run/secrets/cache" ]; };
      };
    };
    # a large fleet, with one sshd for each connection
    large = {
      services.openssh.startWhenNeeded = true;
      services.bento.hub.hosts = builtins.listToAttrs (builtins.genList (n: { name = "h${toString n}"; value = { }; }) 998);
    };
    # what the administrator says goes before
    told = { lib, options, ... }: {
      services.openssh = if options.services.openssh ? settings then { settings.MaxStartups = "7"; } else { };
      systemd.services.sshd.serviceConfig.TasksMax = 500;
    };
    embedded = {
      services.bento.hub = { server = "embedded"; chrootDir = "/srv/hub"; embedded.listen = "[::]:2222"; web.enable = true; };
    };
    wrong = {
      services.bento.hub = { web = { enable = true; listen = "0.0.0.0:8022"; }; cache.enable = true; server = "embedded"; sharedAddresses = [ "::1" ]; };
    };
  };
  unit = hub: name: if hub.config.systemd.units ? ${name} then hub.config.systemd.units.${name}.text else null;
in
builtins.mapAttrs
  (_: hub: {
    failed = map (assertion: assertion.message) (builtins.filter (assertion: !assertion.assertion) hub.config.assertions);
    hub = unit hub "bento-hub.service";
    web = unit hub "bento-hub-web.service";
    quota = unit hub "bento-hub-quota.service";
    cache = unit hub "harmonia.service";
    settings = hub.config.environment.etc."bento-hub/bento.toml".text;
    ports = hub.config.networking.firewall.allowedTCPPorts;
    scrape = map (config: { inherit (config) job_name static_configs bearer_token_file; }) hub.config.services.prometheus.scrapeConfigs;
    directories = builtins.filter (rule: builtins.match ".*(chroot|hub).*" rule != null) hub.config.systemd.tmpfiles.rules;
    users = builtins.intersectAttrs { web = null; db = null; bento-hub = null; } (builtins.mapAttrs (_: user: user.openssh.authorizedKeys.keys) hub.config.users.users);
    sshd = hub.config.services.openssh.extraConfig;
    startups = hub.config.services.openssh.settings.MaxStartups or null;
    exempt = hub.config.services.openssh.settings.PerSourcePenaltyExemptList or null;
    daemon = unit hub "sshd.service";
    socket = unit hub "sshd.socket";
  } // (if builtins.any (assertion: !assertion.assertion) hub.config.assertions then { } else { toplevel = hub.config.system.build.toplevel.drvPath; }))
  hubs
