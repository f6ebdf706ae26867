let
  s = builtins.mapAttrs (name: value: throw "no ${name}") { a = 1; };
in
1 + s.a
