# The sources that sources.json pins. That file is npins': `npins update` brings it up to date, `npins add` adds to it. (`npins init`
# puts a file of its own in the place of this one, which gives the same, and fetches containers and submodules as well.) A source can be
# imported, and be a part of a path: `sources.nixpkgs + "/nixos"`.
let
  inherit (builtins.fromJSON (builtins.readFile ./sources.json)) pins;

  fetch = name: pin:
    if pin.submodules or false || pin.type == "Container" then
      throw "npins/default.nix does not fetch what ${name} is: `npins init` puts a file there that does"
    # a git repository that is on no forge
    else if pin.url or null == null then
      builtins.fetchGit {
        inherit (pin.repository) url;
        rev = pin.revision;
        narHash = pin.hash;
        name = "${baseNameOf pin.repository.url}-${builtins.substring 0 7 pin.revision}";
      }
    else
      (if pin.unpack or (pin.type != "PyPi") then builtins.fetchTarball else builtins.fetchurl) { inherit (pin) url; sha256 = pin.hash; };
in
builtins.mapAttrs (name: pin: pin // { outPath = "${fetch name pin}"; }) pins
