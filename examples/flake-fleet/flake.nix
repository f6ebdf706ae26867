{
  description = "A fleet in one flake";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      hosts = lib.mapAttrs' (file: _: lib.nameValuePair (lib.removeSuffix ".nix" file) (./hosts + "/${file}"))
        (builtins.readDir ./hosts);
    in
    {
      nixosConfigurations = lib.mapAttrs
        (name: file: lib.nixosSystem {
          specialArgs = { inherit hosts; };
          modules = [ ./common.nix { networking.hostName = name; } file ];
        })
        hosts;
    };
}
