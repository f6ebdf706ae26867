with builtins; [
  (parseFlakeRef "github:NixOS/nixpkgs/23.05?dir=lib") (flakeRefToString { type = "github"; owner = "o"; repo = "r"; ref = "main"; dir = "d"; }) (parseFlakeRef "git+https://example.org/x?rev=0123456789012345678901234567890123456789") (parseFlakeRef "path:/a/b")
]
