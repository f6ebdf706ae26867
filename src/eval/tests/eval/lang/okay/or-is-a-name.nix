let or = 1; s = { or = 2; }; f = x: y: x; in [ (s.or or 3) (s.x or s.or) (s.x or 4) { or = 5; } ]
