let
  name = "dyn";
  s = { a.b.c = 1; a.b.d = 2; ${name} = 3; "x y".z = 4; a."${name}" = 5; ${null} = throw "no attribute"; };
in [
  s s.a.b.c s.${name} s."x y".z (s.a.nope or "default") (s.nope.nope or "default") (s.a.b.c.d or 7) (s ? a.b.c) (s ? a.x)
  (s ? a.b.c.d) (s ? ${name}) (s ? "x y".z) (s.a.b or { }).c ((s.q or (x: x)) 1) (1 ? a) (s.a or (throw "no")).b.d
]
