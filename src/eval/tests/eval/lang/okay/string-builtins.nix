with builtins; [
  (stringLength "abc") (stringLength "é") (substring 1 2 "hello") (substring 0 (-1) "hello") (substring 10 2 "hello") (substring 2 100 "hello") (substring 0 0 "x")
  (concatStringsSep ", " [ "a" "b" ]) (concatStringsSep "," [ ]) (concatStringsSep "" [ "x" ]) (replaceStrings [ "a" "b" ] [ "1" "2" ] "abcab") (replaceStrings [ "" ] [ "-" ] "abc")
  (replaceStrings [ "a" ] [ (throw "only if it occurs") ] "xyz") (replaceStrings [ "aa" "a" ] [ "X" "Y" ] "aaa") (replaceStrings [ "" "a" ] [ "-" "b" ] "aXa") (replaceStrings [ ] [ ] "same")
  (isString "x") (isString /x) (toString "s") (replaceStrings [ "\n" ] [ "\\n" ] "a\nb")
]
