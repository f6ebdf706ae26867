{ hello = 1; }
