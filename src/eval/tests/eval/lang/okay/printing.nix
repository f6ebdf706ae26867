[
  { } [ ] { a = { b = [ 1 [ 2 { } ] ]; }; } "quotes \" \\ \n \t \r \${x} $x" { "a b" = 1; "if" = 2; "a'" = 3; "1a" = 4; "" = 5; _ = 6; "or" = 7; } null true false
  (x: x) ({ a }: a) builtins.add (builtins.add 1) /a/b (-1) 1.0 (-1.5) (let x = [ x ]; in builtins.length x)
]
