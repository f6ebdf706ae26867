with builtins; [
  (map (a: hashString a "abc") [ "md5" "sha1" "sha256" "sha512" ]) (hashString "sha256" "")
  (convertHash { hash = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="; toHashFormat = "base16"; })
  (convertHash { hash = hashString "sha256" "abc"; hashAlgo = "sha256"; toHashFormat = "nix32"; }) (convertHash { hash = hashString "sha1" "abc"; hashAlgo = "sha1"; toHashFormat = "sri"; })
  (convertHash { hash = "900150983cd24fb0d6963f7d28e17f72"; hashAlgo = "md5"; toHashFormat = "base64"; }) (placeholder "out") (placeholder "dev")
]
