let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  text = { __contentAddressed = true; outputHashMode = "text"; outputHashAlgo = "sha256"; };
  producing = derivation (base // text // { name = "hello.drv"; });
  fixed = derivation (base // { name = "fixed.drv"; outputHashMode = "text"; outputHash = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="; });
  plain = derivation (base // { name = "plain"; outputs = [ "out" "dev" ]; });
  floating = derivation (base // text // { outputHashMode = "nar"; });
  drv = d: builtins.unsafeDiscardOutputDependency d.drvPath;
  of = builtins.outputOf;
  out = of producing.outPath "out";
  use = x: derivationStrict (base // { inherit x; });
in [
  producing.drvPath producing.outPath fixed.outPath out (of out "out") (of (of out "a") "b")
  (of (drv plain) "out" == plain.outPath) (of (drv plain) "dev" == plain.dev.outPath) (of (drv floating) "out" == floating.outPath) (of plain.outPath "out")
  (use out) (use (of out "out")) (use (of (of out "a") "b")) (use [ out producing (of producing.outPath "dev") ]) (use (of fixed.outPath "out")) (use (of (drv plain) "dev")) (use (of plain.outPath "out"))
  (use producing.drvPath) (use (derivation (base // { x = out; })))
  (derivationStrict (base // { __structuredAttrs = true; __contentAddressed = true; outputs = [ "dev" "out" ]; x = out; y = floating; }))
  (derivationStrict (base // { __impure = true; x = out; })) (import producing.drvPath).out.outPath (builtins.getContext (import producing.drvPath).out.outPath)
]
