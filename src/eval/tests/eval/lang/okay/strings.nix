let x = "x"; n = 5; in [
  "a${x}b${toString n}" "\${x} $${x} $x \n\t\r\\ \" \q" (''
    indented ${x}
      deeper ''${x} ''$ ''\n ''' end
    last'') "" ('''') "a
b" ("a" + "b" + x) "${"nested ${"deep ${x}"}"}" https://example.org/a?b=c
]
