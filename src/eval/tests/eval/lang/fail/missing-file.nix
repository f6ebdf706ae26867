import ./data/none.nix
