{ a = rec { x = 1; }; a = { y = 2; }; b = { x = 1; }; b = rec { y = 2; }; }
