let
  d = derivation ({ name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; } // { outputs = [ "out" "dev" ]; a = 1; meta.x = 1; } // { meta = ""; });
in [ d.drvPath d.outPath d.dev.outPath (builtins.attrNames d) (map (x: x.outPath) d.all) d.dev.dev.out.outputName d.drvAttrs (d.dev == d.out) (d == d.out) "${d}" "${d.dev}" (builtins.getContext "${d.dev}") (builtins.attrNames d.dev) ]
