{
  description = "Servers that bento provisions and keeps up to date";

  # The sources of everything are pinned by npins, for flakes and for everything else alike: `bento update` brings them up to date.
  outputs = { self }:
    let
      sources = import ./npins;
    in
    {
      # every directory in hosts/ but common is a machine
      nixosConfigurations = import ./hosts { inherit sources; };

      devShells.x86_64-linux.default = import ./shell.nix { inherit sources; system = "x86_64-linux"; };
    };
}
