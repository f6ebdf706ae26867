"a
  b
    c"
