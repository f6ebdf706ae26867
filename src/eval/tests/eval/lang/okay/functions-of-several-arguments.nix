# some of the arguments now, the others later, several times over
let
  three = a: b: c: [ a b c ];
  one = three 1;
  two = one 2;
  shadowed = a: a: b: a: [ a b ];
  captured = a: b: let c = a + b; in d: e: { inherit a b c d e; };
  kept = captured 1 2;
  defaults = a: { b ? a, ... }@rest: c: [ a b c (builtins.attrNames rest) ];
  functor = { __functor = self: a: b: self.factor * (a - b); };
  recursive = n: acc: if n == 0 then acc else recursive (n - 1) (acc + n);
in
{
  partly = [ (one 3 4) (one 5 6) (two 7) (two 8) (map two [ 9 10 ]) ];
  shadowed = [ (shadowed 1 2 3 4) (map (shadowed 1 2 3) [ 5 6 ]) ];
  captured = [ (kept 3 4) (kept 5 6) (map (kept 7) [ 8 9 ]) (captured 10 20 30 40) ];
  defaults = [ (defaults 1 { } 2) (defaults 1 { b = 2; d = 3; } 4) (map (defaults 5 { }) [ 6 7 ]) ];
  functor = functor // { factor = 10; } == { };
  called = (functor // { factor = 10; }) 5 3;
  recursive = recursive 100 0;
  folded = builtins.foldl' (a: b: a ++ [ b ]) [ 0 ] [ 1 2 3 ];
  mapped = builtins.mapAttrs (name: value: rest: [ name value rest ]) { x = 1; y = 2; };
  applied = builtins.mapAttrs (name: f: f 3) (builtins.mapAttrs (name: value: rest: [ name value rest ]) { x = 1; y = 2; });
  sorted = builtins.sort (a: b: a > b) [ 3 1 2 ];
  args = map builtins.functionArgs [ three one two (a: { b, c ? 1 }: b) ((a: { b, c ? 1 }: b) 1) ];
  xml = map builtins.toXML [ three one two ((a: { b, c ? 1, ... }@d: b) 1) ];
  equal = let f = a: b: a; g = f 1; in [ ([ f ] == [ f ]) ([ g ] == [ g ]) ([ (f 1) ] == [ (f 1) ]) (f == f) (g == g) ];
  laziness = [ ((a: b: a) 1 (throw "unused")) (((a: b: c: b) (throw "unused")) 2 (throw "unused")) ((a: b: let inherit a; in a) 3 4) ];
  withs = (a: b: with { c = 3; a = 9; }; [ a b c ]) 1 2;
  many = (a: b: c: d: e: f: g: h: i: [ a b c d e f g h i ]) 1 2 3 4 5 6 7 8 9;
  more = (a: b: (c: d: e: [ a b c d e ])) 1 2 3 4 5;
  tooMany = ((a: b: { c, ... }: d: [ a b c d ]) 1 2 { c = 3; } 4);
}
