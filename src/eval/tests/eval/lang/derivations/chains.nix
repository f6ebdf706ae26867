let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  hash = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
  source = url: derivation (base // { name = "source"; inherit url; outputHash = hash; });
  use = x: derivation (base // { name = "use"; inherit x; });
  chain = builtins.foldl' (acc: n: derivation (base // { name = "link-${toString n}"; prev = acc; outputs = [ "out" "lib" ]; })) "start" (builtins.genList (n: n) 20);
in [ (source "a").drvPath (source "b").drvPath ((source "a").outPath == (source "b").outPath) (use (source "a")).drvPath (use (source "b")).drvPath ((use (source "a")).outPath == (use (source "b")).outPath) chain.drvPath chain.lib.outPath (use [ (source "a") (source "b") ]).outPath (use (use (source "a"))).outPath ((use (use (source "a"))).outPath == (use (use (source "b"))).outPath) ]
