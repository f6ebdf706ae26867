{
  description = "A fleet that bento keeps up to date";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }: {
    # every name here is a host
    nixosConfigurations.example = nixpkgs.lib.nixosSystem {
      modules = [ ./hosts/example/configuration.nix ];
    };
  };
}
