builtins.convertHash { hash = "x"; toHashFormat = "sri"; }
