# Two whose files do not say their names, as an output has taken the variable `name`; and these names have the same FxHash.
map
  (name: (derivation { inherit name; system = "x"; builder = "b"; outputs = [ "name" ]; }).drvPath)
  [
    "n000000000039478bbbbbbbbbbbbbbbbtRe0Y2KV11111111ccccccccccccccccc"
    "n000000000039478bbbbbbbbbbbbbbbbtRe0Y2KV22222222ccccccccccccccccc"
  ]
