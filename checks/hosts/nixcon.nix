# The three hosts of a conference's video fleet of 2020 (nixpkgs 20.09 inside), exactly as published: host = its toplevel.
#   bento eval -I nixpkgs=CORPORA/nixcon-2020/nixpkgs checks/hosts/nixcon.nix --arg fleet CORPORA/nixcon-2020 -A dash01 --drv-path
{ fleet }:
let host = name: (import (fleet + "/nixpkgs/nixos") { configuration = fleet + "/sys/${name}.nix"; }).system;
in { dash01 = host "dash01"; relay01 = host "relay01"; jitsi = host "jitsi"; }
