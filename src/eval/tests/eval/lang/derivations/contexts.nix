let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  dep = derivation (base // { name = "dep"; outputs = [ "out" "dev" ]; });
  other = derivation (base // { name = "other"; inherit dep; });
  file = builtins.toFile "file" "text ${builtins.toFile "inner" "x"}";
in map derivationStrict [
  (base // { a = dep; }) (base // { a = dep.dev; }) (base // { a = "${dep} ${dep.dev} ${other}"; }) (base // { a = dep.drvPath; }) (base // { a = builtins.unsafeDiscardOutputDependency dep.drvPath; }) (base // { a = builtins.unsafeDiscardStringContext dep; })
  (base // { a = file; }) (base // { builder = file; args = [ file dep ]; }) (base // { a = [ dep other file dep.dev ]; }) (base // { a = other.drvPath; b = dep.dev; }) (base // { a = builtins.addDrvOutputDependencies (builtins.unsafeDiscardOutputDependency other.drvPath); })
  (base // { a = builtins.toJSON { x = dep; y = file; }; }) (base // { passAsFile = [ "text" ]; text = "${dep}"; }) (base // { a = builtins.substring 0 5 "${other}"; }) (base // { a = builtins.replaceStrings [ "x" ] [ "${other}" ] "y"; b = builtins.head (builtins.match "(.*)" "${dep}"); })
  (base // { ${"exportReferencesGraph"} = [ "g" dep ]; }) (base // { allowedReferences = [ ]; disallowedRequisites = [ dep ]; }) (base // { a = builtins.placeholder "out"; }) (base // { a = { outPath = dep; }; b = { __toString = _: "${other}"; }; })
]
