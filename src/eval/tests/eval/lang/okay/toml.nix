builtins.fromTOML ''
  title = "x"
  int = 1_000
  hex = 0xff
  flt = 1.5
  exp = 1e3
  inf-less = -0.0
  bool = true
  arr = [1, 2, [3]]
  inline = { a = 1, b.c = 2 }
  multi = """
  line one
  line two"""
  lit = 'C:\x'
  [table.sub]
  k = "v"
  [[points]]
  x = 1
  [[points]]
  x = 2
  y = { z = [] }
''
