//! Beginning a fleet: the layout of its directory, from nothing or around what is there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::nix::nix_string;

/// What a new fleet is like.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// One flake for all hosts, instead of a directory with a `configuration.nix` for each.
    pub flake: bool,
    /// The public key of whoever signs releases, and its file.
    pub signer: Option<(PathBuf, String)>,
    /// The public host key of the hub.
    pub hub_key: Option<String>,
}

/// What became of the files of the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The files and links that were made, relative to the fleet's directory.
    pub created: Vec<PathBuf>,
    /// Those that were there already and are as they were.
    pub kept: Vec<PathBuf>,
}

/// Lays out a fleet in `root`, which may have anything in it: what is there is never changed.
///
/// Where there are hosts already, no example is added to them.
pub fn init(root: &Path, layout: &Layout) -> Result<Made> {
    let list = |key: Option<&str>| key.map_or_else(String::new, nix_string);
    let bento = include_str!("../../templates/bento.nix")
        .replace("@HOST_KEYS@", &list(layout.hub_key.as_deref()))
        .replace("@SIGNERS@", &list(layout.signer.as_ref().map(|(_, key)| key.as_str())))
        .replace("[  ]", "[ ]");
    let signing_key = match &layout.signer {
        Some((file, _)) => format!("SIGNING_KEY='{}'", file.display()),
        None => "#SIGNING_KEY=~/.ssh/id_ed25519.pub".to_owned(),
    };
    let mut files = vec![
        ("utils/agent.nix", include_str!("../../../../modules/agent.nix").to_owned()),
        ("utils/hub.nix", include_str!("../../../../modules/hub.nix").to_owned()),
        ("utils/bento.nix", bento),
        ("utils/bootstrap.sh", include_str!("../../../../modules/bootstrap.sh").to_owned()),
        ("utils/fleet.nix", include_str!("../../templates/fleet.nix").to_owned()),
    ];
    if !root.join(super::config::TOML).exists() {
        files.push(("config.sh", include_str!("../../templates/config.sh").replace("@SIGNING_KEY@", &signing_key)));
    }
    let has_hosts = root.join("flake.nix").exists()
        || fs::read_dir(root.join("hosts")).is_ok_and(|mut entries| entries.next().is_some());
    if !has_hosts {
        let configuration = include_str!("../../templates/configuration.nix");
        if layout.flake {
            // with the flake at the top, a host's files can lead up to what is shared
            let configuration = configuration.replace("./utils/", "../../utils/");
            files.push(("hosts/example/configuration.nix", configuration));
            files.push(("flake.nix", include_str!("../../templates/flake.nix").to_owned()));
        } else {
            files.push(("hosts/example/configuration.nix", configuration.to_owned()));
        }
    }
    let mut made = write_new(root, files)?;
    if !has_hosts && !layout.flake {
        let link = Path::new("hosts/example/utils");
        let context = || format!("cannot make the link {}", root.join(link).display());
        std::os::unix::fs::symlink("../../utils", root.join(link)).with_context(context)?;
        made.created.push(link.into());
    }
    Ok(made)
}

/// Writes these files of a layout in `root`, but for those that are there already.
pub(crate) fn write_new(root: &Path, files: impl IntoIterator<Item = (&'static str, String)>) -> Result<Made> {
    let mut made = Made::default();
    for (path, text) in files {
        let file = root.join(path);
        let context = || format!("cannot write {}", file.display());
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        match OpenOptions::new().write(true).create_new(true).open(&file) {
            Ok(mut new) => {
                new.write_all(text.as_bytes()).with_context(context)?;
                made.created.push(path.into());
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => made.kept.push(path.into()),
            Err(error) => return Err(error).with_context(context),
        }
    }
    Ok(made)
}
