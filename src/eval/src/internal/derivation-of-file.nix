# What `import` gives for the file of a derivation: the set that `derivation` would have given, from its outputs' paths.
attrs@{ drvPath, outputs, name, ... }:
let
  shared = builtins.listToAttrs named // {
    all = map (output: output.value) named;
    inherit drvPath name;
    type = "derivation";
  };
  named = map
    (outputName: {
      name = outputName;
      value = shared // {
        outPath = builtins.getAttr outputName attrs;
        inherit outputName;
      };
    })
    outputs;
in
(builtins.head named).value
