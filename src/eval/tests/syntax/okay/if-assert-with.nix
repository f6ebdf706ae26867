a: [ (if a then if a then 1 else 2 else 3) (assert a; a) (with a; with a; a) ]
