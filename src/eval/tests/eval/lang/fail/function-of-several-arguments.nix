let
  outer = a: b: c: inner a { } c;
  inner = a: { b ? a }: c: a + b + c;
  partly = outer 1 2;
in
map partly [ "text" ]
