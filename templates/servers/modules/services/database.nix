# PostgreSQL, with a database and a user of the same name for each application, and a dump of all of it every night.
{ config, lib, ... }:
let cfg = config.servers.database;
in {
  options.servers.database = {
    enable = lib.mkEnableOption "the databases";
    names = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      description = "The databases that there are.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.postgresql = {
      enable = true;
      ensureDatabases = cfg.names;
      ensureUsers = map (name: { inherit name; ensureDBOwnership = true; }) cfg.names;
    };
    services.postgresqlBackup = { enable = true; databases = cfg.names; };
  };
}
