a: [ (a ? b.c.d) (a ? "x y") (a ? ${"s"}) (a ? ${a.n}.t) (a ? "${a.n}") ]
