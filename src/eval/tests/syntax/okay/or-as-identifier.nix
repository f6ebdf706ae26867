let or = 1; in f: [ (f or) (f or [ ]) [ f or f ] (f.a or f or) ]
