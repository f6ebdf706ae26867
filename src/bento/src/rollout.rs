//! A rollout: a change of the fleet goes to a few hosts first, and to the next ones only if those are well.
//!
//! Everything is worked out and put aside when it begins, so that all waves get the same, whatever happens to the fleet's directory
//! meanwhile. A release that was put aside gets its serial, and becomes the one that a host sees, when its wave comes; until then agents
//! poll as ever and find nothing new. How far it is lies on the hub, and is written before each step, so that it can be taken up again.
//!
//! This module is the plan and its bookkeeping; what is done in a wave is the command's business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::evaluation::Evaluation;
use crate::files;
use crate::fleet::Selection;
use crate::fleet::config::Config;
use crate::host::{Host, HostKind, HostName};
use crate::hub::Hub;
use crate::manifest::Manifest;
use crate::package::place;
use crate::push::lockout::Access;
use crate::push::target::Target;
use crate::secrets::draft::Draft;
use crate::secrets::{Secret, secrets_dir};
use crate::source::SourceTree;
use crate::store_path::StorePath;

/// The version of the record's schema that this program writes and understands.
const SCHEMA: u32 = 1;

/// The table `[rollout]`. All times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// The hosts of the first wave: names, globs, `@TAG`, a number of hosts, or a share of them (`5%`).
    pub canaries: Vec<String>,
    /// The waves after that, each written in the same way; who is in none of them comes last.
    pub batches: Vec<String>,
    /// For how long the hosts of a wave have to be well before the next one begins.
    pub soak: u64,
    /// How many hosts may fail before the rollout stops.
    pub max_failures: usize,
    /// Within how long a host that pulls has to report.
    pub timeout: u64,
    /// Who gets back what was before, when it stops.
    pub undo: Undo,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self { canaries: Vec::new(), batches: Vec::new(), soak: 300, max_failures: 0, timeout: 3600, undo: Undo::All }
    }
}

/// Who gets back what was before, when a rollout stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// All hosts that the new release was offered to.
    #[default]
    All,
    /// Those of the wave that was under way.
    Wave,
    /// Nobody: hosts that failed went back by themselves.
    None,
}

/// Hosts that get a change at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// What it is called.
    pub name: String,
    /// Its hosts, by name.
    pub hosts: Vec<HostName>,
}

/// What was put aside for a host; its files are beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Staged {
    /// How its system is written down.
    pub kind: HostKind,
    /// The system.
    pub toplevel: StorePath,
    /// Its derivation.
    pub drv_path: StorePath,
    /// Where it is pushed to, if it does not pull.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<Target>,
    /// What its configuration says about who can log in, if it is pushed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// The release that it had before, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Manifest>,
    /// How far it is.
    pub progress: Progress,
}

impl Staged {
    /// What the host shall run.
    pub fn evaluation(&self) -> Evaluation {
        Evaluation { drv_path: self.drv_path.clone(), toplevel: self.toplevel.clone() }
    }
}

/// How far a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "kebab-case")]
pub enum Progress {
    /// Its wave has not come yet.
    Waiting,
    /// A host that pulls: the release is the one that it sees.
    Offered {
        /// Its serial.
        serial: u64,
        /// Since when.
        since: Timestamp,
    },
    /// A host that is pushed to: that is under way.
    Pushing {
        /// What it ran before, if it came that far.
        previous: Option<StorePath>,
    },
    /// It runs what it should.
    Done {
        /// The release, if there is one.
        serial: Option<u64>,
        /// What it ran before, if it was pushed to.
        previous: Option<StorePath>,
    },
    /// It does not.
    Failed {
        /// The release, if there is one.
        serial: Option<u64>,
        /// What it ran before, if it was pushed to and is not back there by itself.
        previous: Option<StorePath>,
        /// Why.
        reason: String,
    },
    /// It could not be reached, and that was to be accepted.
    Skipped {
        /// Why.
        reason: String,
    },
    /// It got back what was before.
    Undone,
}

impl Progress {
    /// The release that stands for the change, if the host has one.
    pub fn serial(&self) -> Option<u64> {
        match self {
            Self::Offered { serial, .. } => Some(*serial),
            Self::Done { serial, .. } | Self::Failed { serial, .. } => *serial,
            Self::Waiting | Self::Pushing { .. } | Self::Skipped { .. } | Self::Undone => None,
        }
    }
}

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "position", rename_all = "kebab-case")]
pub enum Position {
    /// This wave is under way.
    Wave {
        /// Its number, from 0.
        number: usize,
    },
    /// The hosts of this wave and of those before it are watched.
    Soaking {
        /// Its number, from 0.
        number: usize,
        /// Until then.
        until: Timestamp,
    },
    /// It stopped, and hosts get back what was before.
    Stopping {
        /// Why.
        reason: String,
        /// The wave that was under way.
        number: usize,
    },
    /// It stopped.
    Stopped {
        /// Why.
        reason: String,
        /// The wave that was under way.
        #[serde(default)]
        number: usize,
        /// The hosts that should have got back what was before, and did not.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left: Vec<HostName>,
    },
    /// All hosts have the change.
    Finished,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// [`SCHEMA`].
    schema: u32,
    /// When it began.
    pub started: Timestamp,
    /// For how long the hosts of a wave have to be well.
    pub soak: u64,
    /// How many hosts may fail.
    pub max_failures: usize,
    /// Within how long a host that pulls has to report.
    pub timeout: u64,
    /// Who gets back what was before, when it stops.
    pub undo: Undo,
    /// Where `<name>` was looked up, as the values of `-I`.
    pub search_path: Vec<String>,
    /// The waves, in their order.
    pub waves: Vec<Wave>,
    /// What was put aside, by host.
    pub hosts: BTreeMap<HostName, Staged>,
    /// How far it is.
    pub position: Position,
}

impl Rollout {
    /// One that is about to begin.
    pub fn new(
        config: &RolloutConfig,
        search_path: &[String],
        waves: Vec<Wave>,
        hosts: BTreeMap<HostName, Staged>,
        now: Timestamp,
    ) -> Self {
        let RolloutConfig { soak, max_failures, timeout, undo, .. } = config;
        Self {
            schema: SCHEMA,
            started: now,
            soak: *soak,
            max_failures: *max_failures,
            timeout: *timeout,
            undo: *undo,
            search_path: search_path.to_vec(),
            waves,
            hosts,
            position: Position::Wave { number: 0 },
        }
    }

    /// Whether there is nothing left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.position, Position::Stopped { .. } | Position::Finished)
    }

    /// What is left to do of one that is over, because it did not work the first time.
    pub fn left(&self) -> &[HostName] {
        match &self.position {
            Position::Stopped { left, .. } => left,
            _ => &[],
        }
    }

    /// The hosts that failed, and why.
    pub fn failures(&self) -> Vec<(&HostName, &str)> {
        self.hosts
            .iter()
            .filter_map(|(name, staged)| match &staged.progress {
                Progress::Failed { reason, .. } => Some((name, reason.as_str())),
                _ => None,
            })
            .collect()
    }

    /// Why it has to stop, if more hosts failed than may.
    pub fn objection(&self) -> Option<String> {
        let failures = self.failures();
        (failures.len() > self.max_failures).then(|| {
            let list: Vec<String> = failures.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
            format!("{} failed, and {} may: {}", failures.len(), self.max_failures, list.join("; "))
        })
    }

    /// The hosts of a wave.
    pub fn wave(&self, number: usize) -> Vec<HostName> {
        self.waves.get(number).map(|wave| wave.hosts.clone()).unwrap_or_default()
    }

    /// The position after a wave whose hosts are all done or failed.
    pub fn after_wave(&self, number: usize, now: Timestamp) -> Result<Position> {
        if let Some(reason) = self.objection() {
            return Ok(Position::Stopping { reason, number });
        }
        let soak = i64::try_from(self.soak).context("the soak time is out of range")?;
        // the last wave too: a rollout that is over is one whose hosts were well for a while
        Ok(Position::Soaking { number, until: now.checked_add(jiff::SignedDuration::from_secs(soak))? })
    }

    /// The position after the hosts of a wave were watched for long enough.
    pub fn after_soak(&self, number: usize) -> Position {
        match self.objection() {
            Some(reason) => Position::Stopping { reason, number },
            None if number + 1 < self.waves.len() => Position::Wave { number: number + 1 },
            None => Position::Finished,
        }
    }

    /// The hosts that get back what was before.
    pub fn to_undo(&self, number: usize) -> Vec<HostName> {
        let touched = |name: &HostName| {
            self.hosts.get(name).is_some_and(|staged| {
                matches!(
                    staged.progress,
                    Progress::Offered { .. }
                        | Progress::Done { .. }
                        | Progress::Failed { .. }
                        | Progress::Pushing { .. }
                )
            })
        };
        let waves = match self.undo {
            Undo::All => &self.waves[..],
            Undo::Wave => self.waves.get(number..=number).unwrap_or_default(),
            Undo::None => &[],
        };
        waves.iter().flat_map(|wave| &wave.hosts).filter(|name| touched(name)).cloned().collect()
    }
}

/// Parts hosts into waves. A host is in the first one that it fits; empty ones are left out.
pub fn waves(hosts: &[HostName], settings: &RolloutConfig, config: &Config) -> Result<Vec<Wave>> {
    let mut left: BTreeSet<HostName> = hosts.iter().cloned().collect();
    let mut waves = Vec::new();
    let mut take = |name: String, words: &[String]| -> Result<()> {
        let mut chosen = BTreeSet::new();
        for word in words {
            let fits = members(word, hosts, &left, config).with_context(|| format!("the batch {word:?}"))?;
            chosen.extend(fits);
        }
        left.retain(|host| !chosen.contains(host));
        if !chosen.is_empty() {
            waves.push(Wave { name, hosts: chosen.into_iter().collect() });
        }
        Ok(())
    };
    take("canaries".to_owned(), &settings.canaries)?;
    for batch in &settings.batches {
        take(batch.clone(), std::slice::from_ref(batch))?;
    }
    if !left.is_empty() {
        waves.push(Wave { name: "the rest".to_owned(), hosts: left.into_iter().collect() });
    }
    Ok(waves)
}

/// The hosts that a batch takes of those that are left.
fn members(word: &str, all: &[HostName], left: &BTreeSet<HostName>, config: &Config) -> Result<Vec<HostName>> {
    let share = word.strip_suffix('%').map(|percent| match percent.parse::<usize>() {
        Ok(percent @ 1..=100) => Ok((all.len() * percent).div_ceil(100)),
        _ => Err(anyhow!("a share is from 1% to 100%")),
    });
    let count = match share {
        Some(share) => Some(share?),
        None => word.parse::<usize>().ok(),
    };
    if let Some(count) = count {
        if count == 0 {
            bail!("a batch has at least one host");
        }
        return Ok(left.iter().take(count).cloned().collect());
    }
    let selection = Selection::new(std::slice::from_ref(&word.to_owned()), None, config)?;
    Ok(left.iter().filter(|host| selection.includes(host)).cloned().collect())
}

/// Where a rollout's record and what was put aside are: on the hub, one rollout at a time.
#[derive(Clone, Debug)]
pub struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    /// That of a hub.
    pub fn new(hub: &Hub) -> Self {
        Self { dir: hub.root().join(".rollout") }
    }

    /// Keeps others away for as long as the result lives.
    pub fn lock(&self) -> Result<Flock<File>> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let file = self.dir.join("lock");
        let lock = files::try_lock(&file)?;
        lock.with_context(|| format!("another rollout is at work: it holds {}", file.display()))
    }

    /// The rollout of which there is a record, if there is one.
    pub fn load(&self) -> Result<Option<Rollout>> {
        let file = self.dir.join("state.json");
        match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
                format!("{} is no record that this bento knows: remove it to begin anew", file.display())
            }),
        }
    }

    /// Records how far a rollout is.
    pub fn save(&self, rollout: &Rollout) -> Result<()> {
        let text = serde_json::to_vec_pretty(rollout).context("cannot write the rollout's record")?;
        files::write_atomic(&self.dir.join("state.json"), &text, 0o600, None)
    }

    /// Puts a host's files aside, under a word for what they are.
    pub fn put(&self, host: &HostName, what: &str, tree: &SourceTree) -> Result<()> {
        files::write_atomic(&self.file(host, what), &tree.pack()?, 0o600, None)
    }

    /// The files that were put aside.
    pub fn take(&self, host: &HostName, what: &str) -> Result<SourceTree> {
        let file = self.file(host, what);
        let archive = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        SourceTree::unpack(&archive, &file)
    }

    /// Puts a host's encrypted secrets aside, beside its files.
    pub fn put_secrets(&self, host: &HostName, what: &str, secrets: &[(Secret, Vec<u8>)]) -> Result<()> {
        let text = postcard::to_stdvec(secrets).context("cannot put secrets aside")?;
        files::write_atomic(&self.secrets(host, what), &text, 0o600, None)
    }

    /// The secrets that were put aside.
    pub fn take_secrets(&self, host: &HostName, what: &str) -> Result<Vec<Draft>> {
        let file = self.secrets(host, what);
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let secrets: Vec<(Secret, Vec<u8>)> =
            postcard::from_bytes(&text).with_context(|| format!("{} is damaged", file.display()))?;
        secrets.into_iter().map(|(secret, sealed)| Draft::of_sealed(&secret, sealed)).collect()
    }

    /// The link that keeps what was built for a host from being collected by Nix.
    pub fn root(&self, host: &HostName) -> PathBuf {
        self.dir.join(format!("{host}.result"))
    }

    /// Removes what was put aside for earlier rollouts.
    pub fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", self.dir.display()))?.path();
            if path.extension().is_some_and(|end| end == "tar" || end == "secrets" || end == "result") {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    fn file(&self, host: &HostName, what: &str) -> PathBuf {
        self.dir.join(format!("{host}.{what}.tar"))
    }

    fn secrets(&self, host: &HostName, what: &str) -> PathBuf {
        self.dir.join(format!("{host}.{what}.secrets"))
    }
}

/// What was before, as something to publish again: its files and what they come to.
pub fn before(hub: &Hub, manifest: &Manifest) -> Result<SourceTree> {
    let release = hub.host(&manifest.host).path().join(crate::manifest::release_dir(manifest.serial));
    let tree = SourceTree::restore(&release, &manifest.files)?;
    if manifest.files.is_empty() {
        // in closure mode there are no files, but what they said is in the policy
        for (wanted, name) in [(manifest.policy.reboot, "REBOOT"), (manifest.policy.self_update, "SELF_UPDATE")] {
            if wanted {
                let file = tree.path().join(name);
                fs::write(&file, b"").with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
    }
    Ok(tree)
}

/// The secrets of what was before, as they were encrypted then.
pub fn secrets_before(hub: &Hub, manifest: &Manifest) -> Result<Vec<(Secret, Vec<u8>)>> {
    let dir = hub.host(&manifest.host).path().join(secrets_dir(manifest.serial));
    let read = |secret: &Secret| {
        let file = place(&dir, &secret.path)?;
        let sealed = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok((secret.clone(), sealed))
    };
    manifest.secrets.iter().map(read).collect()
}

/// The host that a manifest is for.
pub fn host_of(manifest: &Manifest) -> Host {
    Host { name: manifest.host.clone(), kind: manifest.kind }
}
