{
  description = "bento keeps a fleet of NixOS machines up to date";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs = { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      eachSystem = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      package = pkgs: pkgs.callPackage ./lib/package.nix { };
      bentoLib = import ./lib { bento = self; inherit nixpkgs systems; };
    in
    {
      packages = eachSystem (pkgs: rec {
        default = bento;
        bento = package pkgs;
      });

      apps = lib.mapAttrs
        (system: apps: apps // {
          demo = {
            type = "app";
            program = toString (nixpkgs.legacyPackages.${system}.writeShellScript "bento-demo" ''
              set -eu
              work=$(mktemp -d)
              trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
              cp -r ${self}/. "$work"
              chmod -R u+w "$work"
              BENTO=${self.packages.${system}.default}/bin/bento make -C "$work" demo
            '');
            meta.description = "A fleet on this machine, from the first deployment to a broken host (on Debian)";
          };
        })
        (bentoLib.mkApps { inherit self; });

      nixosModules = import ./lib/modules.nix { package = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system}.default; };

      lib = { inherit (bentoLib) mkApps mkChecks; };

      # `bento` is another program in nixpkgs: this one does not take its place.
      overlays.default = final: _: { bento-fleet = package final; };

      templates.default = {
        path = ./examples/template;
        description = "A fleet in one flake: a hub and the hosts that it serves";
      };
      templates.servers = {
        path = ./templates/servers;
        description = "Servers that are installed over SSH: npins, disko and nixos-anywhere";
      };

      checks = eachSystem (pkgs:
        { package = self.packages.${pkgs.stdenv.hostPlatform.system}.default; }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux (import ./checks { inherit self nixpkgs pkgs; }));

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ (package pkgs) ];
          packages = with pkgs; [ cargo-deny clippy git mdbook nix nixpkgs-fmt openssh rust-analyzer rustfmt ];
        };
      });

      formatter = eachSystem (pkgs: pkgs.nixpkgs-fmt);
    };
}
