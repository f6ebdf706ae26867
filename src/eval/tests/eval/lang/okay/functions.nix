let
  formals = { a, b ? a + 1, ... }@args: [ a b (args ? b) (args ? c) ];
  alias = all@{ x ? all.y, y }: x + y;
  curried = a: b: c: a - b - c;
in [
  (formals { a = 1; }) (formals { a = 1; b = 5; c = 6; }) (alias { y = 2; }) (curried 10 3 2) (map (curried 10 3) [ 1 2 ])
  (({ a ? b, b ? 3 }: a) { }) ((x: x.y or 2) { }) (({ ... }: 1) { z = 1; }) ((_: _) 4)
]
