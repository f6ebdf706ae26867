let
  f = y: builtins.seq y 1;
  x = 1 + z;
  z = f x;
in
x
