# `derivation`: a derivation's outputs, each a set that knows all the others. `derivationStrict` does the work, and only
# when an output's path or the derivation's is asked for.
drvAttrs@{ outputs ? [ "out" ], ... }:
let
  made = derivationStrict drvAttrs;
  shared = drvAttrs // builtins.listToAttrs named // {
    all = map (output: output.value) named;
    inherit drvAttrs;
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
