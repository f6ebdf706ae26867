# The VM test of the scenarios, with another package in the place of bento's, which would be another one after each change.
#   bento eval -I nixpkgs=CORPORA/nixpkgs-26.11 checks/hosts/vms.nix -A scenarios --drv-path
let
  pkgs = import <nixpkgs> {
    system = "x86_64-linux";
    config = { };
    overlays = [ (import ./absent.nix) ];
  };
in
{ scenarios = import ../vms.nix { inherit pkgs; bento = pkgs.hello; }; }
