[
  /. /a/b/../c /a/./b (/a + "/b") (/a + "b") (/a + /b) ("/x" + "/y") (builtins.toString /a/b) (builtins.typeOf ./.) (/a/${"b"}/c.nix) (/. + "/..")
  (builtins.baseNameOf /a/b.c) (builtins.dirOf /a/b/c) (dirOf "a/b") (dirOf "a") (dirOf "/a") (baseNameOf "a/b/") (baseNameOf "/") (baseNameOf "a//") (builtins.toPath "/a/../b") (dirOf /.)
]
