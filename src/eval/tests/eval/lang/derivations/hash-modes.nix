let
  base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; };
  floating = base // { __contentAddressed = true; };
  impure = base // { __impure = true; };
  sha1 = "a9993e364706816aba3e25717850c26c9cd0d89d";
  sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
in map derivationStrict [
  floating (floating // { outputHashMode = "text"; }) (floating // { outputHashMode = "flat"; }) (floating // { outputHashMode = "nar"; outputHashAlgo = "md5"; }) (floating // { outputHashAlgo = "nonsense"; }) (floating // { outputHashAlgo = ""; })
  (floating // { outputHashMode = "git"; outputHashAlgo = "sha1"; }) (floating // { outputHashMode = "git"; outputHashAlgo = "sha256"; }) (floating // { outputHashMode = "text"; outputs = [ "out" "dev" ]; }) (floating // { outputHashMode = "nar"; outputHashAlgo = "blake3"; })
  (floating // { __structuredAttrs = true; outputHashMode = "git"; outputHashAlgo = "sha1"; }) (floating // { outputs = [ "dev" "out" "lib" ]; x = builtins.placeholder "lib"; })
  impure (impure // { outputHashMode = "text"; }) (impure // { outputHashMode = "git"; outputHashAlgo = "sha1"; }) (impure // { x = derivation (floating // { name = "dep"; }); }) (floating // { x = derivation (impure // { name = "dep"; }); })
  (base // { outputHashMode = "git"; outputHashAlgo = "sha1"; outputHash = sha1; }) (base // { outputHashMode = "git"; outputHashAlgo = "sha256"; outputHash = sha256; }) (base // { outputHashMode = "text"; outputHashAlgo = "sha256"; outputHash = sha256; })
  (base // { outputHashAlgo = "blake3"; outputHash = "${sha256}"; }) (base // { name = "n.drv"; outputHashMode = "text"; outputHashAlgo = "sha256"; outputHash = sha256; })
  (impure // { outputHashAlgo = "sha256"; outputHash = sha256; }) (floating // { outputHashAlgo = "sha256"; outputHash = sha256; x = derivation (impure // { name = "dep"; }); })
  (base // { x = derivation (base // { name = "source"; outputHashAlgo = "sha256"; outputHash = sha256; x = derivation (impure // { name = "dep"; }); }); })
]
