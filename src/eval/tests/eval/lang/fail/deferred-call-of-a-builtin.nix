{ a = builtins.mapAttrs builtins.add { a = 1; }; }.a.a
