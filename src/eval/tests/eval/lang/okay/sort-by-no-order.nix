# Comparators that are no order: the result is some permutation, and which one depends on every comparison.
let
  mod = a: b: a - b * (a / b);
  numbers = n: builtins.genList (x: mod (x * 7) 13) n;
  sorted = less: map (n: builtins.sort less (numbers n)) [ 0 1 2 3 5 15 16 17 18 31 32 33 40 64 65 100 ];
in
{
  always = sorted (a: b: true);
  never = sorted (a: b: false);
  parity = sorted (a: b: mod (a * b) 3 == mod a 2);
  product = sorted (a: b: mod (a * b) 3 == 2);
  cycle = sorted (a: b: mod (b - a + 13) 13 < 6);
  notGreater = sorted (a: b: a <= b);
  falling = builtins.sort (a: b: a < b) (builtins.genList (x: 50 - x) 50);
  runs = builtins.sort (a: b: a / 3 < b / 3) (builtins.genList (x: mod x 20) 60);
  saw = builtins.sort (a: b: a < b) (builtins.genList (x: if mod x 20 < 10 then x else 60 - x) 60);
}
