let
  t = builtins.tryEval;
  once = throw "again";
  set = { a = throw "x"; };
in [
  (t 1) (t (throw "a")) (t (assert false; 1)) (t (t (throw "b"))) ((t set).success) (t set.a) (t once) (t once) ((t (builtins.deepSeq set 1)).success)
  (t (if (t (throw "inner")).success then 1 else 2)) (t ((x: throw x) "y")) (t (builtins.length (map (x: throw "lazy") [ 1 ]))) (t (builtins.seq [ (throw "z") ] 3))
]
