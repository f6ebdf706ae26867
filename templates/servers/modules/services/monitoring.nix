# Every machine says how it is; one that watches others collects that.
{ config, lib, ... }:
let
  cfg = config.servers.monitoring;
  port = config.services.prometheus.exporters.node.port;
in
{
  options.servers.monitoring.watches = lib.mkOption {
    type = lib.types.listOf lib.types.str;
    default = [ ];
    description = "The machines that this one watches.";
  };

  config.services.prometheus = lib.mkMerge [
    { exporters.node = { enable = true; openFirewall = true; }; }
    (lib.mkIf (cfg.watches != [ ]) {
      enable = true;
      scrapeConfigs = [{
        job_name = "node";
        static_configs = [{ targets = map (name: "${name}:${toString port}") cfg.watches; }];
      }];
    })
  ];
}
