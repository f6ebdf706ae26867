# `!` binds looser than arithmetic, `?` tighter than `++`, `->` and `//` group to the right
a: b: c: d: [
  (!a + b == c)
  (-a * b + c / d)
  (a ++ b ++ c ? x ++ d)
  (a // b // c)
  (a -> b -> c || d && a)
  (a < b == (c >= d))
  (a - b - c <= d)
  (a != b && !c ? x.y)
  (a * !b + c)
  (- - a)
  (-a.b)
  (a ? b ? c)
]
