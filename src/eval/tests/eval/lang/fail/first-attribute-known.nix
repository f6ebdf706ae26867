# Which attribute is evaluated first: names that Nix itself uses have an order of their own.
builtins.deepSeq { b = throw "b"; map = throw "map"; name = throw "name"; meta = throw "meta"; version = throw "version"; } null
