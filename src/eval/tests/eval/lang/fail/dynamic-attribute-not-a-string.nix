{ ${toString (x: x)} = 1; }
