# bento's NixOS modules, with bento's own package as their default. `package` takes the packages of the machine that a
# module is for, and gives bento.
{ package }:
let
  module = name: file: { lib, pkgs, ... }: {
    imports = [ file ];
    services.bento.${name}.package = lib.mkDefault (package pkgs);
  };
in
{
  agent = module "agent" ../modules/agent.nix;
  hub = module "hub" ../modules/hub.nix;
}
