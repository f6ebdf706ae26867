builtins.hashFile "sha3" ./hash-file-algorithm.nix
