# bento without flakes. Takes nixpkgs' packages; gives the package (which `nix-build` builds), the modules and the
# overlay:
#
#   imports = [ (import ./bento { inherit pkgs; }).nixosModules.agent ];
{ pkgs ? import <nixpkgs> { } }:
let
  package = pkgs: pkgs.callPackage ./lib/package.nix { };
in
{
  bento = package pkgs;
  nixosModules = import ./lib/modules.nix { inherit package; };
  overlay = final: _: { bento-fleet = package final; };
}
