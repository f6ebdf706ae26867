builtins.outputOf "" 1
