let
  drv = name: args: script:
    derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" script ]; } // args);
  floating = drv "floating" { __contentAddressed = true; } "echo '{ y = 5; }' > $out";
  outputs = drv "outputs" { __contentAddressed = true; inherit floating; outputs = [ "out" "lib" ]; } "echo $floating > $out; echo l > $lib";
  plain = drv "plain" { inherit floating; } "/bin/cat $floating > $out";
  inner = drv "inner" { } "echo '\"inner\"' > $out";
  src = builtins.unsafeDiscardOutputDependency inner.drvPath;
  producing = drv "inner.drv" { __contentAddressed = true; outputHashMode = "text"; inherit src; } "/bin/cat $src > $out";
in
{
  import = import floating;
  importPath = (import "${floating}").y;
  readFile = [ (builtins.readFile outputs) (builtins.readFile outputs.lib) ];
  references = builtins.getContext (builtins.readFile outputs);
  deferred = import plain;
  dynamic = import (builtins.outputOf producing.outPath "out");
  derivation = (import producing.outPath).outPath;
  pathExists = [ (builtins.pathExists "${outputs}") (builtins.pathExists "${outputs}/x") ];
}
