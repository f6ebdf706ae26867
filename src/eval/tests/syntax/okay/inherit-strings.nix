a: { inherit "a"; inherit (a) "c d" ${"e"}; }
