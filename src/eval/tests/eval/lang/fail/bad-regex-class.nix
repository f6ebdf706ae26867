builtins.match "\\d" "x"
