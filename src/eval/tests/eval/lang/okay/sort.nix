with builtins; [
  (sort lessThan [ 3 1 2 ]) (sort (a: b: a > b) [ 3 1 2 ]) (sort (a: b: a.k < b.k) [ { k = 2; v = 1; } { k = 1; v = 2; } { k = 2; v = 3; } { k = 1; v = 4; } ])
  (sort (a: b: true) [ 1 2 3 ]) (sort (a: b: false) [ 3 1 2 ]) (sort lessThan [ ]) (sort lessThan [ "b" "a" ]) (sort lessThan [ 1.5 1 ]) (sort lessThan [ [ 2 ] [ 1 2 ] ])
  (sort (a: b: a < b) (genList (n: n * 7919 - (n * 7919 / 64) * 64) 64))
]
