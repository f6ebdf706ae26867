[ (if 1 == 1 then "a" else "b") (if false then throw "no" else "b") (assert true; 1) (assert 1 < 2; assert true -> true; 2) ]
