p: q: r: { a = { inherit (p) x; }; a = { inherit (q) y; inherit (r) z; }; b.c = 1; b = { inherit (p) u v; }; }
