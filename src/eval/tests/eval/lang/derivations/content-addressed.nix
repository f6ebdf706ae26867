let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  ca = base // { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  dep = derivation (ca // { name = "ca-dep"; outputs = [ "out" "dev" ]; });
  use = derivation (base // { name = "use"; inherit dep; dev = dep.dev; });
in map derivationStrict [ ca (ca // { outputs = [ "out" "dev" ]; }) (ca // { outputHashMode = "flat"; }) (ca // { outputHashAlgo = "sha512"; }) (base // { inherit dep; }) (ca // { inherit dep; }) (base // { inherit use; }) (ca // { __structuredAttrs = true; }) (base // { __contentAddressed = false; }) ]
