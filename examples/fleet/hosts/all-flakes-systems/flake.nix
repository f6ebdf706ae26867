{
  description = "The machines in the cellar";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      machine = name: modules: nixpkgs.lib.nixosSystem {
        modules = [ ./configuration.nix { networking.hostName = name; } ] ++ modules;
      };
    in
    {
      nixosConfigurations = {
        nas = machine "nas" [ ./nas.nix ];
        kikimora = machine "kikimora" [ ./kikimora.nix ];
      };
    };
}
