# The sources that sources.json pins. That file is npins': `npins update` brings it up to date, `npins add` adds to it. (`npins upgrade`
# puts a file of its own in the place of this one, which gives the same.) A source can be imported, and be a part of a path:
# `sources.nixpkgs + "/nixos"`.
let
  inherit (builtins.fromJSON (builtins.readFile ./sources.json)) pins;
in
builtins.mapAttrs (_: pin: pin // { outPath = builtins.fetchTarball { inherit (pin) url; sha256 = pin.hash; }; }) pins
