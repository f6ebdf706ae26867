[
  ''
    a
      b
    c
  ''
  ''  one line  ''
  ''
    ${"x"} first
     second
  ''
  ''

    blank first
  ''
  ''
    tab	inside
	tab first
  ''
  '''''''${x}''\t''
]
