//! C++ Nix, to compare with: the programs in the folder that the environment variable `BENTO_NIX` names.

use std::path::PathBuf;
use std::process::Command;

/// C++ Nix, with a cache directory of its own.
pub(crate) struct Oracle {
    programs: PathBuf,
    home: tempfile::TempDir,
}

impl Oracle {
    /// The oracle, or `None` (which is said) where there is none.
    pub(crate) fn find() -> Option<Oracle> {
        match std::env::var_os("BENTO_NIX") {
            Some(programs) => {
                Some(Oracle { programs: PathBuf::from(programs), home: tempfile::tempdir().expect("a directory") })
            }
            None => {
                println!("skipped: BENTO_NIX does not name a folder with nix and nix-instantiate");
                None
            }
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(["--extra-experimental-features", "nix-command flakes"])
            .env("HOME", self.home.path())
            // Nix leaves files there
            .env("TMPDIR", self.home.path())
            .env("XDG_CACHE_HOME", self.home.path().join("cache"));
        command
    }

    /// Locks a flake that has no lock file, into `file`.
    #[allow(dead_code, reason = "not every test that includes this module locks")]
    pub(crate) fn lock(&self, url: &str, file: &std::path::Path) {
        let output = self.command("nix").args(["flake", "lock", url, "--output-lock-file"]).arg(file).output();
        let output = output.expect("nix runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Evaluates `expression`, impurely and strictly: the value as JSON, or what Nix complained of.
    pub(crate) fn eval(&self, expression: &str) -> Result<serde_json::Value, String> {
        let output = self
            .command("nix-instantiate")
            .args(["--eval", "--strict", "--json", "-E", expression])
            .output()
            .expect("nix-instantiate runs");
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).expect("Nix prints JSON"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

/// `text` as a string of the Nix language.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}
