builtins.getAttr "if" { a = 1; }
