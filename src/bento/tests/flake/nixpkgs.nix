# The flake `nixpkgs`, as far as the trees of checks/corpora.tsv have it: `tree` is the one, and what would read files that it
# lacks is replaced.
{
  inputs.tree.url = "path:TREE";
  outputs = { self, tree }:
    let overlays = [ (import ./absent.nix) ];
    in
    {
      lib = tree.lib.extend (_: lib: {
        nixosSystem = arguments: lib.nixosSystem (arguments // {
          modules = arguments.modules ++ [{ nixpkgs = { inherit overlays; }; }];
        });
      });
      legacyPackages = builtins.mapAttrs (system: _: import tree { inherit system overlays; }) tree.legacyPackages;
    };
}
