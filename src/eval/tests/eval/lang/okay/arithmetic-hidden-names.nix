let __sub = a: b: "sub"; __lessThan = a: b: "less"; __mul = a: b: "mul"; __div = a: b: "div"; in [ (5 - 3) (1 < 2) (2 * 3) (4 / 2) ]
