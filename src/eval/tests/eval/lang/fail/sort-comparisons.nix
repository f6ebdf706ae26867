# The first comparison that fails is the same one.
builtins.sort (a: b: if a == 3 then throw "compared ${toString a} and ${toString b}" else a < b) (
  builtins.genList (x: x * 7 - 40 * (x * 7 / 40)) 40
)
