# Derivations of every kind. What C++ Nix makes of them is in derivations/.
let
  make = args: derivation ({ system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo $name > $out" ]; } // args);
  hash = builtins.hashString "sha256" "content";
in rec {
  plain = make { name = "plain"; };
  flat = make { name = "flat"; outputHash = hash; outputHashAlgo = "sha256"; };
  recursive = make { name = "recursive"; outputHash = hash; outputHashAlgo = "sha256"; outputHashMode = "recursive"; };
  recursive-sha1 = make { name = "recursive-sha1"; outputHash = builtins.hashString "sha1" "content"; outputHashAlgo = "sha1"; outputHashMode = "nar"; };
  flat-md5 = make { name = "flat-md5"; outputHash = builtins.hashString "md5" "content"; outputHashAlgo = "md5"; };
  flat-sha512 = make { name = "flat-sha512"; outputHash = builtins.hashString "sha512" "content"; outputHashAlgo = "sha512"; };
  git = make { name = "git"; outputHash = builtins.hashString "sha1" "content"; outputHashAlgo = "sha1"; outputHashMode = "git"; };
  text = make { name = "text"; outputHash = hash; outputHashAlgo = "sha256"; outputHashMode = "text"; };
  # The same content fetched in another way: what uses it has the same outputs.
  flat-again = make { name = "flat"; url = "mirror"; outputHash = hash; outputHashAlgo = "sha256"; };
  uses-flat = make { name = "uses-flat"; src = flat; };
  uses-flat-again = make { name = "uses-flat"; src = flat-again; };
  # Two inputs that count as one.
  uses-both = make { name = "uses-both"; srcs = [ flat flat-again ]; };
  multiple = make { name = "multiple"; outputs = [ "out" "dev" "bin" "a" ]; src = flat; file = builtins.toFile "file" "text of ${builtins.toFile "inner" "x"}"; };
  no-out = make { name = "no-out"; outputs = [ "lib" "doc" ]; };
  uses-multiple = make { name = "uses-multiple"; x = [ multiple.dev multiple.a no-out.doc ]; y = no-out; };
  escapes = make { name = "escapes+-._?="; text = "a\"b\\c\nd\re\tf\${g}"; args = [ "" "\\" "\n" ]; utf8 = "äöü €"; };
  structured = make { name = "structured"; __structuredAttrs = true; outputs = [ "out" "dev" ]; list = [ 1 2.5 true null "x\n" ]; set.b.c = plain; };
  pass-as-file = make { name = "pass-as-file"; passAsFile = [ "text" ]; text = "long"; };
  drv-deep = make { name = "drv-deep"; x = uses-multiple.drvPath; };
  floating = make { name = "floating"; __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputs = [ "out" "dev" ]; src = plain; };
  floating-sha1 = make { name = "floating-sha1"; __contentAddressed = true; outputHashMode = "flat"; outputHashAlgo = "sha1"; };
  uses-floating = make { name = "uses-floating"; x = floating.dev; y = floating-sha1; };
  uses-uses-floating = make { name = "uses-uses-floating"; x = uses-floating; };
  fixed-uses-floating = make { name = "fixed-uses-floating"; x = floating; outputHash = hash; outputHashAlgo = "sha256"; };
  uses-fixed-uses-floating = make { name = "uses-fixed-uses-floating"; x = fixed-uses-floating; };
  impure = make { name = "impure"; __impure = true; outputs = [ "out" "x" ]; };
  uses-impure = make { name = "uses-impure"; x = impure; };
  producer = make { name = "made.drv"; __contentAddressed = true; outputHashMode = "text"; outputHashAlgo = "sha256"; };
  dynamic = make { name = "dynamic"; x = builtins.outputOf producer.outPath "dev"; y = builtins.outputOf (builtins.outputOf producer.outPath "out") "lib"; z = plain; };
}
