# The function is evaluated even if it is never called.
builtins.genList { } 0
