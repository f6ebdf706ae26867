with builtins; [
  (split "(a)b" "abc") (split "([ac])" "abc") (split "(a)|(c)" "abc") (split "([[:upper:]]+)" " FOO ") (split "" "abc") (split "x" "") (split "a|ab" "xabx") (split "," "a,b,,c") (split "(,)" "a,b")
  (split "[[:space:]]+" "a b  c") (split "b*" "abc") (split "^a" "aaa") (split "/" "a/b/c") (split "\\." "1.2.3") (split "(-)?[0-9]+" "a-1b2")
]
