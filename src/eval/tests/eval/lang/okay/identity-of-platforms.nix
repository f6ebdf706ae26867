let
  platform = system: { inherit system; isCompatible = other: other.system == system; parsed = { cpu = system; }; };
  a = platform "x86_64-linux";
  b = platform "x86_64-linux";
in [ (a == a) (a == b) (a // { system = "other"; } == a) (a // { } == a) (a != b) ({ inherit (a) isCompatible; } == { inherit (a) isCompatible; }) ]
