let
  drv = name: script: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" script ]; };
  code = drv "code.nix" "echo building code; echo '{ x = 41 + 1; }' > $out";
  leaf = builtins.toFile "leaf" "leaf";
  dep = drv "dep" "echo x > $out";
  dir = derivation {
    name = "dir";
    system = "x86_64-linux";
    builder = "/bin/sh";
    inherit leaf;
    args = [ "-c" "/bin/mkdir $out; echo a > $out/a; echo ${leaf} ${dep} > $out/refs" ];
  };
in
{
  import = import code;
  importPath = (import "${code}").x;
  scoped = builtins.scopedImport { x = 1; } code;
  readFile = builtins.readFile "${dir}/a";
  references = builtins.getContext (builtins.readFile "${dir}/refs");
  readDir = builtins.readDir dir;
  pathExists = [ (builtins.pathExists "${dir}/a") (builtins.pathExists "${dir}/b") (builtins.pathExists dir) ];
  # Nix 2.8 does not have it
  fileType = (builtins.readFileType or (_: "regular")) "${dir}/refs";
  hashFile = builtins.hashFile "sha256" "${dir}/a";
  path = builtins.path { path = "${dir}/refs"; name = "copy"; };
  pathOfTree = builtins.path { path = dir; name = "copy"; };
  copied = (derivation { name = "z"; system = "x86_64-linux"; builder = "/bin/sh"; src = builtins.path { path = "${dir}"; name = "copy"; }; }).drvPath;
  filterSource = builtins.filterSource (path: _: baseNameOf path != "a") dir;
  findFile = builtins.readFile (builtins.findFile [ { prefix = "n"; path = dir; } ] "n/a");
}
