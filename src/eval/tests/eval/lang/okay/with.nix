let
  x = "lexical";
  outer = { x = "with"; y = "outer"; z = "outer"; };
  inner = { y = "inner"; };
in [
  (with outer; x) (with outer; with inner; [ x y z ]) (with { a = 1; }; with { b = a; }; b) (with (throw "not needed"); x)
  (with { map = f: l: "shadow?"; }; map (x: x) [ 1 ]) (with { builtins = 1; }; builtins ? add) (with outer; let y = 1; in y)
  ((a: with { a = 2; }; a) 1) (let s = { f = with s; g; g = 3; }; in s.f)
]
