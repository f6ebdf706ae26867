# A default that is the name of another argument is the same function as that, if the other's name was seen before its own.
let
  unique = builtins.foldl' (done: x: if builtins.elem x done then done else done ++ [ x ]) [ ];
  count = set: builtins.length (unique (builtins.attrValues set));
  later = { late = null; early = null; };
  earlier = { first = null; second = null; };
in
[
  (count (({ early ? null, late ? early }: { inherit early late; }) { early = (x: x) (x: x); }))
  (count (({ first ? null, second ? first }: { inherit first second; }) { first = (x: x) (x: x); }))
  (count (({ first ? (x: x) (x: x), second ? first }: { inherit first second; }) { }))
  (count (({ early ? (x: x) (x: x), late ? early }: { inherit early late; }) { }))
  (count (let early = (x: x) (x: x); late = early; in { inherit early late; }))
  (count (rec { early = (x: x) (x: x); late = early; }))
  (count (rec { first = (x: x) (x: x); second = first; }))
  later earlier
]
