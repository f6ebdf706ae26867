let
  s = builtins.mapAttrs (name: value: throw "no ${name}") { a = 1; };
  t = {
    inherit (s) a;
  };
in
t.a
