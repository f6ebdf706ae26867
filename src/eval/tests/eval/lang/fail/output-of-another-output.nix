builtins.outputOf (builtins.substring 0 9 (derivation { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; outputs = [ "out" "dev" ]; }).outPath) "out"
