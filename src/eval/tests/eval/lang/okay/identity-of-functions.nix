let
  f = x: x;
  same = a: b: a == b;
  list = [ f ];
  lib = { inherit f; };
in
[
  (same f f) (same list list) (same lib lib) (same { a = f; } { a = f; }) (same [ f ] [ f ]) (same [ (x: x) ] [ (x: x) ])
  (same { g = x: x; } { g = x: x; }) (let g = y: y; in [ g ] == [ g ]) (builtins.elem f [ f ]) (same { a = lib.f; } { a = lib.f; })
]
