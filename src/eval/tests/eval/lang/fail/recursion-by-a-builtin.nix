let
  x = builtins.length x;
in
x
