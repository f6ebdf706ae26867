with builtins; [
  (toJSON { b = [ 1 2.5 null true "x\"\n\t\\/é" ]; a = { }; "" = [ ]; }) (toJSON { outPath = "/o"; x = 1; }) (toJSON { __toString = _: "s"; }) (toJSON "\r\b\f") (toJSON [ [ ] { } ])
  (fromJSON "{\"a\": [1, 2.0, -3, 1e3, null, true, \"\\u00e9\\n\\ud83d\\ude00\"], \"b\": {}}") (fromJSON "1") (fromJSON " [ ] ") (fromJSON "\"x\"") (fromJSON "1.0") (fromJSON "{\"a\":1,\"a\":2}") (fromJSON (toJSON { a.b = [ 1 { c = null; } ]; }))
  (fromJSON "9223372036854775807") (fromJSON "1E-2") (typeOf (fromJSON "1e2"))
]
