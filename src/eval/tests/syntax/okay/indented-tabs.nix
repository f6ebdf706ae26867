''
	a
	 b
  	c
''
