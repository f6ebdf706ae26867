let n = "a"; s = { ${n}.b = 1; "${n}2" = 2; ${"c"} = (rec { ${n + "d"} = 3; x = 4; }).ad; }; in [ s (s.${n}.${"b"}) (s ? ${n}) { ${if false then "x" else null} = 1; } ]
