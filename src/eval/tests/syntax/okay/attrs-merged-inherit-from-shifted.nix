# two names from one source move it twice as far: C++ Nix looks them up in the source after it
p: q: r: { a = { inherit (p) x; }; a = { inherit (q) y z; inherit (r) u; }; }
