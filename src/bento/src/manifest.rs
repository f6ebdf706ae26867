//! The manifest of a release: what the hub wants one host to run, and the files that say so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::{HostKind, HostName};
use crate::package::{PackageFile, place};
use crate::secrets::{self, Secret};
use crate::store_path::StorePath;

/// The version of the manifest's schema that this program writes and understands.
pub const SCHEMA: u32 = 1;
/// The name of the manifest in a host's directory.
pub const FILE: &str = "manifest.json";
/// The name of the link to the current manifest's signature, for people: see [`signature_file`].
pub const SIGNATURE_LINK: &str = "manifest.json.sig";
/// No manifest is larger, in bytes: 100,000 files fit.
pub const LIMIT: u64 = 32 << 20;

/// How the host gets its system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseMode {
    /// The host builds it from the release's files.
    #[default]
    Source,
    /// The host fetches it, built, from a binary cache, and evaluates nothing.
    Closure,
}

/// What the host does besides running the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Reboot when the kernel, its modules or the initrd changed (a file `REBOOT` in the host's directory).
    pub reboot: bool,
    /// Update the flake's inputs by itself (a file `SELF_UPDATE` in the host's directory).
    pub self_update: bool,
}

/// What is published to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this schema: 1.
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
    /// URLs of binary caches that the host uses besides its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub substituters: Vec<String>,
    /// The keys that these caches sign with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_public_keys: Vec<String>,
    /// What the host does besides.
    pub policy: Policy,
    /// What the host decrypts before it activates the system, sorted by path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// The files, sorted by path; none in closure mode.
    pub files: Vec<PackageFile>,
}

/// The newest release that a host has ever accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its serial; 0 if there was none.
    pub serial: u64,
    /// When it was published, if that is known.
    pub created: Option<Timestamp>,
}

/// What a manifest says besides the files: enough to tell where a host stands, and quick to read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Summary {
    /// As in [`Manifest::serial`].
    pub serial: u64,
    /// As in [`Manifest::created`].
    pub created: Timestamp,
    /// As in [`Manifest::expires`].
    pub expires: Option<Timestamp>,
    /// As in [`Manifest::mode`].
    pub mode: ReleaseMode,
    /// As in [`Manifest::kind`].
    pub kind: HostKind,
    /// As in [`Manifest::toplevel`].
    pub toplevel: StorePath,
    /// As in [`Manifest::policy`].
    pub policy: Policy,
}

impl Summary {
    /// Reads a manifest, but for its files.
    pub fn parse(text: &[u8]) -> Result<Self> {
        check_schema(text)?;
        serde_json::from_slice(text).context("the manifest is not one")
    }
}

/// Refuses a manifest of another schema than the one that this program knows, whatever else is in there.
fn check_schema(text: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let Schema { schema } = serde_json::from_slice(text).context("the manifest is not one")?;
    if schema != SCHEMA {
        bail!("the manifest has schema {schema}, but this bento knows only schema {SCHEMA}: update bento");
    }
    Ok(())
}

impl Manifest {
    /// Reads a manifest and checks all that can be checked without knowing the host.
    ///
    /// An unknown schema is told as such, whatever else is in there.
    pub fn parse(text: &[u8]) -> Result<Self> {
        check_schema(text)?;
        let manifest: Self = serde_json::from_slice(text).context("the manifest is not one")?;
        if manifest.serial == 0 {
            bail!("the manifest has serial 0, but serials begin with 1");
        }
        manifest.check_files()?;
        secrets::check(&manifest.secrets).context("the manifest")?;
        for hash in manifest.secrets.iter().map(|secret| &secret.blake3) {
            check_hash(hash)?;
        }
        Ok(manifest)
    }

    /// The serial that a text claims to be the manifest of: where its signature has to be looked for.
    ///
    /// Nothing else of a manifest may be looked at before its signature was verified.
    pub fn claimed_serial(text: &[u8]) -> Result<u64> {
        #[derive(Deserialize)]
        struct Claim {
            serial: u64,
        }
        let Claim { serial } = serde_json::from_slice(text).context("the manifest is not one")?;
        Ok(serial)
    }

    /// Refuses paths that lead out of the tree or can't be files at the same time.
    fn check_files(&self) -> Result<()> {
        let paths: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        if paths.len() != self.files.len() {
            bail!("the manifest lists a file twice");
        }
        for file in &self.files {
            place(Path::new(""), &file.path).context("the manifest")?;
            check_hash(&file.blake3).with_context(|| format!("the file {:?}", file.path))?;
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

    /// Whether this is a newer release than another: one with a higher serial, or, if the serials of a hub were given twice (it was
    /// restored from a backup), one that was published later.
    pub fn is_newer_than(&self, seen: Seen) -> bool {
        self.serial > seen.serial
            || self.serial == seen.serial && seen.created.is_some_and(|created| self.created > created)
    }

    /// Refuses a manifest that is for another host, older than what was `seen`, or expired.
    pub fn check_for(&self, host: &HostName, seen: Seen, now: Timestamp) -> Result<()> {
        if &self.host != host {
            bail!("the release is for the host {}, but this is {host}", self.host);
        }
        let Seen { serial, created } = seen;
        if self.serial < serial {
            bail!(
                "the release has serial {}, but {serial} was already seen: the hub serves an old release",
                self.serial
            );
        }
        if self.serial == serial
            && let Some(created) = created.filter(|created| self.created < *created)
        {
            bail!(
                "release {serial} was published at {}, so it is older than the one that was already seen, of {created}: the hub serves \
                 an old release",
                self.created
            );
        }
        if let Some(expires) = self.expires
            && expires <= now
        {
            bail!("release {} expired at {expires}: publish again", self.serial);
        }
        Ok(())
    }

    /// In what a host would do something else than with `old`, in words; when and under which serial does not count.
    pub fn differences(&self, old: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.toplevel != old.toplevel {
            differences.push(format!("another system than {}", old.toplevel));
        } else if self.drv_path != old.drv_path {
            differences.push(format!("another derivation of the same system than {}", old.drv_path));
        }
        if self.files != old.files {
            let by_path =
                |files: &'_ [PackageFile]| files.iter().map(|file| (file.path.clone(), file.clone())).collect();
            differences.push(changes(&by_path(&self.files), &by_path(&old.files), "files"));
        }
        if self.secrets != old.secrets {
            let by_path = |secrets: &'_ [Secret]| {
                secrets.iter().map(|secret| (format!("the secret {}", secret.path), secret.clone())).collect()
            };
            differences.push(changes(&by_path(&self.secrets), &by_path(&old.secrets), "secrets"));
        }
        let mut word = |what: &str, differs: bool| {
            if differs {
                differences.push(format!("another {what}"));
            }
        };
        word("host name", self.host != old.host);
        word("mode", self.mode != old.mode);
        word("kind of configuration", self.kind != old.kind);
        word("search path", self.search_path != old.search_path);
        let caches = |manifest: &Self| (manifest.substituters.clone(), manifest.trusted_public_keys.clone());
        word("choice of binary caches", caches(self) != caches(old));
        word("policy", self.policy != old.policy);
        differences
    }

    /// The manifest as it is published.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context("cannot write the manifest")?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Refuses what can't be the BLAKE3 hash of a file.
fn check_hash(hash: &str) -> Result<()> {
    if hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(());
    }
    bail!("the manifest has {hash:?} where a BLAKE3 hash should be")
}

/// What became of things, in words: the first few by name, and more of them by that of all.
fn changes<T: PartialEq>(new: &BTreeMap<String, T>, old: &BTreeMap<String, T>, all: &str) -> String {
    const NAMED: usize = 3;
    let paths: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let mut words: Vec<String> = paths
        .into_iter()
        .filter_map(|path| match (new.get(path), old.get(path)) {
            (Some(_), None) => Some(format!("{path} added")),
            (None, Some(_)) => Some(format!("{path} removed")),
            (new, old) => (new != old).then(|| format!("{path} changed")),
        })
        .collect();
    if words.len() > NAMED {
        let rest = words.len() - (NAMED - 1);
        words.truncate(NAMED - 1);
        words.push(format!("{rest} more {all}"));
    }
    words.join(", ")
}

/// Where the files of a release are, relative to the host's directory on the hub.
pub fn release_dir(serial: u64) -> String {
    format!("releases/{serial}")
}

/// Where the signature of a release's manifest is, relative to the host's directory on the hub.
///
/// Beside the release and not beside `manifest.json`: so it is there before the manifest is, and a reader never sees a
/// manifest with another one's signature.
pub fn signature_file(serial: u64) -> String {
    format!("{}.sig", release_dir(serial))
}
