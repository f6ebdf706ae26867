let
  set = {
    a = 1;
      b = 2;
    inherit (other) c;
    ${"dyn" + "amic"} = 3;
    nested.d = 4;
  };
  other = { c = 5; };
  pos = name: set: let p = builtins.unsafeGetAttrPos name set; in if p == null then null else { inherit (p) line column; file = baseNameOf p.file; };
  cur = let p = __curPos; in { inherit (p) line column; file = baseNameOf p.file; };
in [
  (pos "a" set) (pos "b" set) (pos "c" set) (pos "dynamic" set) (pos "nested" set) (pos "d" set.nested) (pos "none" set)
  (pos "a" (set // { z = 1; })) (pos "a" (removeAttrs set [ "b" ])) (pos "b" (builtins.intersectAttrs { b = 1; } set))
  (pos "a" (builtins.mapAttrs (n: v: v) set)) (pos "x" (builtins.listToAttrs [ { name = "x"; value = 1; } ]))
  (pos "a" (builtins.functionArgs ({ a, b ? 1 }: a))) (pos "b" (builtins.functionArgs ({ a, b ? 1 }: a))) cur
  (pos "p" { p = 1; }) (pos "a" (builtins.zipAttrsWith (n: v: v) [ set ])) (pos "x" (builtins.groupBy (x: x) [ "x" ]))
]
