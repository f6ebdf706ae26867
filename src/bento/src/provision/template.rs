//! The template `servers`: a fleet of machines to provision, laid out by `bento init --template servers`, and by
//! `nix flake init -t` from the same files.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::fleet::init::{Made, write_new};
use crate::nix::nix_string;

/// The files below `templates/servers`.
macro_rules! files {
    ($($path:literal),* $(,)?) => { [$(($path, include_str!(concat!("../../../../templates/servers/", $path)))),*] };
}

/// Each file's path, and what is in it.
pub const FILES: [(&str, &str); 24] = files![
    "README.md",
    "bento.toml",
    "flake.nix",
    "hosts/common/default.nix",
    "hosts/common/ssh.nix",
    "hosts/common/users.nix",
    "hosts/default.nix",
    "hosts/dev-142/default.nix",
    "hosts/dev-365/default.nix",
    "hosts/dev-605/default.nix",
    "hosts/dev-901/default.nix",
    "modules/disk-layouts/default.nix",
    "modules/disk-layouts/standard-layout.nix",
    "modules/services/agent.nix",
    "modules/services/database.nix",
    "modules/services/default.nix",
    "modules/services/monitoring.nix",
    "modules/services/web.nix",
    "npins/default.nix",
    "npins/sources.json",
    "scripts/deploy.sh",
    "scripts/test-config.sh",
    "scripts/test-disko.sh",
    "shell.nix",
];

/// The list of those who may log in, as the template has it.
const NO_KEYS: &str = "keys = [ ];";

/// Lays the template out in `root`, with this public key of who may log in; what is there is never changed.
pub fn lay_out(root: &Path, key: Option<&str>) -> Result<Made> {
    let fill = |(path, text): (&'static str, &str)| match key {
        Some(key) if path == "hosts/common/users.nix" => {
            (path, text.replace(NO_KEYS, &format!("keys = [ {} ];", nix_string(key))))
        }
        _ => (path, text.to_owned()),
    };
    let made = write_new(root, FILES.into_iter().map(fill))?;
    for script in made.created.iter().filter(|path| path.starts_with("scripts")) {
        let file = root.join(script);
        fs::set_permissions(&file, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", file.display()))?;
    }
    Ok(made)
}
