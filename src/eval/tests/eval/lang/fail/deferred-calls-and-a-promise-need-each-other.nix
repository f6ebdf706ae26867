let
  s = builtins.mapAttrs (name: value: t.b) { a = 1; };
  t = {
    b = s.a + 1;
  };
in
s.a
