let
  big = builtins.listToAttrs (builtins.genList (n: { name = "k${toString n}"; value = n; }) 40);
  layered = builtins.foldl' (acc: n: acc // { "k${toString n}" = -n; "new${toString n}" = n; }) big (builtins.genList (n: n * 3) 13);
in [
  ({ a = 1; b = 1; } // { b = 2; c = 2; }) ({ a = 1; } // { } // { a.b = 2; }) ({ a.b = 1; } // { a.c = 2; })
  layered (builtins.attrNames layered) (layered == layered // { }) (builtins.length (builtins.attrValues (removeAttrs layered [ "k1" "new0" "none" ])))
]
