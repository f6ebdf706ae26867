{
  description = "My laptop";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }: {
    nixosConfigurations.t470 = nixpkgs.lib.nixosSystem {
      modules = [ ./configuration.nix ./default-spec.nix ];
    };
  };
}
