let __findFile = path: name: "found ${name}"; __nixPath = [ ]; in [ <nixpkgs> <a/b.nix> ]
