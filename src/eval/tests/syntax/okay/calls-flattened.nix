f: a: b: [ (f a b) ((f a) b) ((f a b) a b) (<n> a) ((-a) b) (f (a b)) (f {} [ ] "" a.b) ]
