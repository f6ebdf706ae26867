//! Fetching a release: into a fresh directory, every file verified, nothing in place before all of it is.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::{self, TEMPORARY};
use crate::hub::numbers;
use crate::manifest::{Manifest, release_dir};
use crate::package::{PackageFile, place};
use crate::secrets::secrets_dir;
use crate::source::{TREE_NAME, stamp_all};
use crate::ssh::Connection;

/// How many fetched releases are kept.
const KEPT: usize = 2;
/// The directory of a release's secrets beside its tree.
pub const SECRETS: &str = "secrets";

/// A release as it was fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The files.
    pub tree: PathBuf,
    /// The secrets, encrypted.
    pub secrets: PathBuf,
}

/// Fetches the files and the secrets of a release below `releases`.
pub fn fetch(hub: &Connection, manifest: &Manifest, releases: &Path) -> Result<Fetched> {
    fs::create_dir_all(releases).with_context(|| format!("cannot create {}", releases.display()))?;
    files::clear_temporaries(releases)?;
    let temporary = releases.join(format!("{TEMPORARY}{}", manifest.serial));
    let tree = temporary.join(TREE_NAME);
    fs::create_dir_all(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
    fs::set_permissions(&temporary, Permissions::from_mode(0o700))
        .with_context(|| format!("cannot set the mode of {}", temporary.display()))?;
    for PackageFile { path, mode, size, blake3 } in &manifest.files {
        let content = read(hub, &format!("{}/{path}", release_dir(manifest.serial)), *size, blake3)?;
        write(&place(&tree, path)?, &content, mode.bits())?;
    }
    for secret in &manifest.secrets {
        let source = format!("{}/{}", secrets_dir(manifest.serial), secret.path);
        let content = read(hub, &source, secret.size, &secret.blake3)?;
        write(&place(&temporary.join(SECRETS), &secret.path)?, &content, 0o600)?;
    }
    stamp_all(&tree)?;
    let place = releases.join(manifest.serial.to_string());
    files::remove(&place)?;
    fs::rename(&temporary, &place).with_context(|| format!("cannot create {}", place.display()))?;
    files::sync_dir(releases)?;
    prune(releases, manifest.serial)?;
    Ok(Fetched { tree: place.join(TREE_NAME), secrets: place.join(SECRETS) })
}

/// Reads a file from the hub that the manifest says this of.
fn read(hub: &Connection, source: &str, size: u64, blake3: &str) -> Result<Vec<u8>> {
    let content = hub.read(source, size)?;
    if content.len() as u64 != size {
        bail!("{source} is damaged: it has {} bytes instead of {size}", content.len());
    }
    if blake3::hash(&content).to_hex().as_str() != blake3 {
        bail!("{source} is damaged: its BLAKE3 hash is not the manifest's");
    }
    Ok(content)
}

/// Writes a new file, durably, and makes the directories that it is in.
fn write(target: &Path, content: &[u8], mode: u32) -> Result<()> {
    if let Some(dir) = target.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let context = || format!("cannot write {}", target.display());
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(mode).open(target).with_context(context)?;
    copy.write_all(content).with_context(context)?;
    copy.set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    copy.sync_all().with_context(context)
}

/// Removes all but the newest of the fetched releases.
fn prune(releases: &Path, current: u64) -> Result<()> {
    let serials = numbers(releases)?;
    for serial in &serials[..serials.len().saturating_sub(KEPT)] {
        if *serial != current {
            files::remove(&releases.join(serial.to_string()))?;
        }
    }
    Ok(())
}
