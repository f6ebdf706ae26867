a: [ (a.b or a.c or a.d) (a.b.c or 1) (a.b or { }.c) (a."x y".${"z"}.${a} or (x: x)) a.b or 1 ]
