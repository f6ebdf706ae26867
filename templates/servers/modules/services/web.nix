# A web server.
{ config, lib, ... }:
let cfg = config.servers.web;
in {
  options.servers.web = {
    enable = lib.mkEnableOption "the web server";
    domain = lib.mkOption {
      type = lib.types.str;
      example = "www.example.org";
      description = "The name of the site.";
    };
    root = lib.mkOption {
      type = lib.types.path;
      default = "/var/www";
      description = "Where its pages are.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.nginx = {
      enable = true;
      recommendedOptimisation = true;
      virtualHosts.${cfg.domain} = { inherit (cfg) root; default = true; };
    };
    networking.firewall.allowedTCPPorts = [ 80 ];
  };
}
