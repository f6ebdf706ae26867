let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  hash = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
  hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
in map derivationStrict [
  (base // { outputHash = hash; }) (base // { outputHash = hash; outputHashMode = "flat"; }) (base // { outputHash = hash; outputHashMode = "recursive"; }) (base // { outputHash = hash; outputHashMode = "nar"; })
  (base // { outputHash = hex; outputHashAlgo = "sha256"; }) (base // { outputHash = "900150983cd24fb0d6963f7d28e17f72"; outputHashAlgo = "md5"; }) (base // { outputHash = "a9993e364706816aba3e25717850c26c9cd0d89d"; outputHashAlgo = "sha1"; outputHashMode = "recursive"; })
  (base // { outputHash = ""; outputHashAlgo = "sha256"; }) (base // { outputHash = builtins.hashString "sha512" "x"; outputHashAlgo = "sha512"; }) (base // { outputHash = hash; outputHashAlgo = null; })
]
