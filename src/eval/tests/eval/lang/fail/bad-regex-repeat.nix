builtins.split "*" "x"
