//! The hub's directory: what lies where, for one host and for all.
//!
//! ```text
//! CHROOT_DIR/
//!   .bento.lock            keeps two deploys apart
//!   .fleet.json            the hosts that the last whole deploy found
//!   .holds.json            the hosts that get no new release for now
//!   .roots/HOST/N          keeps the system of release N from being collected by Nix
//!   HOST/                  root-owned; the SFTP chroot of that host
//!     manifest.json        names the current release: what makes a release current is this file's rename
//!     releases/N/          the files of release N; the last few are kept for readers that are at it
//!     releases/N.secrets/  its secrets, encrypted to the host
//!     releases/N.sig       the signature of its manifest
//!     releases/N.json      the manifest itself, for when it is no longer the current one
//!     config -> releases/N
//!     manifest.json.sig -> releases/N.sig
//!     last_change_date     touched on change; what agents of the original bento look at
//!     logs/                the only place that the host may write
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::host::HostName;
use crate::manifest::{self, Manifest, Summary};

/// The file that says which hosts are held.
const HOLDS_FILE: &str = ".holds.json";
/// The file that holds the list of hosts.
const FLEET_FILE: &str = ".fleet.json";

/// A hub's directory (`CHROOT_DIR`).
#[derive(Clone, Debug)]
pub struct Hub {
    root: PathBuf,
}

/// What lies in a hub's directory.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The names of all directories that could be a host's, sorted.
    pub hosts: Vec<HostName>,
    /// What is neither that nor the hub's own, in words.
    pub strangers: Vec<String>,
}

/// The hosts that the fleet had when it was last deployed as a whole.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FleetRecord {
    schema: u32,
    hosts: Vec<HostName>,
}

/// Why a host gets no new release for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Since when.
    pub since: Timestamp,
    /// What whoever held it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Hub {
    /// The hub in this directory, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the directory if it isn't there, and keeps other deploys away for as long as the result lives.
    pub fn lock(&self) -> Result<Flock<File>> {
        fs::create_dir_all(&self.root).with_context(|| {
            format!("cannot create {} (the hub's directory in the fleet's settings)", self.root.display())
        })?;
        let file = self.root.join(".bento.lock");
        let lock = files::try_lock(&file)?;
        lock.with_context(|| {
            format!("another deploy is at work: it holds {}; try again when it is done", file.display())
        })
    }

    /// One host's directory.
    pub fn host(&self, name: &HostName) -> HostDir {
        HostDir { path: self.root.join(name.as_str()) }
    }

    /// Where the links are that keep a host's systems from being collected by Nix, one for each release.
    pub fn roots(&self, name: &HostName) -> PathBuf {
        self.root.join(".roots").join(name.as_str())
    }

    /// The names of all directories that could be a host's, sorted.
    pub fn hosts(&self) -> Result<Vec<HostName>> {
        Ok(self.listing()?.hosts)
    }

    /// What lies in the hub's directory. What begins with a dot is the hub's own.
    pub fn listing(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        let context = || format!("cannot read {} (the hub's directory in the fleet's settings)", self.root.display());
        for entry in fs::read_dir(&self.root).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name();
            let is_dir = entry.file_type().with_context(context)?.is_dir();
            match name.to_str().and_then(|name| HostName::new(name).ok()).filter(|_| is_dir) {
                Some(host) => listing.hosts.push(host),
                None if name.as_encoded_bytes().starts_with(b".") => {}
                None => listing.strangers.push(format!(
                    "{:?} in the hub's directory is no host's: {}",
                    name.display().to_string(),
                    if is_dir { "no host can have that name" } else { "it is no directory" }
                )),
            }
        }
        listing.hosts.sort();
        listing.strangers.sort();
        Ok(listing)
    }

    /// The hosts that the last whole deploy found, if there was one.
    pub fn fleet(&self) -> Result<Option<Vec<HostName>>> {
        let file = self.root.join(FLEET_FILE);
        match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => {
                let record: FleetRecord = serde_json::from_slice(&text)
                    .with_context(|| format!("{} is damaged: remove it and deploy again", file.display()))?;
                Ok(Some(record.hosts))
            }
        }
    }

    /// The hosts that are held.
    pub fn holds(&self) -> Result<BTreeMap<HostName, Hold>> {
        let file = self.root.join(HOLDS_FILE);
        match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged: remove it and hold again what shall be held", file.display())),
        }
    }

    /// Holds and releases hosts. The caller holds the hub's lock.
    pub fn record_holds(&self, holds: &BTreeMap<HostName, Hold>) -> Result<()> {
        files::write_atomic(&self.root.join(HOLDS_FILE), &serde_json::to_vec_pretty(holds)?, 0o644, None)
    }

    /// The hub's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Remembers which hosts the fleet has; writes only if that changed.
    pub fn record_fleet(&self, mut hosts: Vec<HostName>) -> Result<()> {
        hosts.sort();
        hosts.dedup();
        if self.fleet().ok().flatten().as_ref() != Some(&hosts) {
            let text = serde_json::to_vec_pretty(&FleetRecord { schema: 1, hosts })?;
            files::write_atomic(&self.root.join(FLEET_FILE), &text, 0o644, None)?;
        }
        Ok(())
    }
}

/// One host's directory on the hub.
#[derive(Clone, Debug)]
pub struct HostDir {
    path: PathBuf,
}

impl HostDir {
    /// The directory itself: the host's chroot.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest's file.
    pub fn manifest_file(&self) -> PathBuf {
        self.path.join(manifest::FILE)
    }

    /// The file of the signature of a release's manifest.
    pub fn signature_file(&self, serial: u64) -> PathBuf {
        self.path.join(manifest::signature_file(serial))
    }

    /// The file that keeps a release's manifest when it is no longer the current one.
    pub fn kept_manifest_file(&self, serial: u64) -> PathBuf {
        self.releases().join(format!("{serial}.json"))
    }

    /// The manifest of a release that is still kept, current or not.
    pub fn kept_manifest(&self, serial: u64) -> Result<Option<Manifest>> {
        let file = self.kept_manifest_file(serial);
        match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(self.manifest()?.filter(|current| current.serial == serial))
            }
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => Manifest::parse(&text).map(Some).with_context(|| file.display().to_string()),
        }
    }

    /// The serials of the releases whose files are still there, in order.
    pub fn serials(&self) -> Result<Vec<u64>> {
        numbers(&self.releases())
    }

    /// Where the host puts its logs and reports.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Where the releases are.
    pub fn releases(&self) -> PathBuf {
        self.path.join("releases")
    }

    /// The link to the current release's files.
    pub fn config(&self) -> PathBuf {
        self.path.join("config")
    }

    /// The file whose time stamp says when the host's release last changed.
    pub fn last_change_date(&self) -> PathBuf {
        self.path.join("last_change_date")
    }

    /// The current release's manifest, if anything was published.
    pub fn manifest(&self) -> Result<Option<Manifest>> {
        let file = self.manifest_file();
        match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => Manifest::parse(&text).map(Some).with_context(|| file.display().to_string()),
        }
    }

    /// The summary of the current release's manifest, if anything was published.
    pub fn summary(&self) -> Result<Option<Summary>> {
        let file = self.manifest_file();
        match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => Summary::parse(&text).map(Some).with_context(|| file.display().to_string()),
        }
    }

    /// When the release last changed, as the original bento tells it.
    pub fn changed(&self) -> Option<Timestamp> {
        modified(&self.last_change_date())
    }
}

/// The names in a directory that are numbers, in order; none if there is no directory.
pub fn numbers(dir: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// When a file was last written.
pub fn modified(path: &Path) -> Option<Timestamp> {
    let time = fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    Timestamp::try_from(time).ok()
}
