//! The manifest of a release: what the hub wants one host to run, and the files that say so.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::{HostKind, HostName};
use crate::package::{PackageFile, place};
use crate::store_path::StorePath;

/// The version of the manifest's schema that this program writes and understands.
pub const SCHEMA: u32 = 1;
/// The name of the manifest in a host's directory.
pub const FILE: &str = "manifest.json";
/// No manifest is larger, in bytes: 100,000 files fit.
pub const LIMIT: u64 = 32 << 20;

/// How the host gets its system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseMode {
    /// The host builds it from the release's files.
    Source,
}

/// What the host does besides running the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Reboot when the kernel, its modules or the initrd changed (a file `REBOOT` in the host's directory).
    pub reboot: bool,
    /// Update the flake's inputs by itself (a file `SELF_UPDATE` in the host's directory).
    pub self_update: bool,
}

/// What is published to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Number of the release, from 1; only grows.
    pub serial: u64,
    /// When the release was published.
    pub created: Timestamp,
    /// When a host stops accepting it, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Whom it is for.
    pub host: HostName,
    /// How the host gets its system.
    pub mode: ReleaseMode,
    /// How the system is written down.
    pub kind: HostKind,
    /// The system that the hub worked out. A flake's host must arrive at exactly this one.
    pub toplevel: StorePath,
    /// The derivation of that system.
    pub drv_path: StorePath,
    /// For a non-flake: entries of the search path that the host uses before its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search_path: Vec<String>,
    /// What the host does besides.
    pub policy: Policy,
    /// The files, sorted by path.
    pub files: Vec<PackageFile>,
}

impl Manifest {
    /// Reads a manifest and checks all that can be checked without knowing the host.
    ///
    /// An unknown schema is told as such, whatever else is in there.
    pub fn parse(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let Schema { schema } = serde_json::from_slice(text).context("the manifest is not one")?;
        if schema != SCHEMA {
            bail!("the manifest has schema {schema}, but this bento knows only schema {SCHEMA}: update bento");
        }
        let manifest: Self = serde_json::from_slice(text).context("the manifest is not one")?;
        if manifest.serial == 0 {
            bail!("the manifest has serial 0, but serials begin with 1");
        }
        manifest.check_files()?;
        Ok(manifest)
    }

    /// Refuses paths that lead out of the tree or can't be files at the same time.
    fn check_files(&self) -> Result<()> {
        let paths: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if paths.len() != self.files.len() {
            bail!("the manifest lists a file twice");
        }
        for file in &self.files {
            place(Path::new(""), &file.path).context("the manifest")?;
            if file.blake3.len() != 64 || !file.blake3.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            {
                bail!("the manifest has no BLAKE3 hash for {:?}", file.path);
            }
            let mut dir = file.path.as_str();
            while let Some((above, _)) = dir.rsplit_once('/') {
                if paths.contains(above) {
                    bail!("the manifest lists {above:?} both as a file and as a directory");
                }
                dir = above;
            }
        }
        Ok(())
    }

    /// Refuses a manifest that is for another host, older than `seen` (the highest serial that was ever accepted), or
    /// expired.
    pub fn check_for(&self, host: &HostName, seen: u64, now: Timestamp) -> Result<()> {
        if &self.host != host {
            bail!("the release is for the host {}, but this is {host}", self.host);
        }
        if self.serial < seen {
            bail!("the release has serial {}, but {seen} was already seen: the hub serves an old release", self.serial);
        }
        if let Some(expires) = self.expires
            && expires <= now
        {
            bail!("release {} expired at {expires}: publish again (the time here is {now})", self.serial);
        }
        Ok(())
    }

    /// Whether both would have a host do exactly the same; when and under which serial does not count.
    pub fn same_content(&self, other: &Self) -> bool {
        let normal =
            |manifest: &Self| Self { serial: 0, created: Timestamp::UNIX_EPOCH, expires: None, ..manifest.clone() };
        normal(self) == normal(other)
    }

    /// The manifest as it is published.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context("cannot write the manifest")?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Where the files of a release are, relative to the host's directory on the hub.
pub fn release_dir(serial: u64) -> String {
    format!("releases/{serial}")
}
