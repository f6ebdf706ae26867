with builtins; [
  (readFile ./data/text) (readDir ./data) (pathExists ./data) (pathExists ./data/none) (pathExists ./data/text/.) (pathExists (./data + "/")) (readFileType ./data) (readFileType ./data/text) (hashFile "sha256" ./data/text)
  (import ./data) (import ./data/default.nix) (import ./data/function.nix { x = 2; }) (scopedImport { y = 3; } ./data/scoped.nix) (fromJSON (readFile ./data/a.json)) (import (./data + "/function.nix") { x = 1; })
]
