let x = if (builtins.tryEval y).success then 1 else 2; y = throw "no"; z = [ (builtins.tryEval y) (builtins.tryEval y) ]; in [ x z ]
