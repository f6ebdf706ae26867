with builtins; [
  (match "a(.*)c" "abbc") (match "x" "y") (match "(a)|(b)" "b") (match "" "") (match "[[:space:]]+([[:upper:]]+)[[:space:]]+" "  FOO   ") (match "a.c" "a
c") (match "[\\w]+" "\\w") (match "(a*)(ab)*" "aab") (match "(a|ab)(c|bcd)(d*)" "abcd") (match "a{2,3}" "aaa") (match "a{2}" "aaa") (match "([^/]+)/(.*)" "owner/repo/x")
  (match ".*-([0-9.]+)" "pkg-1.2.3") (match "(.*)\\.nix" "a.nix") (match "[a-c]*" "abcabc") (match "(x?)" "") (match "((a)|b)+" "ab") (match "[]a]+" "]a]") (match "[^]]+" "abc")
]
