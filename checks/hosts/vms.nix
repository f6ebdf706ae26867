# The VM test of the scenarios, with another package in the place of bento's, which would be another one after each change.
#   bento eval -I nixpkgs=CORPORA/nixpkgs-26.11 checks/hosts/vms.nix -A scenarios --drv-path
let
  pkgs = import <nixpkgs> {
    system = "x86_64-linux";
    config = { };
    # large generated files are absent from the snapshot: what would read them is replaced
    overlays = [
      (final: _: {
        shellcheck-minimal = final.hello // { compiler = final.hello // { bootstrapAvailable = true; }; };
        shellcheck = final.hello;
        pandoc = final.hello;
      })
    ];
  };
in
{ scenarios = import ../vms.nix { nixpkgs = <nixpkgs>; inherit pkgs; bento = pkgs.hello; }; }
