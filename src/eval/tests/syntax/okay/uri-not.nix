x: y: [ (x: x) (a_b: 1) (x : y) ]
