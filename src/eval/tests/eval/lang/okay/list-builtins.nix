with builtins; [
  (map (x: x * 2) [ 1 2 3 ]) (filter (x: x > 1) [ 1 2 3 ]) (head [ 1 2 ]) (tail [ 1 2 3 ]) (length [ ]) (elem 2 [ 1 2 ]) (elem 3 [ ]) (elemAt [ 1 2 3 ] 2)
  (concatLists [ [ 1 ] [ ] [ 2 3 ] ]) (concatMap (x: [ x x ]) [ 1 2 ]) (genList (x: x * x) 5) (genList (x: x) 0) (all (x: x) [ ]) (any (x: x) [ ])
  (all (x: x > 1) [ 2 3 ]) (any (x: x > 2) [ 1 2 ]) ([ 1 ] ++ [ ] ++ [ 2 ]) (isList [ ]) (isList { }) (tail [ 1 ]) (elem { a = 1; } [ { a = 1; } ])
  (any (x: if x == 1 then true else throw "short-circuits") [ 1 2 ]) (all (x: if x == 1 then false else throw "short-circuits") [ 1 2 ])
]
