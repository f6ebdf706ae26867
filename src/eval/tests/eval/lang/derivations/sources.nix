let base = { name = "n"; system = "x86_64-linux"; builder = "/bin/sh"; }; in map derivationStrict [
  (base // { src = ./tree; }) (base // { src = "${./tree}/inner"; }) (base // { src = ./tree/text; builder = ./tree/script.sh; }) (base // { src = builtins.path { path = ./tree; name = "source"; }; })
  (base // { src = builtins.filterSource (p: t: t == "directory" || baseNameOf p != "text") ./tree; }) (base // { src = builtins.path { path = ./tree; filter = p: t: t != "symlink"; }; }) (base // { src = builtins.path { path = ./tree/text; recursive = false; name = "flat"; }; })
  (base // { srcs = [ ./tree/text ./tree/inner ]; }) (base // { __structuredAttrs = true; src = ./tree; paths.deep = [ ./tree/text ]; })
]
