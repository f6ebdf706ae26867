let f = x: x; s = { inherit f; }; in
[
  (1 == 1.0) (1 == "1") ("a" == "a") ([ 1 [ 2 ] ] == [ 1 [ 2 ] ]) ({ a = 1; b.c = 2; } == { b = { c = 2; }; a = 1; })
  (null == false) (null == null) (/a == "/a") (/a == /a) ({ } == [ ]) ({ a = 1; } != { a = 2; }) (1.0e-0 == 1)
  ({ type = "derivation"; outPath = "x"; a = 1; } == { type = "derivation"; outPath = "x"; b = 2; })
  ({ type = "derivation"; outPath = "x"; } == { type = "derivation"; outPath = "y"; })
  (f == f) (s == s) ([ f ] == [ f ]) ({ f = f; } == { f = f; }) (s.f == s.f) (builtins.add == builtins.add) 
  ({ a = 1; } == { a = 1; b = throw "lengths differ first"; })
]
