with builtins; [
  (genericClosure { startSet = [ { key = 1; } { key = 10; } ]; operator = x: if x.key < 5 then [ { key = x.key * 2; } { key = x.key + 1; } ] else [ ]; })
  (genericClosure { startSet = [ ]; operator = throw "not called"; })
  (genericClosure { startSet = [ { key = "a"; v = 1; } { key = "a"; v = 2; } ]; operator = x: [ ]; })
  (genericClosure { startSet = [ { key = [ 1 2 ]; } ]; operator = x: if length x.key > 1 then [ { key = tail x.key; } ] else [ ]; })
  (map (x: x.key) (genericClosure { startSet = [ { key = 1.5; } { key = 1; } ]; operator = x: if x.key < 3 then [ { key = x.key + 1; } ] else [ ]; }))
]
