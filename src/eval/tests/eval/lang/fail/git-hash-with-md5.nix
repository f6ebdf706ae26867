derivationStrict ({ name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; } // { outputHashMode = "git"; outputHashAlgo = "md5"; outputHash = "900150983cd24fb0d6963f7d28e17f72"; })
