builtins.deepSeq { zzz = throw "zzz"; version = throw "version"; success = throw "success"; } 1
