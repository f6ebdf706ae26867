let d = name: derivation ({ name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; } // { inherit name; }); in builtins.outputOf "${d "a"}${d "b"}" "out"
