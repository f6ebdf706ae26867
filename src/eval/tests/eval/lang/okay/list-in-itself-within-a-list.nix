let x = [ 1 [ 2 x ] { a = x; } ]; in x
