# The package. nixpkgs' `callPackage` fills in the arguments.
{ lib, rustPlatform, pkg-config, libssh2, openssl, zlib }:
let
  manifest = (lib.importTOML ../Cargo.toml).workspace.package;
in
rustPlatform.buildRustPackage {
  pname = "bento";
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    # the modules and the template are part of what `bento init` writes
    fileset = lib.fileset.unions [ ../Cargo.lock ../Cargo.toml ../modules ../src ../templates ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ pkg-config ];
  buildInputs = [ libssh2 openssl zlib ];
  env = {
    LIBSSH2_SYS_USE_PKG_CONFIG = "1";
    OPENSSL_NO_VENDOR = "1";
  };

  # The tests of whole commands want a store that they may write to, and an sshd: `make test` runs those.
  cargoTestFlags = [ "--workspace" "--lib" "--bins" ];

  meta = {
    description = "Keeps a fleet of NixOS machines up to date";
    homepage = manifest.repository;
    license = with lib.licenses; [ mit asl20 ];
    mainProgram = "bento";
    platforms = lib.platforms.unix;
  };
}
