with builtins; [
  (add 1 2) (sub 5 3) (mul 2 3.5) (div 7 2) (div 7.0 2) (lessThan 1 2) (bitAnd 12 10) (bitOr 12 10) (bitXor 12 10) (bitAnd (-1) 255) (ceil (-1.5)) (floor 1.9) (isInt 1) (isInt 1.0) (isFloat 1.0) (isFloat 1)
]
