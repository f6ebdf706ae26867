//! The agent's journal: how far it got, written before each step, so that the next run knows what a crash left.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::machine::Phase;
use crate::agent::self_update::OwnLock;
use crate::files;
use crate::host::HostName;
use crate::manifest::Seen;
use crate::report::Report;
use crate::store_path::StorePath;

/// The version of the state's schema.
const SCHEMA: u32 = 2;
/// The journal's file in the state directory.
const FILE: &str = "state.json";
/// The size of the file that keeps room for the journal and a report on a full disk, in bytes.
const BALLAST: usize = 256 << 10;

/// What the agent knows from run to run.
///
/// Fields that it does not know are no error: a host may go back to an older agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct State {
    schema: u32,
    /// The name that the host had then: another one has serials of its own.
    #[serde(default)]
    pub host: Option<HostName>,
    /// The highest serial that was ever accepted.
    pub serial: u64,
    /// When the release of that serial was published.
    #[serde(default)]
    pub created: Option<Timestamp>,
    /// How many attempts at this serial were reported.
    pub attempts: u64,
    /// When the attempt that is under way began.
    pub started: Option<Timestamp>,
    /// What the release that is under way asks for.
    pub wanted: Option<StorePath>,
    /// Whether that release asks for a restart when the kernel changes.
    #[serde(default)]
    pub reboot: bool,
    /// How far the agent is with it.
    pub phase: Phase,
    /// The trouble that was last reported without an attempt, so that it is not reported again with every poll.
    pub complaint: Option<String>,
    /// What was last reported that is no part of an attempt; nothing if that is over.
    #[serde(default)]
    pub note: Option<String>,
    /// How often in a row the release was put off, and until when it is.
    #[serde(default)]
    pub put_off: Option<PutOff>,
    /// What ran before the system that was last taken up: what somebody at the machine may want back. It is kept from being
    /// collected.
    #[serde(default)]
    pub before: Option<StorePath>,
    /// The lock of inputs that the host has updated by itself.
    #[serde(default)]
    pub own_lock: Option<OwnLock>,
    /// The hash of such a lock that did not work out: it is not tried again.
    #[serde(default)]
    pub refused_lock: Option<String>,
    /// What was last reported.
    #[serde(default)]
    pub last: Option<Report>,
    /// What was reported of the last attempt that was done with, whatever was said since.
    #[serde(default)]
    pub end: Option<Report>,
}

impl Default for State {
    /// That of a new host.
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            host: None,
            serial: 0,
            created: None,
            attempts: 0,
            started: None,
            wanted: None,
            reboot: false,
            phase: Phase::Idle,
            complaint: None,
            note: None,
            put_off: None,
            before: None,
            own_lock: None,
            refused_lock: None,
            last: None,
            end: None,
        }
    }
}

impl State {
    /// The newest release that was ever accepted.
    pub fn seen(&self) -> Seen {
        Seen { serial: self.serial, created: self.created }
    }
}

/// A release that could not be taken up for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PutOff {
    /// How many times in a row.
    pub times: u32,
    /// Until when it is not tried again.
    pub until: Timestamp,
}

/// The state together with its file.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    /// As it is on disk.
    pub state: State,
}

impl Journal {
    /// Reads the state in a directory; a new host has none yet. Of a file that is damaged, the copy counts. An error that
    /// [is such](Damaged) says that the copy is no better.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let file = state_dir.join(FILE);
        let state = match load(&file) {
            Err(error) => match load(&copy_of(&file)) {
                Ok(Some(state)) => {
                    eprintln!("{error:#}: its copy counts");
                    state
                }
                _ => return Err(error),
            },
            Ok(state) => state.unwrap_or_default(),
        };
        Ok(Self { file, state })
    }

    /// Begins the journal of a directory anew, with this state. What is left of the old one is set aside.
    pub fn begin_anew(state_dir: &Path, state: State) -> Result<()> {
        let file = state_dir.join(FILE);
        let aside = file.with_extension("damaged.json");
        // for people to look at: that it can't be kept is no reason to stop
        if let Err(error) = std::fs::copy(&file, &aside) {
            eprintln!("cannot keep what is left of {} as {}: {error}", file.display(), aside.display());
        }
        Self { file, state }.save()
    }

    /// Writes the state down, durably; on a full disk into the room that was kept for it.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.state).context("cannot write the state")?;
        with_ballast(self.file.parent().unwrap_or(Path::new("/")), || {
            // the copy first: it may know of a step that was not begun yet, but must not miss one that was
            files::write_atomic(&copy_of(&self.file), &text, 0o600, None)?;
            files::write_atomic(&self.file, &text, 0o600, None)
        })
    }

    /// Enters a phase, durably.
    pub fn enter(&mut self, phase: Phase) -> Result<()> {
        self.state.phase = phase;
        self.save()
    }
}

/// A journal that can be read no more.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged", .0.display())]
pub struct Damaged(PathBuf);

/// The state in a file, if there is such a file.
fn load(file: &Path) -> Result<Option<State>> {
    let text = match std::fs::read(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let state: State = serde_json::from_slice(&text).with_context(|| Damaged(file.to_owned()))?;
    if state.schema != SCHEMA {
        bail!("{} has schema {}, but this bento knows only {SCHEMA}", file.display(), state.schema);
    }
    Ok(Some(state))
}

/// Where a journal is a second time: a disk that loses the one block hardly loses the other.
fn copy_of(file: &Path) -> PathBuf {
    file.with_extension("copy.json")
}

fn ballast(state_dir: &Path) -> PathBuf {
    state_dir.join("ballast")
}

/// Keeps room in a directory for what has to be written on a full disk; where there is none now, that is tried again
/// with the next run.
pub fn keep_ballast(state_dir: &Path) {
    let file = ballast(state_dir);
    if std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() == BALLAST as u64) {
        return;
    }
    let kept = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&file)
        .and_then(|mut file: File| file.write_all(&[b'.'; BALLAST]).and_then(|()| file.sync_all()));
    if kept.is_err() {
        let _ = files::remove(&file);
    }
}

/// Writes something, and if that fails once more, in the room that was kept.
pub fn with_ballast(state_dir: &Path, write: impl Fn() -> Result<()>) -> Result<()> {
    write().or_else(|error| {
        if !ballast(state_dir).exists() {
            return Err(error);
        }
        files::remove(&ballast(state_dir))?;
        write()
    })
}
