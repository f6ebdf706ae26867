let
  set = { a = 1; b = { c = 2; }; "with space" = 3; };
  x = 5;
in {
  inherit x;
  inherit (set) a b;
  inherit (set.b) c;
  inherit ({ lazy = throw "not asked for"; ok = 1; }) ok;
  nested = { inherit (set) "with space"; };
  empty = { inherit; inherit (throw "not evaluated"); };
}
