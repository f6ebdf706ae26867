a: with a; assert b; let c = 1; in if c then d: d else e: e
