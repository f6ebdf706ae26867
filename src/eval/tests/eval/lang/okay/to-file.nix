with builtins; [ (toFile "a" "x") (toFile "a" "") (toFile "b.txt" (toFile "a" "x")) (readFile (toFile "a" "content
")) (import (toFile "x.nix" "{ a = 1; }")).a (pathExists (toFile "a" "x")) ]
