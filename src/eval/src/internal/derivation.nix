# `derivation`: a derivation's outputs, each a set that knows all the others. `derivationStrict` does the work, and only
# when an output's path or the derivation's is asked for.
attrs@{ outputs ? [ "out" ], ... }:
let
  made = derivationStrict attrs;
  shared = attrs // builtins.listToAttrs named // {
    all = map (output: output.value) named;
    drvAttrs = attrs;
  };
  named = map
    (outputName: {
      name = outputName;
      value = shared // {
        outPath = builtins.getAttr outputName made;
        inherit (made) drvPath;
        type = "derivation";
        inherit outputName;
      };
    })
    outputs;
in
(builtins.head named).value
