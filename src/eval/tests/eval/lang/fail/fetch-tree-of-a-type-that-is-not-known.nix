builtins.fetchTree { type = "nothing"; }
