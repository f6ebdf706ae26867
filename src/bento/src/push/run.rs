//! What is known of a push on the side that pushes: a file for each run, written before each step that changes something, so that a
//! client that was killed can be asked later what came of it.
//!
//! The phases are the agent's ([`crate::agent::machine`]): a trial is the same whoever began it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use crate::agent::machine::{Event, Phase};
use crate::files;
use crate::host::HostName;
use crate::push::target::Target;
use crate::store_path::StorePath;

/// The version of the record's schema that this program writes and understands.
const SCHEMA: u32 = 1;

/// A run: one push to one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// [`SCHEMA`].
    schema: u32,
    /// What it is called on the machine.
    pub nonce: String,
    /// The machine.
    pub target: Target,
    /// Whose configuration it is.
    pub host: HostName,
    /// The system.
    pub toplevel: StorePath,
    /// The release that stands for it on the hub, if it is to be reported there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// When it began.
    pub started: Timestamp,
    /// How far it is.
    pub phase: Phase,
}

/// A run whose record is held by this process.
#[derive(Debug)]
pub struct Held {
    /// What is recorded.
    pub run: Run,
    file: PathBuf,
    _lock: Flock<File>,
}

/// The directory of the records.
#[derive(Clone, Debug)]
pub struct Runs {
    dir: PathBuf,
}

impl Runs {
    /// Those of this user: below `XDG_STATE_HOME`, or else `~/.local/state`.
    pub fn of_user() -> Result<Self> {
        Ok(Self { dir: state_dir()?.join("push") })
    }

    /// Begins a run.
    pub fn begin(&self, target: &Target, host: &HostName, toplevel: &StorePath, serial: Option<u64>) -> Result<Held> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let nonce = nonce()?;
        let run = Run {
            schema: SCHEMA,
            nonce: nonce.clone(),
            target: target.clone(),
            host: host.clone(),
            toplevel: toplevel.clone(),
            serial,
            started: Timestamp::now(),
            phase: Phase::Idle,
        };
        let file = self.dir.join(format!("{nonce}.json"));
        let held = Held { run, _lock: lock(&file)?.context("a new run is held by somebody else")?, file };
        held.save()?;
        Ok(held)
    }

    /// The runs of which nobody was told yet how they ended, and whether they are under way in another process.
    pub fn open(&self) -> Result<Vec<(Run, Option<Held>)>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot list {}", self.dir.display()))?,
        };
        let mut runs = Vec::new();
        for entry in entries {
            let file = entry.with_context(|| format!("cannot list {}", self.dir.display()))?.path();
            if file.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let run: Run = serde_json::from_slice(&text).with_context(|| {
                format!(
                    "{} is no record of a push that this bento knows: remove it if it is not needed",
                    file.display()
                )
            })?;
            let held = lock(&file)?.map(|lock| Held { run: run.clone(), file, _lock: lock });
            runs.push((run, held));
        }
        runs.sort_by_key(|(run, _)| run.started);
        Ok(runs)
    }
}

impl Held {
    /// Goes on to the phase after an event; it is on disk before anything is done in it.
    pub fn enter(&mut self, event: Event) -> Result<()> {
        self.run.phase = self.run.phase.next(event)?;
        self.save()
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.run).context("cannot write a run's record")?;
        files::write_atomic(&self.file, &text, 0o600, None)
    }

    /// Forgets the run: whoever asked was told how it ended.
    pub fn forget(self) -> Result<()> {
        files::remove(&self.file)?;
        files::remove(&lock_file(&self.file))
    }
}

/// The directory where bento keeps what this user's commands have to remember.
pub fn state_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").filter(|dir| dir.is_absolute());
    let base = base.or_else(|| set("HOME").map(|home| home.join(".local/state")));
    Ok(base
        .context("neither HOME nor XDG_STATE_HOME is set: there is no place to remember what is under way")?
        .join("bento"))
}

fn lock_file(file: &Path) -> PathBuf {
    file.with_extension("lock")
}

fn lock(file: &Path) -> Result<Option<Flock<File>>> {
    files::try_lock(&lock_file(file))
}

/// A name that no other run has.
fn nonce() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
