# bento without flakes. Takes nixpkgs' packages; gives the package (which `nix-build` builds), the modules and the
# overlay:
#
#   imports = [ (import ./bento { inherit pkgs; }).nixosModules.agent ];
{ pkgs ? import <nixpkgs> { } }:
let
  bento = pkgs.callPackage ./lib/package.nix { };
in
{
  inherit bento;
  nixosModules = {
    agent = { lib, pkgs, ... }: {
      imports = [ ./modules/agent.nix ];
      services.bento.agent.package = lib.mkDefault (pkgs.callPackage ./lib/package.nix { });
    };
    hub = ./modules/hub.nix;
  };
  overlay = final: _: { bento-fleet = final.callPackage ./lib/package.nix { }; };
}
