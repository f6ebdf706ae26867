let
  drv = name: args: derivation ({ inherit name; system = "x86_64-linux"; builder = "/bin/sh"; } // args);
  inner = builtins.toFile "inner" "inner";
  text = builtins.toFile "text" "refers to ${inner}";
  source = drv "source" { outputHash = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="; };
in
drv "top" {
  inherit text source;
  tree = ./tree;
  file = ./tree/program;
  kept = builtins.filterSource (path: type: type == "directory" || baseNameOf path != "left-out") ./tree;
  filtered = builtins.path { path = ./tree; name = "renamed"; filter = path: _: baseNameOf path != "inner"; };
  flat = builtins.path { path = ./tree/program; recursive = false; name = "flat"; };
  copyOfFlat = builtins.path { path = builtins.path { path = ./tree/program; recursive = false; name = "flat"; }; name = "copy"; };
  flake = (builtins.getFlake (toString ./flake)).text;
  deep = (drv "deep" { inherit source; outputs = [ "out" "dev" ]; }).drvPath;
  other = [ (drv "left" { x = drv "both" { }; }) (drv "right" { __structuredAttrs = true; x = drv "both" { }; }).out ];
}
