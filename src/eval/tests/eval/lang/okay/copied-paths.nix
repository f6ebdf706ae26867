with builtins; let s = x: x; in [
  "${./data}" "${./data/text}" (toString [ "${./data/text}" ]) (path { path = ./data; name = "renamed"; }) (path { path = ./data; filter = p: t: baseNameOf p != "text"; }) (filterSource (p: t: t == "directory" || baseNameOf p == "text") ./data)
  (path { path = ./data/text; recursive = false; }) (path { path = ./data/text; sha256 = hashFile "sha256" ./data/text; recursive = false; name = "fixed"; }) (getContext "${./data/text}") (toJSON ./data/text)
  (path { path = ./data; name = "only-dirs"; filter = p: t: t == "directory"; }) (builtins.storeDir)
]
