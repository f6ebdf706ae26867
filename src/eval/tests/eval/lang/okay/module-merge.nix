let
  inherit (builtins) foldl' isAttrs hasAttr attrNames mapAttrs zipAttrsWith length head tail all;
  recursiveUpdate = a: b: let f = path: zipAttrsWith (n: values: let here = path ++ [ n ]; in if length values == 1 || !(isAttrs (head values) && isAttrs (head (tail values))) then head values else f here values); in f [ ] [ b a ];
in recursiveUpdate { a.b = 1; a.c.d = 2; l = [ 1 ]; } { a.b = 10; a.c.e = 3; l = [ 2 ]; n.m = 1; }
