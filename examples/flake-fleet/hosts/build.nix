{ pkgs, ... }:
{
  environment.systemPackages = [ pkgs.git ];
  nix.settings.max-jobs = 8;
  services.bento.agent.buildOptions = [ "--fallback" ];
}
