let
  s = builtins.mapAttrs (name: value: s.a) { a = 1; };
in
s.a
