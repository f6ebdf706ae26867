{
  description = "A fleet that bento keeps up to date";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    bento.url = "github:bento-nix/bento";
    bento.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs = { self, nixpkgs, bento }:
    let
      host = name: module: nixpkgs.lib.nixosSystem {
        modules = [ bento.nixosModules.agent ./common.nix { networking.hostName = name; } module ];
      };
    in
    {
      nixosConfigurations = {
        hub = host "hub" { imports = [ bento.nixosModules.hub ./hosts/hub.nix ]; };
        web = host "web" ./hosts/web.nix;
      };

      apps = bento.lib.mkApps { inherit self; };
      checks = bento.lib.mkChecks { inherit self; };
    };
}
