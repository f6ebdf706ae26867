let
  boom = throw "evaluated too early";
  fix = f: let x = f x; in x;
  extends = overlay: f: final: let prev = f final; in prev // overlay final prev;
in [
  ({ a = 1; b = boom; }.a) (builtins.length [ boom boom ]) (builtins.attrNames { a = boom; })
  ({ a = boom; } // { a = 1; }) (builtins.elemAt [ boom 2 ] 1) (builtins.head (map (x: x) [ 1 boom ]))
  ((builtins.mapAttrs (n: v: boom) { a = 1; b = 2; }) ? a) ((x: 1) boom) (({ a ? boom }: 1) { })
  (fix (extends (final: prev: { a = prev.a + final.c; }) (final: { a = 1; b = final.a; c = 10; })))
  (let x = { a = 1; } // (if x.a == 1 then { b = 2; } else { }); in (builtins.tryEval 1).value)
  (builtins.length (builtins.attrValues (builtins.mapAttrs (n: v: boom) { x = 1; })))
  (fix (self: { a = self.b; } // { b = 1; inherit (self) c; } // { c = 3; }))
  (builtins.length (builtins.concatLists [ [ boom ] [ boom ] ])) (builtins.isAttrs (builtins.listToAttrs [ { name = "a"; value = boom; } ]))
  (builtins.length (builtins.genList (x: boom) 3)) ((builtins.intersectAttrs { a = boom; } { a = 1; }).a) (if true then 1 else boom)
]
