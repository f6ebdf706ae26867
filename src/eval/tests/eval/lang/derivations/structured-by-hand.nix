let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  dep = derivation (base // { name = "dep"; });
  json = __json: derivationStrict (base // { inherit __json; });
in [
  (json "{}") (json ''{ "b": 1, "a": [ 1.0, 2e3, null, true, "\u00e4\n/\u007f" ] }'') (json ''{ "x": { "y": "${dep}" } }'')
  (json ''{"x":123456789012345678901234567890,"y":-0,"z":-0.0,"w":1E-7,"v":18446744073709551615,"x":3}'')
  (json (builtins.toJSON { inherit dep; x = 0.1; }))
  (import (derivation (base // { __structuredAttrs = true; })).drvPath).name (import dep.drvPath).name
]
