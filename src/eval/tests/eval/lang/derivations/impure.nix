let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  impure = base // { __impure = true; };
  dep = derivation (impure // { name = "impure-dep"; });
in map derivationStrict [ impure (impure // { outputs = [ "out" "dev" ]; }) (impure // { inherit dep; }) (base // { __impure = false; }) (impure // { outputHashMode = "flat"; outputHashAlgo = "sha512"; }) ]
