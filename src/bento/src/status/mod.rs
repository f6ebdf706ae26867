//! Status: where each host stands, worked out from what was published and what the hosts said.
//!
//! What hosts said are reports; of hosts that still run the original bento there are only logs, whose names say version
//! and outcome. Everything in `logs/` was written by the host, so it is read with care, and what can't be understood is
//! shown as such.

pub mod changes;
pub mod history;
pub mod metrics;
pub mod table;
pub mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use serde::Serialize;

use crate::files::read_untrusted;
use crate::host::{HostKind, HostName};
use crate::hub::{Hold, HostDir, Hub, Listing, modified};
use crate::manifest::Summary;
use crate::report::{self, LogName, Outcome, Presence, Report, Stage, parse_report_name};
use crate::sign::{self, SigningKey};

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
    /// Its last report is not signed with the host's key.
    ForgedReport,
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
    /// It says that it took up the release, but runs another system, then or by now; or it speaks of a release that the hub never had.
    Diverged,
    /// It runs what it should, but only a reboot brings the kernel that belongs to that.
    RebootNeeded,
    /// It gets no new release for now, or takes up none: somebody wanted it so.
    Held,
    /// It polls regularly, but has not for twice the time within which it does.
    Stale,
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
            Self::ForgedReport => "forged report",
            Self::SyncPending => "sync pending",
            Self::RebuildPending => "rebuild pending",
            Self::UpToDate => "up to date",
            Self::ExtraLogs => "extra logs",
            Self::Failing => "failing",
            Self::Rollbacked => "rollbacked",
            Self::AutoUpgraded => "auto upgraded",
            Self::Diverged => "diverged",
            Self::RebootNeeded => "reboot needed",
            Self::Held => "held",
            Self::Stale => "stale",
            Self::Removed => "removed",
        }
    }
}

impl HostState {
    /// The one word for it, as in JSON.
    pub fn word(self) -> String {
        self.words().replace(' ', "-")
    }

    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::NotPublished,
        Self::DamagedRelease,
        Self::NewMachine,
        Self::CorruptReport,
        Self::ForgedReport,
        Self::SyncPending,
        Self::RebuildPending,
        Self::UpToDate,
        Self::ExtraLogs,
        Self::Failing,
        Self::Rollbacked,
        Self::AutoUpgraded,
        Self::Diverged,
        Self::RebootNeeded,
        Self::Held,
        Self::Stale,
        Self::Removed,
    ];

    /// Whether all is well with the host, and nothing is to come.
    pub fn is_well(self) -> bool {
        matches!(self, Self::UpToDate | Self::AutoUpgraded)
    }

    /// Whether a person has to look after the host: nothing that bento does by itself will bring it further.
    pub fn needs_attention(self) -> bool {
        matches!(
            self,
            Self::NotPublished
                | Self::DamagedRelease
                | Self::CorruptReport
                | Self::ForgedReport
                | Self::Failing
                | Self::Rollbacked
                | Self::Diverged
                | Self::RebootNeeded
                | Self::Stale
        )
    }
}

/// One host's line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    /// When the host last said how an attempt ended.
    pub reported: Option<Timestamp>,
    /// When the host was last heard of.
    pub seen: Option<Timestamp>,
    /// Whether it should have been heard of since.
    pub stale: bool,
    /// Whether it gets no new release for now, or takes up none.
    pub held: bool,
    /// Whether it has to be rebooted to run the kernel that it should.
    pub reboot_needed: bool,
    /// The base name of the system that was booted, as the host says.
    pub booted_version: Option<String>,
    /// How many of its units have failed, as the host says.
    pub failed_units: Option<u64>,
    /// Why it got no further, in its own words.
    pub reason: Option<String>,
    /// What else there is to say of it, which has no part in where it stands.
    pub notes: Vec<String>,
    /// Whether what it last said is signed with its key; nothing if its key is not known.
    pub verified: Option<bool>,
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
    /// It speaks of a restart that is to come, or of what is no part of an attempt: the same release is reported again.
    aside: bool,
    version: Option<String>,
    /// What it is about, as far as that is said.
    wanted: Option<String>,
    reason: Option<String>,
    note: Option<String>,
    time: Option<Timestamp>,
    /// By the hub's clock.
    arrived: Option<Timestamp>,
}

/// What there is in a host's `logs/`.
#[derive(Default)]
struct Words {
    /// The last that was said, and what was said right before it as far as that matters; in this order.
    last: Vec<Word>,
    problems: Vec<String>,
    /// The newest report that can't be believed, and what is wrong with it.
    doubtful: Option<((u64, u64), HostState)>,
    /// Whether somebody else speaks for the host.
    forged_presence: bool,
    /// What the host said of itself with its last poll, if that can be understood.
    presence: Option<Presence>,
    /// When that arrived, whatever it was.
    polled: Option<Timestamp>,
}

impl Words {
    /// What the host runs, if that is another system than it runs by its last report: somebody has activated it since, or has started
    /// it from the boot menu.
    fn runs_by_now(&self) -> Option<String> {
        let last = self.last.first().filter(|last| last.arrived <= self.polled)?;
        let running = self.presence.as_ref()?.running.as_ref()?.base_name();
        (last.version.as_deref() != Some(running)).then(|| running.to_owned())
    }
}

/// What the fleet's settings say about what hosts say.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Within how many seconds a host polls that does not say so.
    pub interval: u64,
    /// The hosts' keys, which their reports must be signed with; those of a host that is not in here are not verified.
    pub keys: BTreeMap<HostName, Vec<SigningKey>>,
}

impl Expected {
    /// The keys of a host, if they are known.
    pub fn keys_of(&self, host: &HostName) -> &[SigningKey] {
        self.keys.get(host).map_or(&[], Vec::as_slice)
    }
}

/// What can be told of a fleet, whatever state the hub's directory is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// The hosts, by name.
    pub hosts: Vec<HostStatus>,
    /// What of the hub itself can't be read. Where there is any, hosts may be missing, and `removed` and `held` may too.
    pub problems: Vec<String>,
    /// What lies in the hub's directory and belongs to no host.
    pub strangers: Vec<String>,
}

/// Works out where each host of the hub stands, by name. A hub of which a part can't be read is an error.
pub fn status(hub: &Hub, expected: &Expected, now: Timestamp) -> Result<Vec<HostStatus>> {
    let overview = overview(hub, expected, now);
    match overview.problems.into_iter().next() {
        Some(problem) => Err(anyhow!(problem)),
        None => Ok(overview.hosts),
    }
}

/// Works out where each host stands, as [`status`] does it, but says what can't be read instead of failing.
pub fn overview(hub: &Hub, expected: &Expected, now: Timestamp) -> Overview {
    let roll = Roll::read(hub);
    let hosts = roll.names.iter().map(|name| host_status(&hub.host(name), name, roll.known(name, expected), now));
    Overview { hosts: hosts.collect(), problems: roll.problems, strangers: roll.strangers }
}

/// Works out where one host stands; `None` if the hub knows none of that name. Comes with what of the hub can't be read.
pub fn one(hub: &Hub, name: &HostName, expected: &Expected, now: Timestamp) -> (Option<HostStatus>, Vec<String>) {
    let roll = Roll::read(hub);
    let known = roll.names.binary_search(name).is_ok();
    let status = known.then(|| host_status(&hub.host(name), name, roll.known(name, expected), now));
    (status, roll.problems)
}

/// Which hosts there are, and what of that can't be read.
struct Roll {
    /// Sorted.
    names: Vec<HostName>,
    fleet: Option<Vec<HostName>>,
    holds: BTreeMap<HostName, Hold>,
    problems: Vec<String>,
    strangers: Vec<String>,
}

impl Roll {
    fn read(hub: &Hub) -> Self {
        let mut problems = Vec::new();
        let mut problem = |error: anyhow::Error| problems.push(format!("{error:#}"));
        let Listing { hosts: mut names, strangers } = hub.listing().unwrap_or_else(|error| {
            problem(error);
            Listing::default()
        });
        let fleet = hub.fleet().unwrap_or_else(|error| {
            problem(error);
            None
        });
        let holds = hub.holds().unwrap_or_else(|error| {
            problem(error);
            BTreeMap::new()
        });
        names.extend(fleet.iter().flatten().cloned());
        names.sort();
        names.dedup();
        Self { names, fleet, holds, problems, strangers }
    }

    fn known<'e>(&self, name: &HostName, expected: &'e Expected) -> Known<'e> {
        Known {
            removed: self.fleet.as_ref().is_some_and(|fleet| fleet.binary_search(name).is_err()),
            held: self.holds.contains_key(name),
            interval: expected.interval,
            keys: expected.keys_of(name),
        }
    }
}

/// What is known of a host besides its directory.
struct Known<'a> {
    removed: bool,
    held: bool,
    interval: u64,
    keys: &'a [SigningKey],
}

/// Works out where one host stands.
fn host_status(dir: &HostDir, name: &HostName, known: Known<'_>, now: Timestamp) -> HostStatus {
    let (mut words, unreadable) = match words(&dir.logs(), name, known.keys, now) {
        Ok(words) => (words, None),
        Err(error) => (Words::default(), Some(format!("{error:#}"))),
    };
    let by_now = words.runs_by_now();
    let drifted = by_now.is_some();
    if let Some((last, by_now)) = words.last.first_mut().zip(by_now) {
        last.version = Some(by_now);
    }
    let mut problems = words.problems;
    let silenced = unreadable.is_some();
    problems.extend(unreadable);
    let (manifest, damaged) = match dir.summary() {
        Ok(manifest) => (manifest, false),
        Err(error) => {
            problems.push(format!("{error:#}"));
            (None, true)
        }
    };
    let last = words.last.first();
    let base = match &manifest {
        None if damaged => HostState::DamagedRelease,
        None => HostState::NotPublished,
        // what it reported is there, or not: nobody can tell
        Some(_) if silenced => HostState::CorruptReport,
        Some(_) if words.forged_presence => HostState::ForgedReport,
        Some(manifest) => match words.doubtful {
            Some((doubtful, state)) if last.is_none_or(|last| last.number.is_none_or(|number| number < doubtful)) => {
                state
            }
            _ => match state(manifest, &words.last, dir.changed()) {
                HostState::UpToDate | HostState::ExtraLogs | HostState::AutoUpgraded if drifted => HostState::Diverged,
                state => state,
            },
        },
    };
    let presence = words.presence.as_ref();
    // by the hub's clock: a host's own may be wrong
    let polled = words.polled.map(|time| time.min(now));
    let patience = presence.and_then(|presence| presence.interval).unwrap_or(known.interval).saturating_mul(2);
    let silent = |time: Timestamp| u64::try_from(now.duration_since(time).as_secs()).unwrap_or(0) > patience;
    let stale = polled.is_some_and(silent);
    let held = known.held || presence.is_some_and(|presence| presence.held);
    let reboot_needed = presence.is_some_and(|presence| presence.reboot_needed);
    let reported = last.and_then(|last| last.time);
    HostStatus {
        machine: name.clone(),
        kind: manifest.as_ref().map(|manifest| manifest.kind),
        local_version: manifest.as_ref().map(|manifest| manifest.toplevel.base_name().to_owned()),
        remote_version: last.and_then(|last| last.version.clone()),
        state: if known.removed { HostState::Removed } else { outward(base, stale, held, reboot_needed) },
        serial: manifest.as_ref().map(|manifest| manifest.serial),
        reported_serial: last.and_then(|last| last.number).map(|(serial, _)| serial),
        published: manifest.as_ref().map(|manifest| manifest.created),
        reported,
        seen: polled.max(reported),
        stale,
        held,
        reboot_needed,
        booted_version: presence
            .and_then(|presence| presence.booted.as_ref())
            .map(|booted| booted.base_name().to_owned()),
        failed_units: presence.and_then(|presence| presence.failed_units),
        reason: last.and_then(|last| last.reason.clone()),
        notes: last.and_then(|last| last.note.clone()).into_iter().chain(unverifiable(known.keys)).collect(),
        // a report by somebody else is none of its words
        verified: last.filter(|_| verifies(known.keys)).map(|last| last.number.is_some()),
        problems,
    }
}

/// What is shown of a state when there is more to say of the host. What needs a person stays in sight.
fn outward(base: HostState, stale: bool, held: bool, reboot_needed: bool) -> HostState {
    match base {
        base if base.needs_attention() => base,
        _ if stale => HostState::Stale,
        _ if held => HostState::Held,
        HostState::UpToDate | HostState::ExtraLogs | HostState::AutoUpgraded if reboot_needed => {
            HostState::RebootNeeded
        }
        base => base,
    }
}

/// The state of a host whose release is known. `words` are in order, the last first.
fn state(manifest: &Summary, words: &[Word], changed: Option<Timestamp>) -> HostState {
    let Some(last) = words.first() else { return HostState::NewMachine };
    let runs_it = last.version.as_deref() == Some(manifest.toplevel.base_name());
    // logs of the original bento belong to the release that was current when they were written
    let about_current = |word: &Word| match word.number {
        Some((serial, _)) => serial == manifest.serial,
        None => changed.is_none_or(|changed| word.time.is_some_and(|time| time >= changed)),
    };
    // a hub that was restored from a backup gives serials twice; a non-flake may come to another system than it was asked for
    let about_another = |word: &Word| {
        let other = word.wanted.as_deref().is_some_and(|wanted| wanted != manifest.toplevel.base_name());
        other && manifest.kind == HostKind::Flake && about_current(word)
    };
    match last.number {
        Some((serial, _)) if serial > manifest.serial => return HostState::Diverged,
        _ if about_another(last) => return HostState::Diverged,
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
            // a success after a failure is no repetition, nor is one that waited for a reboot or came with a note
            let repeats =
                |word: &&Word| about_current(word) && !about_another(word) && word.outcome.is_success() && !word.aside;
            let successes = words.iter().take_while(repeats).count();
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

/// The files in a host's `logs/`, by what their names say.
#[derive(Default)]
struct HostLogs {
    /// Reports, by serial and attempt.
    reports: Vec<((u64, u64), PathBuf)>,
    logs: Vec<(LogName, PathBuf)>,
    presence: Option<PathBuf>,
    /// What is none of these.
    problems: Vec<String>,
}

/// Lists a host's `logs/`, in no order; there may be none.
fn host_logs(logs: &Path) -> Result<HostLogs> {
    let mut found = HostLogs::default();
    let entries = match fs::read_dir(logs) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.with_context(|| format!("cannot list {}", logs.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", logs.display()))?;
        let Ok(name) = entry.file_name().into_string() else {
            found.problems.push(format!("{} is no name for a log", entry.path().display()));
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        if let Some(number) = parse_report_name(&name) {
            found.reports.push((number, entry.path()));
        } else if report::is_signature_name(&name) {
            // read with its report
        } else if let Some(log) = LogName::parse(&name) {
            found.logs.push((log, entry.path()));
        } else if name == report::PRESENCE {
            found.presence = Some(entry.path());
        } else {
            found.problems.push(format!("{} is neither a log nor a report", entry.path().display()));
        }
    }
    Ok(found)
}

/// Reads what matters in a host's `logs/`: a host that reports is judged by its reports alone, and by no more of them
/// than it takes.
fn words(logs: &Path, host: &HostName, keys: &[SigningKey], now: Timestamp) -> Result<Words> {
    let HostLogs { mut reports, logs, presence, problems } = host_logs(logs)?;
    let mut words = Words { problems, ..Words::default() };
    if let Some(path) = presence {
        match read_presence(&path, host, keys) {
            Ok(Read::Sound(presence)) => {
                words.presence = Some(presence);
                words.polled = modified(&path);
            }
            Ok(Read::Forged(error)) => {
                words.problems.push(format!("{}: {error:#}", path.display()));
                words.forged_presence = true;
            }
            Err(error) => {
                words.problems.push(format!("{}: {error:#}", path.display()));
                words.polled = modified(&path);
            }
        }
    }
    reports.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    for (number, path) in reports {
        let doubtful = match read_report(&path, host, number, keys) {
            Ok(Read::Sound(report)) => {
                words.last.push(word_of_report(report, modified(&path), now));
                None
            }
            Ok(Read::Forged(error)) => Some((error, HostState::ForgedReport)),
            Err(error) => Some((error, HostState::CorruptReport)),
        };
        if let Some((error, state)) = doubtful {
            words.problems.push(format!("{}: {error:#}", path.display()));
            // the newest comes first
            words.doubtful.get_or_insert((number, state));
        }
        // two successes in a row are the most that is asked for
        if words.last.len() == 2 || words.last.last().is_some_and(|word| !word.outcome.is_success()) {
            break;
        }
    }
    if words.last.is_empty() {
        let word_of_log = |(log, path): (LogName, PathBuf)| {
            let (outcome, version) = (log.outcome, Some(log.version));
            let arrived = modified(&path);
            let (wanted, reason, note) = (None, None, None);
            Word { number: None, outcome, aside: false, version, wanted, reason, note, time: arrived, arrived }
        };
        words.last = logs.into_iter().map(word_of_log).collect();
        words.last.sort_by_key(|word| std::cmp::Reverse(word.time));
    }
    words.problems.sort();
    Ok(words)
}

/// Reads what a host says of itself.
fn read_presence(path: &Path, host: &HostName, keys: &[SigningKey]) -> Result<Read<Presence>> {
    let text = read_untrusted(path, report::LIMIT)?;
    let presence = Presence::parse(&text)?;
    if verifies(keys) {
        let signature = presence.signature.as_ref().zip(Presence::signed_part(&text)).context("it is not signed");
        let verified =
            signature.and_then(|(signature, text)| sign::verify_in(sign::PRESENCES, &text, signature.as_bytes(), keys));
        if let Err(error) = verified {
            return Ok(Read::Forged(error.context("not what the host itself says")));
        }
    }
    if &presence.host != host {
        anyhow::bail!("what the host {} says of itself, but it lies with {host}'s", presence.host);
    }
    Ok(Read::Sound(presence))
}

/// Why nothing that a host says can be verified, although its keys are known.
pub fn unverifiable(keys: &[SigningKey]) -> Option<String> {
    let none = !keys.is_empty() && !verifies(keys);
    none.then(|| {
        "has RSA keys only, which sign no reports: give the host a key of ed25519 to have them verified".to_owned()
    })
}

/// Whether reports can be verified with these keys of a host.
fn verifies(keys: &[SigningKey]) -> bool {
    keys.iter().any(SigningKey::can_sign)
}

/// What can be read.
enum Read<T> {
    /// It is the host's.
    Sound(T),
    /// It is not, and why.
    Forged(anyhow::Error),
}

/// Reads a report and checks that it says what its name and place say, and that the host signed it if its keys are known.
fn read_report(path: &Path, host: &HostName, number: (u64, u64), keys: &[SigningKey]) -> Result<Read<Report>> {
    let text = read_untrusted(path, report::LIMIT)?;
    if verifies(keys) {
        let file = PathBuf::from(report::signature_name(&path.to_string_lossy()));
        let verified = read_untrusted(&file, sign::LIMIT)
            .and_then(|signature| sign::verify_in(sign::REPORTS, &text, &signature, keys));
        if let Err(error) = verified {
            return Ok(Read::Forged(error.context("not the host's own report")));
        }
    }
    let report = Report::parse(&text)?;
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
    Ok(Read::Sound(report))
}

/// What a report comes to. The host's clock is believed only as far as the file's arrival allows.
fn word_of_report(report: Report, arrived: Option<Timestamp>, now: Timestamp) -> Word {
    Word {
        number: Some((report.serial, report.attempt)),
        outcome: report.outcome,
        aside: report.stage == Stage::Reboot || report.note.is_some(),
        version: report.running.map(|running| running.base_name().to_owned()),
        wanted: report.wanted.map(|wanted| wanted.base_name().to_owned()),
        reason: report.reason,
        note: report.note,
        time: Some(report.finished.min(arrived.unwrap_or(now)).min(now)),
        arrived,
    }
}
