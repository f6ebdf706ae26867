//! Status: where each host stands, worked out from what was published and what the hosts said.
//!
//! What hosts said are reports; of hosts that still run the original bento there are only logs, whose names say version
//! and outcome. Everything in `logs/` was written by the host, so it is read with care, and what can't be understood is
//! shown as such.

pub mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use crate::files::read_untrusted;
use crate::host::{HostKind, HostName};
use crate::hub::{HostDir, Hub, modified};
use crate::manifest::Manifest;
use crate::report::{self, LogName, Outcome, Report, Stage, parse_report_name};

/// Where a host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It belongs to the fleet, but nothing was published for it yet.
    NotPublished,
    /// What was published for it can't be read.
    DamagedRelease,
    /// It was never heard of.
    NewMachine,
    /// Its last report can't be understood.
    CorruptReport,
    /// There is a release that it has not taken up, but it runs that very system.
    SyncPending,
    /// There is a release that it has not taken up.
    RebuildPending,
    /// It runs what it should.
    UpToDate,
    /// It reported the same release more than once.
    ExtraLogs,
    /// It could not take up the release.
    Failing,
    /// It took up the release, and went back.
    Rollbacked,
    /// It updated itself.
    AutoUpgraded,
    /// It says that it took up the release, but runs another system; or it speaks of a release that the hub never had.
    Diverged,
    /// It no longer belongs to the fleet.
    Removed,
}

impl HostState {
    /// The words for it.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotPublished => "not published",
            Self::DamagedRelease => "damaged release",
            Self::NewMachine => "new machine",
            Self::CorruptReport => "corrupt report",
            Self::SyncPending => "sync pending",
            Self::RebuildPending => "rebuild pending",
            Self::UpToDate => "up to date",
            Self::ExtraLogs => "extra logs",
            Self::Failing => "failing",
            Self::Rollbacked => "rollbacked",
            Self::AutoUpgraded => "auto upgraded",
            Self::Diverged => "diverged",
            Self::Removed => "removed",
        }
    }
}

/// One host's line.
#[derive(Clone, Debug, Serialize)]
pub struct HostStatus {
    /// The host.
    pub machine: HostName,
    /// Flake or not, if that is known.
    pub kind: Option<HostKind>,
    /// The base name of the system that it should run.
    pub local_version: Option<String>,
    /// The base name of the system that it said it runs.
    pub remote_version: Option<String>,
    /// Where it stands.
    pub state: HostState,
    /// The current release.
    pub serial: Option<u64>,
    /// The release that it last spoke of.
    pub reported_serial: Option<u64>,
    /// When the release was published.
    pub published: Option<Timestamp>,
    /// When the host last said something.
    pub reported: Option<Timestamp>,
    /// Why it got no further, in its own words.
    pub reason: Option<String>,
    /// What could not be understood, naming the file.
    pub problems: Vec<String>,
}

impl HostStatus {
    /// Whether the host runs what it should, as far as versions can tell.
    pub fn versions_match(&self) -> bool {
        self.local_version.is_some() && self.local_version == self.remote_version
    }

    /// Whether a release waits for the host.
    pub fn pending(&self) -> bool {
        matches!(self.state, HostState::SyncPending | HostState::RebuildPending | HostState::NewMachine)
    }
}

/// Something that a host said: in a report, or by a log's name.
struct Word {
    /// Release and attempt; logs of the original bento have none.
    number: Option<(u64, u64)>,
    outcome: Outcome,
    /// It speaks of a restart that is to come, after which the same release is reported again.
    waits: bool,
    version: Option<String>,
    reason: Option<String>,
    time: Option<Timestamp>,
}

/// What there is in a host's `logs/`.
#[derive(Default)]
struct Words {
    /// In the order in which they were said.
    all: Vec<Word>,
    problems: Vec<String>,
    /// The newest report that can't be understood.
    corrupt: Option<(u64, u64)>,
}

/// Works out where each host of the hub stands, by name.
pub fn status(hub: &Hub, now: Timestamp) -> Result<Vec<HostStatus>> {
    let fleet = hub.fleet()?;
    let mut names = hub.hosts()?;
    names.extend(fleet.iter().flatten().cloned());
    names.sort();
    names.dedup();
    let mut hosts = Vec::new();
    for name in names {
        let mut status = host_status(&hub.host(&name), &name, now)?;
        if fleet.as_ref().is_some_and(|fleet| !fleet.contains(&name)) {
            status.state = HostState::Removed;
        }
        hosts.push(status);
    }
    Ok(hosts)
}

/// Works out where one host stands.
fn host_status(dir: &HostDir, name: &HostName, now: Timestamp) -> Result<HostStatus> {
    let words = words(&dir.logs(), name, now)?;
    let mut problems = words.problems;
    let (manifest, damaged) = match dir.manifest() {
        Ok(manifest) => (manifest, false),
        Err(error) => {
            problems.push(format!("{error:#}"));
            (None, true)
        }
    };
    let last = words.all.last();
    let state = match &manifest {
        None if damaged => HostState::DamagedRelease,
        None => HostState::NotPublished,
        Some(manifest) => match words.corrupt {
            Some(corrupt) if last.is_none_or(|last| last.number.is_none_or(|number| number < corrupt)) => {
                HostState::CorruptReport
            }
            _ => state(manifest, &words.all, dir.changed()),
        },
    };
    Ok(HostStatus {
        machine: name.clone(),
        kind: manifest.as_ref().map(|manifest| manifest.kind),
        local_version: manifest.as_ref().map(|manifest| manifest.toplevel.base_name().to_owned()),
        remote_version: last.and_then(|last| last.version.clone()),
        state,
        serial: manifest.as_ref().map(|manifest| manifest.serial),
        reported_serial: last.and_then(|last| last.number).map(|(serial, _)| serial),
        published: manifest.as_ref().map(|manifest| manifest.created),
        reported: last.and_then(|last| last.time),
        reason: last.and_then(|last| last.reason.clone()),
        problems,
    })
}

/// The state of a host whose release is known.
fn state(manifest: &Manifest, words: &[Word], changed: Option<Timestamp>) -> HostState {
    let Some(last) = words.last() else { return HostState::NewMachine };
    let runs_it = last.version.as_deref() == Some(manifest.toplevel.base_name());
    // logs of the original bento belong to the release that was current when they were written
    let about_current = |word: &Word| match word.number {
        Some((serial, _)) => serial == manifest.serial,
        None => changed.is_none_or(|changed| word.time.is_some_and(|time| time >= changed)),
    };
    match last.number {
        Some((serial, _)) if serial > manifest.serial => return HostState::Diverged,
        _ if !about_current(last) => {
            return if runs_it { HostState::SyncPending } else { HostState::RebuildPending };
        }
        _ => {}
    }
    match last.outcome {
        Outcome::Failure => HostState::Failing,
        Outcome::Rollback => HostState::Rollbacked,
        Outcome::Autoupdate => HostState::AutoUpgraded,
        Outcome::Success => {
            // a host that reports is judged by its reports alone; and a success after a failure is no repetition
            let repeats = |word: &&Word| {
                word.number.is_some() == last.number.is_some()
                    && about_current(word)
                    && word.outcome.is_success()
                    && !word.waits
            };
            let successes = words.iter().rev().take_while(repeats).count();
            if manifest.kind == HostKind::Flake && !runs_it {
                HostState::Diverged
            } else if successes > 1 {
                HostState::ExtraLogs
            } else {
                HostState::UpToDate
            }
        }
    }
}

/// Reads everything in a host's `logs/`.
fn words(logs: &Path, host: &HostName, now: Timestamp) -> Result<Words> {
    let entries = match fs::read_dir(logs) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Words::default()),
        entries => entries.with_context(|| format!("cannot list {}", logs.display()))?,
    };
    let mut words = Words::default();
    let mut told = Vec::new();
    let mut logs_found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", logs.display()))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            words.problems.push(format!("{} is no name for a log", path.display()));
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        if let Some(number) = parse_report_name(&name) {
            match read_report(&path, host, number) {
                Ok(report) => {
                    told.extend(report.log.clone());
                    words.all.push(word_of_report(report, modified(&path), now));
                }
                Err(error) => {
                    words.problems.push(format!("{}: {error:#}", path.display()));
                    words.corrupt = words.corrupt.max(Some(number));
                }
            }
        } else if let Some(log) = LogName::parse(&name) {
            logs_found.push((name, log, modified(&path)));
        } else {
            words.problems.push(format!("{} is neither a log nor a report", path.display()));
        }
    }
    for (name, log, time) in logs_found {
        // a log that a report names says nothing that the report doesn't
        if !told.contains(&name) {
            words.all.push(Word {
                number: None,
                outcome: log.outcome,
                waits: false,
                version: Some(log.version),
                reason: None,
                time,
            });
        }
    }
    // a host that has an agent of ours is judged by its reports; what it said before that comes first
    words.all.sort_by_key(|word| (word.number, word.time));
    words.problems.sort();
    Ok(words)
}

/// Reads a report and checks that it says what its name and place say.
fn read_report(path: &Path, host: &HostName, number: (u64, u64)) -> Result<Report> {
    let report = Report::parse(&read_untrusted(path, report::LIMIT)?)?;
    if &report.host != host {
        anyhow::bail!("a report of the host {}, but it lies with {host}'s", report.host);
    }
    if (report.serial, report.attempt) != number {
        anyhow::bail!(
            "a report of attempt {} at release {}, but its name says otherwise",
            report.attempt,
            report.serial
        );
    }
    Ok(report)
}

/// What a report comes to. The host's clock is believed only as far as the file's arrival allows.
fn word_of_report(report: Report, arrived: Option<Timestamp>, now: Timestamp) -> Word {
    Word {
        number: Some((report.serial, report.attempt)),
        outcome: report.outcome,
        waits: report.stage == Stage::Reboot,
        version: report.running.map(|running| running.base_name().to_owned()),
        reason: report.reason,
        time: Some(report.finished.min(arrived.unwrap_or(now)).min(now)),
    }
}
