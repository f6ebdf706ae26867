# nixpkgs' nixos/lib/eval-config.nix, for hosts that read no files that the trees of checks/corpora.tsv lack.
arguments: import TREE/nixos/lib/eval-config.nix (arguments // {
  modules = arguments.modules ++ [{
    nixpkgs.overlays = [ (import ../../absent.nix) ];
    documentation.enable = false;
  }];
})
