# With bento pinned as well (`npins add github bento-nix bento --branch main`), machines ask a hub for their system, and report to it.
# Without, they are pushed to.
{ lib, pkgs, sources, ... }:
{
  imports = lib.optional (sources ? bento) (sources.bento + "/modules/agent.nix");

  config = lib.optionalAttrs (sources ? bento) {
    services.bento.agent = {
      enable = true;
      package = lib.mkDefault (pkgs.callPackage (sources.bento + "/lib/package.nix") { });
      # the hub, as the machines reach it, and its /etc/ssh/ssh_host_ed25519_key.pub
      hub.address = lib.mkDefault "hub.example.org";
      hub.hostKeys = [ ];
      # whose releases are taken up: the public key of release.signing-key in bento.toml
      signers = [ ];
    };
  };
}
