with { x = 1; }; y
