let
  a = b + 1;
  b = 2;
  rec' = rec { x = y * 2; y = 3; inherit a; z = rec { x = 10; w = x + y; }; };
  shadow = let a = 10; in let b = a; a = 20; in b;
in [ a rec' shadow (let inherit (rec') x y; in x + y) (let { body = q + 1; q = 1; }) ]
