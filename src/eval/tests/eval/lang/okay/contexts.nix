with builtins;
let
  d = derivation { name = "d"; builder = "b"; system = "s"; outputs = [ "out" "dev" ]; };
  e = derivation { name = "e"; builder = "b"; system = "s"; };
  f = toFile "f" "text";
  c = x: mapAttrs (n: v: v) (getContext x);
in [
  (c "plain") (c "${d}") (c "${d}${d.dev}${e}${f}") (c d.drvPath) (c (unsafeDiscardStringContext "${d}")) (c (unsafeDiscardOutputDependency d.drvPath)) (hasContext "${d}") (hasContext "x")
  (c (addDrvOutputDependencies (unsafeDiscardOutputDependency d.drvPath))) (c (substring 0 0 "${d}")) (c (substring 0 1 "${d}x")) (c (replaceStrings [ "x" ] [ "${e}" ] "axb")) (c (replaceStrings [ "y" ] [ "${e}" ] "axb"))
  (c (replaceStrings [ "x" ] [ "y" ] "x${d}")) (c (concatStringsSep "${d}" [ "a" "b" ])) (c (concatStringsSep "${d}" [ "a" ])) (c (toJSON { a = d; })) (c (toXML { a = "${d}"; })) (map c (filter isString (split "/" "${d}/x")))
  (map c (match "(.*)/(.*)" "${d}/x")) (c (baseNameOf "${d}/x")) (c (dirOf "${d}/x")) (c (toString [ d e ])) (c (appendContext "x" { ${unsafeDiscardStringContext d.drvPath} = { outputs = [ "out" ]; allOutputs = true; }; }))
  (c (appendContext "y" { ${unsafeDiscardStringContext f} = { path = true; }; })) (c (d.name)) (c (unsafeDiscardStringContext d.drvPath)) (c ("${d}" + "x")) (stringLength "${d}") (c (toString (d.outPath == e.outPath)))
  (c (fromJSON (toJSON "x"))) (attrNames { "${unsafeDiscardStringContext (baseNameOf d)}" = 1; })
]
