# Every derivation that bento's flake, a user's flake and bento without flakes come to: a part for each system, one for
# what has none.
{
  inputs = {
    nixpkgs.url = "path:NIXPKGS";
    bento = { url = "BENTO"; inputs.nixpkgs.follows = "nixpkgs"; };
    user = { url = "path:USER"; inputs = { nixpkgs.follows = "nixpkgs"; bento.follows = "bento"; }; };
  };
  outputs = { self, nixpkgs, bento, user }:
    let
      inherit (nixpkgs) lib;
      path = derivation: derivation.drvPath;
      kinds = {
        packages = path;
        checks = path;
        devShells = path;
        apps = app: builtins.attrNames (builtins.getContext app.program);
      };
      ofSystem = system: flake:
        lib.mapAttrs (kind: lib.mapAttrs (_: kinds.${kind})) (lib.mapAttrs (kind: _: flake.${kind}.${system} or { }) kinds);
    in
    {
      drvPaths = lib.mapAttrs
        (system: formatter: {
          bento = ofSystem system bento;
          user = ofSystem system user;
          formatter = path formatter;
          without-flakes = path (import bento.outPath { pkgs = nixpkgs.legacyPackages.${system}; }).bento;
        })
        bento.formatter // {
        hosts = lib.mapAttrs (_: host: path host.config.system.build.toplevel) user.nixosConfigurations;
      };
    };
}
