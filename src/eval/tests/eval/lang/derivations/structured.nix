let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  dep = derivation (base // { name = "dep"; outputs = [ "out" "dev" ]; });
in map derivationStrict [
  (base // { __structuredAttrs = true; }) (base // { __structuredAttrs = true; a = { b = [ 1 2.5 null true "x" dep ]; c = dep.dev; }; outputs = [ "out" "dev" ]; args = [ "x" dep ]; }) (base // { __structuredAttrs = false; a = 1; })
  (base // { __structuredAttrs = true; __ignoreNulls = true; a = null; b = { c = null; }; }) (base // { __structuredAttrs = true; outputChecks.out.disallowedReferences = [ "dev" ]; exportReferencesGraph.g = [ dep ]; })
  (base // { __structuredAttrs = true; outputHash = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="; outputHashMode = "recursive"; })
]
