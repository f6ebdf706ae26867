let
  s = builtins.mapAttrs (name: value: throw "no ${name}") { a = 1; };
  t = builtins.mapAttrs (
    name: value: with value; nothing
  ) s;
in
t.a
