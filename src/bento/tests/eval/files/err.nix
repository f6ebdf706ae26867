let
  f = x: x.foo;
in
f { }
