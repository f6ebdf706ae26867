with builtins; [
  (attrNames { b = 1; a = 2; B = 3; "é" = 4; "a-" = 5; aa = 6; }) (attrValues { b = 1; a = 2; B = 3; }) (getAttr "a" { a = 1; }) (hasAttr "a" { b = 1; })
  (removeAttrs { a = 1; b = 2; c = 3; } [ "a" "c" "d" ]) (listToAttrs [ { name = "a"; value = 1; } { name = "b"; value = 2; } { name = "a"; value = 3; } ])
  (intersectAttrs { a = 1; b = 2; } { b = 3; c = 4; a = 5; }) (intersectAttrs { } { a = 1; }) (catAttrs "a" [ { a = 1; } { b = 2; } { a = 3; } ])
  (mapAttrs (n: v: n + toString v) { x = 1; y = 2; }) (zipAttrsWith (n: vs: { inherit n vs; }) [ { a = 1; b = 2; } { a = 3; } { c = 4; } ]) (zipAttrsWith (n: v: v) [ ])
  (functionArgs ({ a, b ? 1, c }: a)) (functionArgs (x: x)) (functionArgs builtins.add) (isAttrs { }) (isAttrs [ ]) (removeAttrs { } [ ])
  (listToAttrs [ ]) (removeAttrs { a = 1; } [ ]) (functionArgs ({ ... }: 1))
]
