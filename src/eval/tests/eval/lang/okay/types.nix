with builtins; [
  (map typeOf [ 1 1.0 "s" /p true null [ ] { } (x: x) builtins.add (builtins.add 1) ]) (map isFunction [ (x: x) builtins.add { __functor = 1; } (builtins.add 1) ])
  (map isNull [ null 1 ]) (map isBool [ true 1 ]) (map isPath [ /x "x" ]) (map isString [ "x" /x ]) (typeOf (derivation { name = "n"; system = "s"; builder = "b"; }))
]
