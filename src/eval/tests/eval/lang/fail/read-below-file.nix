builtins.readFile ./read-below-file.nix/x
