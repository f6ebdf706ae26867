a: b: { inherit a; inherit b; inherit (a) x y; inherit (b) z or; inherit (a); inherit; }
