//! The agent's journal: how far it got, written before each step, so that the next run knows what a crash left.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::report::{Outcome, Stage};
use crate::store_path::StorePath;

/// The version of the state's schema.
const SCHEMA: u32 = 1;

/// Where the agent is with a release. Each state is on disk before the step that it allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Phase {
    /// Nothing is under way.
    Idle,
    /// The files are there and verified; the build may begin.
    Fetched,
    /// The system is built; activation may begin.
    Realised {
        /// It.
        toplevel: StorePath,
    },
    /// The system is being tried out.
    Testing {
        /// It.
        toplevel: StorePath,
        /// What to go back to.
        previous: Option<StorePath>,
    },
    /// The system works; it may become the one that is booted.
    Confirmed {
        /// It.
        toplevel: StorePath,
        /// What ran before.
        previous: Option<StorePath>,
    },
    /// The system is the one that is booted; the report is missing.
    Booted {
        /// It.
        toplevel: StorePath,
        /// What ran before.
        previous: Option<StorePath>,
    },
    /// The attempt ended in the old system; the report is missing.
    Ended {
        /// [`Outcome::Failure`] or [`Outcome::Rollback`].
        outcome: Outcome,
        /// Where it failed.
        stage: Stage,
        /// Why.
        reason: String,
        /// What was built, if it got that far.
        built: Option<StorePath>,
        /// What ran before.
        previous: Option<StorePath>,
        /// Whether the same release may be tried again.
        retry: bool,
    },
    /// The report is queued; the release is done with.
    Reported {
        /// How it ended.
        outcome: Outcome,
    },
}

/// What the agent knows from run to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct State {
    schema: u32,
    /// The highest serial that was ever accepted.
    pub serial: u64,
    /// How many attempts at this serial were reported.
    pub attempts: u64,
    /// When the attempt that is under way began.
    pub started: Option<Timestamp>,
    /// What the release that is under way asks for.
    pub wanted: Option<StorePath>,
    /// How far the agent is with it.
    pub phase: Phase,
    /// The trouble that was last reported without an attempt, so that it is not reported again with every poll.
    pub complaint: Option<String>,
}

/// The state together with its file.
#[derive(Debug)]
pub struct Journal {
    file: PathBuf,
    /// As it is on disk.
    pub state: State,
}

impl Journal {
    /// Reads the state in a directory; a new host has none yet.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let file = state_dir.join("state.json");
        let state = match std::fs::read(&file) {
            Ok(text) => {
                let state: State = serde_json::from_slice(&text).with_context(|| {
                    format!("{} is damaged: remove it to have the release activated anew", file.display())
                })?;
                if state.schema != SCHEMA {
                    bail!("{} has schema {}, but this bento knows only {SCHEMA}", file.display(), state.schema);
                }
                state
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => State {
                schema: SCHEMA,
                serial: 0,
                attempts: 0,
                started: None,
                wanted: None,
                phase: Phase::Idle,
                complaint: None,
            },
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { file, state })
    }

    /// Writes the state down, durably.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.state).context("cannot write the state")?;
        files::write_atomic(&self.file, &text, 0o600, None)
    }

    /// Enters a phase, durably.
    pub fn enter(&mut self, phase: Phase) -> Result<()> {
        self.state.phase = phase;
        self.save()
    }
}
