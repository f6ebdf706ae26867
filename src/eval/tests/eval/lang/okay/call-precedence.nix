let f = x: x; g = x: y: [ x y ]; in [ (f 1 + 2) (g 1 (-2)) (f [ 1 ] ++ [ 2 ]) ((f { a = 1; } // { b = 2; }).a) (!f true == false) (f f 3) (g (f 1) { }.x or 5) ]
