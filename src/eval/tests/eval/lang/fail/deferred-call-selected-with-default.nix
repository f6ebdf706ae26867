let
  s = builtins.mapAttrs (name: value: throw "no ${name}") { a = 1; };
in
s.a.b or 3
