builtins.outputOf (builtins.toFile "x" "y") "out"
