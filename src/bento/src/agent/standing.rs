//! Where a host stands, as it can be seen on the spot: without the hub, and without disturbing a run.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::agent::config::AgentConfig;
use crate::agent::outbox::Outbox;
use crate::agent::state::{Journal, PutOff};
use crate::agent::system::System;
use crate::agent::{self, hold};
use crate::host::HostName;
use crate::hub::Hold;
use crate::report::Report;
use crate::sign::Signer;
use crate::store_path::StorePath;

/// Where a host stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Standing {
    /// The host.
    pub host: HostName,
    /// The highest serial that it ever accepted; 0 if none.
    pub serial: u64,
    /// The state that the attempt at that release is in, by its name in the book.
    pub state: &'static str,
    /// Whether the agent is at work.
    pub busy: bool,
    /// What runs.
    pub running: Option<StorePath>,
    /// What was booted.
    pub booted: Option<StorePath>,
    /// Whether only a restart brings the kernel that belongs to what runs.
    pub reboot_needed: bool,
    /// What a rollback would bring back.
    pub before: Option<StorePath>,
    /// Since when, and why, it takes up nothing.
    pub held: Option<Hold>,
    /// The release that was put off after failures.
    pub put_off: Option<PutOff>,
    /// What was last reported.
    pub last: Option<Report>,
    /// Why what this host says is not signed; nothing if it is.
    pub unsigned: Option<String>,
    /// How many reports the hub doesn't have yet.
    pub undelivered: usize,
    /// How many units have failed, if that is known.
    pub failed_units: Option<u64>,
}

impl Standing {
    /// Looks at a host.
    pub fn read(config: &AgentConfig) -> Result<Self> {
        let state_dir = &config.state_dir;
        let system = System::new(config);
        let state = Journal::open(state_dir)?.state;
        Ok(Self {
            host: config.host.clone(),
            serial: state.serial,
            state: state.phase.name(),
            busy: agent::is_at_work(config),
            running: system.running(),
            booted: system.booted(),
            reboot_needed: system.reboot_needed(),
            before: state.phase.trial().and_then(|trial| trial.previous.clone()).or(state.before),
            held: hold::read(state_dir)?,
            put_off: state.put_off,
            last: state.last,
            unsigned: Signer::of_host(&config.hub.identity).err().map(|error| format!("{error:#}")),
            undelivered: Outbox::count(state_dir)?,
            failed_units: system.count_failed_units(),
        })
    }
}

impl fmt::Display for Standing {
    /// A line for each thing that there is to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, is: &dyn fmt::Display| writeln!(f, "{what:>14}  {is}");
        line("host", &self.host)?;
        match self.serial {
            0 => line("release", &"none yet")?,
            serial => {
                let work = if self.busy { ", at work" } else { "" };
                line("release", &format!("{serial} ({}{work})", self.state))?;
            }
        }
        if let Some(running) = &self.running {
            line("runs", running)?;
        }
        if let Some(booted) = self.booted.as_ref().filter(|_| self.reboot_needed) {
            line("booted", &format!("{booted}; restart the machine for the kernel of what runs"))?;
        }
        if let Some(before) = &self.before {
            line("before", before)?;
        }
        if let Some(Hold { since, reason }) = &self.held {
            let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            line("held", &format!("since {since}{reason}"))?;
        }
        if let Some(PutOff { times, until }) = &self.put_off {
            line("put off", &format!("until {until}, after {times} failures"))?;
        }
        if let Some(last) = &self.last {
            let reason = last.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            line(
                "last result",
                &format!("{} of release {}, {}{reason}", last.outcome.word(), last.serial, last.finished),
            )?;
        }
        if let Some(note) = self.last.as_ref().and_then(|last| last.note.as_ref()) {
            line("but", note)?;
        }
        if let Some(unsigned) = &self.unsigned {
            line("not signed", unsigned)?;
        }
        if let Some(count) = self.failed_units.filter(|count| *count > 0) {
            line("failed units", &count)?;
        }
        if self.undelivered > 0 {
            line("undelivered", &format!("{} reports", self.undelivered))?;
        }
        Ok(())
    }
}
