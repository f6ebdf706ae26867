//! A fleet in a folder, beside a `nixpkgs` that the test writes itself: for what needs neither a hub nor Nix.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The folder: `fleet/` with the hosts, and `nixpkgs/`. It is gone with this.
pub struct FleetDir {
    dir: TempDir,
}

impl FleetDir {
    /// A fleet without hosts; `nixos` is what `<nixpkgs/nixos>` is to be.
    pub fn new(nixos: &str) -> Self {
        let fleet = Self { dir: tempfile::tempdir().unwrap() };
        fleet.write("fleet/config.sh", "CHROOT_DIR=/nonexistent\n");
        fleet.write("nixpkgs/nixos/default.nix", nixos);
        fleet
    }

    /// A path in the folder.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file in the folder, and the directories that it is in.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes a host's configuration.
    pub fn host(&self, name: &str, configuration: &str) {
        self.write(&format!("fleet/hosts/{name}/configuration.nix"), configuration);
    }

    /// This program with these arguments, in the fleet.
    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("NIX_PATH").env_remove("NAME").env("BENTO_DIR", self.path("fleet"));
        command
    }
}
