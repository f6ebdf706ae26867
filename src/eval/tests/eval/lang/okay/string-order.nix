builtins.sort builtins.lessThan [ "b" "a" "B" "aa" "" "_" "é" "~" "a0" "a-" "A" "1" "10" "9" ]
