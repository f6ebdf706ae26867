# What provisioning and updating need, from the pinned sources.
{ sources ? import ./npins
, system ? builtins.currentSystem
, pkgs ? import sources.nixpkgs { inherit system; }
}:
pkgs.mkShell {
  packages = [
    pkgs.npins
    pkgs.openssh
    (pkgs.nixos-anywhere.overrideAttrs { src = sources.nixos-anywhere; })
  ];
}
