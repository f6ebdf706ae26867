let
  s = builtins.mapAttrs (name: value: throw "no ${name}") { a = 1; };
  lengths = builtins.mapAttrs (name: value: map (x: x) value) s;
in
lengths.a
