//! How far a machine's provisioning is, on disk: each phase is recorded when it is done, so that a run that was interrupted is
//! taken up where it was.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use jiff::Timestamp;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::host::HostName;
use crate::provision::wipe::Wipe;
use crate::push::run::state_dir;
use crate::push::target::Destination;
use crate::store_path::StorePath;

/// The version of the journal's schema.
const SCHEMA: u32 = 1;

/// What is done for a machine, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking at the machine.
    Look,
    /// Evaluating the host, and seeing whether it fits the machine.
    Check,
    /// Having the disks named that will be erased.
    Consent,
    /// Making the host's key, and having the settings know it.
    Key,
    /// Building the system, and the script that lays out the disks.
    Build,
    /// Publishing the release that the host asks for when it is up.
    Publish,
    /// Starting the installer.
    Kexec,
    /// Erasing and laying out the disks.
    Disko,
    /// Installing the system, with the host's key and secrets.
    Install,
    /// Restarting.
    Reboot,
    /// Waiting for the machine to come back as the host.
    Return,
    /// Waiting for what the host says to the hub.
    Report,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Look,
        Self::Check,
        Self::Consent,
        Self::Key,
        Self::Build,
        Self::Publish,
        Self::Kexec,
        Self::Disko,
        Self::Install,
        Self::Reboot,
        Self::Return,
        Self::Report,
    ];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Check => "check",
            Self::Consent => "consent",
            Self::Key => "key",
            Self::Build => "build",
            Self::Publish => "publish",
            Self::Kexec => "kexec",
            Self::Disko => "disko",
            Self::Install => "install",
            Self::Reboot => "reboot",
            Self::Return => "return",
            Self::Report => "report",
        }
    }

    /// What is being done in it, for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Look => "looking at the machine",
            Self::Check => "evaluating the host",
            Self::Consent => "naming the disks",
            Self::Key => "making the host's key",
            Self::Build => "building",
            Self::Publish => "publishing the first release",
            Self::Kexec => "starting the installer",
            Self::Disko => "erasing and laying out the disks",
            Self::Install => "installing",
            Self::Reboot => "restarting",
            Self::Return => "waiting for the machine to come back",
            Self::Report => "waiting for the host's report",
        }
    }

    /// Within how many seconds it has to end, if nothing else is said.
    pub fn limit(self) -> u64 {
        match self {
            Self::Look => 90,
            Self::Check | Self::Consent | Self::Key | Self::Publish => 600,
            Self::Build | Self::Install => 3600,
            Self::Kexec | Self::Disko | Self::Return => 900,
            Self::Reboot => 300,
            Self::Report => 1800,
        }
    }
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    schema: u32,
    /// What the machine becomes.
    pub host: HostName,
    /// The machine, as it was before.
    pub destination: Destination,
    /// When it began.
    pub started: Timestamp,
    /// What is done, in the order in which it was.
    pub done: Vec<Done>,
    /// The system.
    pub toplevel: Option<StorePath>,
    /// The script that lays out the disks.
    pub disko_script: Option<StorePath>,
    /// The disks that were named to be erased.
    pub wipes: Vec<Wipe>,
    /// The release that the host asks for, if it has one.
    pub serial: Option<u64>,
    /// The installer, as it is reached.
    pub installer: Option<Destination>,
    /// The last boot of what was there before the host.
    pub boot: Option<String>,
}

/// A phase that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Which.
    pub phase: Phase,
    /// When it was.
    pub time: Timestamp,
}

/// A journal that no other process writes meanwhile, and the directory of the files that belong to it.
#[derive(Debug)]
pub struct Held {
    /// It.
    pub journal: Journal,
    /// The directory, which only this user can read.
    pub dir: PathBuf,
    lock: Flock<File>,
}

impl Held {
    /// The one of a host: that of an interrupted run, or a new one. The second value says whether there was one.
    ///
    /// With `anew`, what an earlier run did is forgotten, but not the key that it made.
    pub fn open(host: &HostName, destination: &Destination, anew: bool) -> Result<(Self, bool)> {
        let dir = state_dir()?.join("provision").join(host.as_str());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = files::try_lock(&dir.join("lock"))?;
        let lock = lock.with_context(|| format!("{host} is being provisioned by another process"))?;
        files::clear_temporaries(&dir)?;
        let before = if anew { None } else { read(&dir)? };
        if let Some(before) = before.as_ref().filter(|before| before.destination != *destination) {
            bail!(
                "{host} was being provisioned at {} when that was interrupted: go on there, or say --start-over",
                before.destination
            );
        }
        let resumed = before.is_some();
        let journal = before.unwrap_or_else(|| Journal {
            schema: SCHEMA,
            host: host.clone(),
            destination: destination.clone(),
            started: Timestamp::now(),
            done: Vec::new(),
            toplevel: None,
            disko_script: None,
            wipes: Vec::new(),
            serial: None,
            installer: None,
            boot: None,
        });
        let held = Self { journal, dir, lock };
        held.save()?;
        Ok((held, resumed))
    }

    /// Whether a phase is done.
    pub fn is_done(&self, phase: Phase) -> bool {
        self.time_of(phase).is_some()
    }

    /// Records that a phase is done.
    pub fn did(&mut self, phase: Phase) -> Result<()> {
        self.journal.done.retain(|done| done.phase != phase);
        self.journal.done.push(Done { phase, time: Timestamp::now() });
        self.save()
    }

    /// Records that phases have to be done again.
    pub fn undo(&mut self, phases: &[Phase]) -> Result<()> {
        self.journal.done.retain(|done| !phases.contains(&done.phase));
        self.save()
    }

    /// When a phase was done, if it was.
    pub fn time_of(&self, phase: Phase) -> Option<Timestamp> {
        self.journal.done.iter().find(|done| done.phase == phase).map(|done| done.time)
    }

    /// Writes it.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.journal).context("cannot write the journal")?;
        files::write_atomic(&file(&self.dir), &text, 0o600, None)
    }

    /// An empty input for a program that keeps the journal from other processes for as long as it, or anything that it started,
    /// runs: also if this process is killed meanwhile.
    pub fn leash(&self) -> Result<Stdio> {
        Ok(self.lock.try_clone().context("cannot hand the journal's lock on")?.into())
    }

    /// Forgets the run, and the private key with it: the host has it now.
    pub fn forget(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("journal.json")
}

/// The journal in a directory, if there is one.
fn read(dir: &Path) -> Result<Option<Journal>> {
    let file = file(dir);
    let text = match fs::read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let journal: Journal = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no journal that this bento knows: --start-over forgets it", file.display()))?;
    if journal.schema != SCHEMA {
        bail!(
            "{} has schema {}, but this bento knows only {SCHEMA}: --start-over forgets it",
            file.display(),
            journal.schema
        );
    }
    Ok(Some(journal))
}
