with builtins; [
  (foldl' (a: b: a + b) 0 [ 1 2 3 ]) (foldl' (a: b: b + a) "" [ "a" "b" "c" ]) (foldl' (a: b: b) (throw "not forced") [ 1 ]) (foldl' (a: b: [ b ] ++ a) [ ] [ 1 2 3 ]) (foldl' (a: { x, y ? 2 }: a + x + y) 0 [ { x = 1; } { x = 2; y = 0; } ])
]
