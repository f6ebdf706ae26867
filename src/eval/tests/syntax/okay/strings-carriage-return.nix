[ "a
bc
" "\
b" ''
  a
  b
'' ]
