# `<nix/fetchurl.nix>`: a file that the builder inside of Nix downloads. What it takes and what derivation it makes is
# given by C++ Nix, since nixpkgs bootstraps itself with it.
let
  # the first hash that was given, in Nix's order of preference
  pick = hashes: builtins.head (builtins.filter (given: given.value != "") hashes ++ [ { algo = "sha256"; value = ""; } ]);
in
{ url
, system ? ""
, hash ? ""
, md5 ? ""
, sha1 ? ""
, sha256 ? ""
, sha512 ? ""
, outputHash ? (pick [ { value = hash; } { value = sha512; } { value = sha1; } { value = md5; } { value = sha256; } ]).value
, outputHashAlgo ?
    (pick [
      { algo = ""; value = hash; }
      { algo = "sha512"; value = sha512; }
      { algo = "sha1"; value = sha1; }
      { algo = "md5"; value = md5; }
    ]).algo
, executable ? false
, unpack ? false
, name ? baseNameOf (toString url)
, impure ? false
}:
derivation ({
  builder = "builtin:fetchurl";
  outputHashMode = if unpack || executable then "recursive" else "flat";
  inherit name url executable unpack;
  system = "builtin";
  preferLocalBuild = true;
  impureEnvVars = [ "http_proxy" "https_proxy" "ftp_proxy" "all_proxy" "no_proxy" ];
  urls = [ url ];
} // (if impure then { __impure = true; } else { inherit outputHashAlgo outputHash; }))
