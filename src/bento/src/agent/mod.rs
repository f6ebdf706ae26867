//! The agent: runs on a host, takes up what the hub publishes, and says how it went.
//!
//! One run is one poll. What it does is a walk through the states of [`machine::Phase`], each on disk before the step
//! that it allows; a run that finds a state from a run that was cut short first brings that to an end. The watchdog, which
//! systemd runs when a system on trial is not confirmed in time, ends a run that is stuck, and does the same.

pub mod boot;
pub mod config;
pub mod fetch;
pub mod health;
pub mod hold;
pub mod log;
pub mod machine;
pub mod outbox;
pub mod page;
pub mod secrets;
pub mod self_update;
pub mod standing;
pub mod state;
pub mod system;
pub mod units;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use jiff::{SignedDuration, Timestamp, Zoned};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::files;
use crate::hub::numbers;
use crate::manifest::{self, Manifest};
use crate::report::{self, InputChange, Outcome, Presence, Report, Stage};
use crate::sign::{self, Signer, SigningKey};
use crate::source::{SourceTree, TREE_NAME};
use crate::ssh::{Connection, HubAddress};
use crate::store_path::StorePath;

use config::{AgentConfig, FailedUnits, RebootPolicy};
use fetch::Fetched;
use log::Log;
use machine::{Action, Attempt, Event, Goal, Phase, Trial};
use outbox::Outbox;
use secrets::Secrets;
use state::{Journal, PutOff, State};
use system::{Activated, System};

/// What a poll came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Polled {
    /// The host already runs the hub's release.
    Current {
        /// Its serial.
        serial: u64,
    },
    /// The host is held: it does not take up the hub's release.
    Held {
        /// Its serial.
        serial: u64,
    },
    /// The host took up the hub's release.
    Updated {
        /// Its serial.
        serial: u64,
        /// What it runs now.
        toplevel: StorePath,
    },
    /// The host went back to what it ran before.
    WentBack {
        /// What it runs now.
        toplevel: StorePath,
    },
    /// The machine is going down.
    Restarting,
}

/// The first pause after a release was put off, in seconds; it doubles each time.
const FIRST_PAUSE: i64 = 60;
/// The longest such pause, in seconds.
const LONGEST_PAUSE: i64 = 6 * 3600;
/// How long a notification may take.
const NOTIFICATION: Duration = Duration::from_secs(20);
/// How long a machine may take to go down.
const GOING_DOWN: Duration = Duration::from_secs(300);

/// Why nothing was done: another run of the agent does it.
#[derive(Debug, thiserror::Error)]
#[error("another run of the agent is at work: it holds {}", lock.display())]
pub struct AtWork {
    lock: PathBuf,
}

impl AtWork {
    /// The exit status that says so, which is no failure of the agent's unit: a release that has the unit for the first time
    /// starts it while it is tried out. (`EX_TEMPFAIL` of `sysexits.h`.)
    pub const EXIT_STATUS: u8 = 75;
}

/// One poll: delivers what is queued, takes up a new release, reports.
///
/// An error is everything that leaves the host with another system than the hub's release asks for, or the hub without
/// the report of it. `asked` says that somebody wants it now: pauses after failures don't count.
pub fn run(config: &AgentConfig, asked: bool) -> Result<Polled> {
    session(config, |agent| {
        let file = config.state_dir.join(ASKED);
        let asked = asked || file.exists();
        files::remove(&file)?;
        agent.poll(asked)
    })
}

/// Goes back to the system that ran before the one that was last taken up, or to `target`: under the watchdog, as with
/// any other, but also if the hub is out of reach.
///
/// The release is not taken up again; going back once more takes that back. An error is everything that leaves the host
/// with another system than the one that was wanted, or the hub without the report of it.
pub fn rollback(config: &AgentConfig, target: Option<StorePath>) -> Result<Polled> {
    session(config, |agent| agent.roll_back(target))
}

/// A run of the agent: brings to an end what an earlier one left, does its work, and delivers what is to be said of it.
fn session(config: &AgentConfig, work: impl FnOnce(&mut Agent) -> Result<Polled>) -> Result<Polled> {
    prepare(&config.state_dir)?;
    let lock = lock_file(config);
    let held = files::try_lock(&lock)?.ok_or_else(|| AtWork { lock: lock.clone() })?;
    write_pid(&held)?;
    mend_journal(config)?;
    match resume_as_begun(config) {
        Ok(Resumed::GoingDown) => return Ok(Polled::Restarting),
        Ok(Resumed::Over) => {}
        Err(error) => return Err(tell(config, error)),
    }
    let mut agent = Agent::new(config)?;
    let worked = work(&mut agent);
    // also after a failure: the report of it is what the hub waits for
    let delivered = agent.deliver();
    let worked = match (worked, delivered) {
        (Ok(worked), Ok(())) => Ok(worked),
        (Ok(_), Err(error)) => Err(error.context("the report is not delivered yet; the next run tries again")),
        (Err(error), _) => Err(error),
    };
    // whether the report got through or not: this is what it spoke of
    if agent.restart_if_due()? == Resumed::GoingDown { Ok(Polled::Restarting) } else { worked }
}

/// Reports why what an earlier run left can't be brought to an end, which keeps the host from all that comes later: once, not with every
/// run. Gives the error back.
fn tell(config: &AgentConfig, error: Error) -> Error {
    let told = Agent::new(config).and_then(|mut agent| {
        let (serial, wanted) = (agent.journal.state.serial, agent.journal.state.wanted.clone());
        agent.complain(serial, Stage::Boot, wanted, anyhow!("{error:#}"))?;
        let hub = config.hub.connect_patiently()?;
        agent.deliver_over(&hub)?;
        agent.show_presence(&hub)
    });
    match told {
        Ok(()) => error,
        Err(untold) => error.context(format!("the report is not delivered yet ({untold:#})")),
    }
}

/// What the watchdog does: ends a run that has taken too long, together with its activation, and brings what it left to an
/// end.
pub fn watchdog(config: &AgentConfig) -> Result<()> {
    prepare(&config.state_dir)?;
    let lock = lock_file(config);
    let deadline = Instant::now() + GOING_DOWN;
    let held = loop {
        if let Some(held) = files::try_lock(&lock)? {
            break held;
        }
        if let Some(pid) = fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse().ok()) {
            eprintln!("the agent (process {pid}) did not confirm the system in time: ending it");
            // it may have ended by itself by now
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if Instant::now() >= deadline {
            bail!("the agent's run can't be ended: it holds {}", lock.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    write_pid(&held)?;
    mend_journal(config)?;
    if config.system.has_systemd() {
        units::stop_activation();
    }
    let mut agent = Agent::new(config)?;
    if agent.resume()? == Resumed::Over {
        agent.deliver()?;
    }
    Ok(())
}

/// Puts the host's secrets in place after a boot, before anything that may need them; where they are in place already, they are
/// given to owners that came in the meantime.
pub fn put_secrets_in_place(config: &AgentConfig) -> Result<()> {
    let secrets = Secrets::new(config);
    if !secrets.in_place() {
        secrets.place_for(System::new(config).running().as_ref())?;
        // nothing has read others since the machine was started
        secrets.restarted()?;
    }
    secrets.give_away()
}

/// What the machine waits for before it calls a boot complete: that a system which has to prove itself by this boot has done so.
/// Where none has to, there is nothing to wait for; so an activation that starts this does not wait for the run that waits
/// for it.
pub fn booted(config: &AgentConfig) -> Result<()> {
    prepare(&config.state_dir)?;
    let lock = lock_file(config);
    // a run that has the lock has seen to that
    if let Some(_held) = files::try_lock(&lock)? {
        mend_journal(config)?;
    }
    while is_to_be_proven(&Journal::open(&config.state_dir)?.state.phase) {
        // a run that has it comes to the same end, and is watched itself
        let Some(held) = files::try_lock(&lock)? else {
            std::thread::sleep(Duration::from_millis(200));
            continue;
        };
        write_pid(&held)?;
        if resume_as_begun(config)? == Resumed::GoingDown {
            bail!("the booted system does not work: the machine is restarting");
        }
        break;
    }
    match Journal::open(&config.state_dir)?.state.phase {
        phase @ (Phase::Leaving { .. } | Phase::Proving { .. }) => {
            bail!("the booted system has not shown that it works: the agent is still {}", phase.name())
        }
        _ => Ok(()),
    }
}

/// Whether a system waits for a boot to prove itself, or is about to.
fn is_to_be_proven(phase: &Phase) -> bool {
    matches!(phase, Phase::Staged { .. } | Phase::Waiting { .. } | Phase::Rebooting { .. } | Phase::Proving { .. })
}

/// Makes what every run needs.
fn prepare(state_dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot create {}", state_dir.display()))
}

/// Where fetched releases are, in the state directory.
const RELEASES: &str = "releases";
/// The log of the attempt that is under way, or was the last, in the state directory.
const LOG: &str = "attempt.log";
/// The file in the state directory that says that somebody wants a poll now.
const ASKED: &str = "asked";

/// Has the next run know that somebody wants it.
pub fn ask(state_dir: &Path) -> Result<()> {
    prepare(state_dir)?;
    let file = state_dir.join(ASKED);
    fs::write(&file, "").with_context(|| format!("cannot write {}", file.display()))
}

/// The lock that keeps two runs apart; it holds the process id of the one that has it.
fn lock_file(config: &AgentConfig) -> PathBuf {
    config.state_dir.join("lock")
}

/// Whether a run is at work. Asked of the kernel: who tried to take the lock, if only for a moment, could keep a run from
/// beginning.
fn is_at_work(config: &AgentConfig) -> bool {
    let lock = lock_file(config);
    let (Ok(holder), Ok(metadata)) = (fs::read_to_string(&lock), fs::metadata(&lock)) else { return false };
    let inode = format!(":{}", metadata.ino());
    // NUMBER: FLOCK ADVISORY WRITE PID DEVICE:INODE START END (proc_locks)
    fs::read_to_string("/proc/locks").unwrap_or_default().lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, "FLOCK", _, _, pid, place, ..] if pid == holder.trim() && place.ends_with(&inode))
    })
}

/// Says who holds the lock.
fn write_pid(mut lock: &fs::File) -> Result<()> {
    let context = "cannot write to the agent's lock";
    lock.set_len(0).context(context)?;
    // without a process id the watchdog can't end a run that is stuck; on a full disk that has to do
    let written = lock.write_all(format!("{}\n", std::process::id()).as_bytes());
    written.or_else(|e| if e.kind() == std::io::ErrorKind::StorageFull { Ok(()) } else { Err(e) }).context(context)
}

/// Begins the journal anew where the disk has lost both copies of it. What else is in the state directory says how far the agent
/// had got: a system on trial is given up, as nobody knows whether it works.
fn mend_journal(config: &AgentConfig) -> Result<()> {
    let state_dir = &config.state_dir;
    let Err(error) = Journal::open(state_dir) else { return Ok(()) };
    if error.downcast_ref::<state::Damaged>().is_none() {
        return Err(error);
    }
    eprintln!("{error:#}, and so is its copy: beginning a new one");
    let system = System::new(config);
    let mut state = State::default();
    state.serial = numbers(&state_dir.join(RELEASES))?.last().copied().unwrap_or(0);
    state.attempts = Outbox::open(state_dir)?.attempts(state.serial)?;
    if let (Some(toplevel), Some(previous)) = (system.running(), system.kept("previous")) {
        let (boot, standby) = (system.boot_id(), system.kept("standby").or_else(|| Some(previous.clone())));
        let (attempt, previous, failed_units) = (Attempt::default(), Some(previous), Vec::new());
        let trial = Trial { attempt, toplevel, previous, standby, boot, failed_units, hub: true };
        let reason = "the agent's journal was lost while a system was tried out".to_owned();
        state.phase = Phase::Returning { trial, stage: Stage::Activate, reason };
    }
    Journal::begin_anew(state_dir, state)
}

/// Brings to an end what an earlier run left, by the configuration that it began with: the one that is there now may be part
/// of what has to be undone.
fn resume_as_begun(config: &AgentConfig) -> Result<Resumed> {
    let recorded = config.state_dir.join(system::RECORDED_CONFIG);
    let on_trial = Journal::open(&config.state_dir)?.state.phase.trial().is_some();
    match AgentConfig::read(&recorded) {
        Ok(recorded) if on_trial && recorded.state_dir == config.state_dir => {
            // but the system on trial has to show that it works with its own
            let recorded = AgentConfig { file: config.file.clone(), ..recorded };
            Agent::new(&recorded)?.resume()
        }
        _ => Agent::new(config)?.resume(),
    }
}

/// Reads what the hub publishes. Before anything in it is believed, it must be signed by one of `signers`, unless there
/// are none.
fn read_manifest(hub: &Connection, signers: &[SigningKey]) -> Result<Manifest> {
    let text = hub.read(manifest::FILE, manifest::LIMIT)?;
    if !signers.is_empty() {
        let file = manifest::signature_file(Manifest::claimed_serial(&text)?);
        let signature = hub.read(&file, sign::LIMIT).context("the manifest is not signed")?;
        sign::verify(&text, &signature, signers).context("the manifest is refused")?;
    }
    Manifest::parse(&text)
}

/// Whether a failed build may work another time: what it lacked was outside of the release.
fn is_transient(log: &str) -> bool {
    // in the words of Nix 2.3 to 2.34, curl and the kernel
    const SIGNS: [&str; 9] = [
        "unable to download",
        "Could not resolve host",
        "Couldn't resolve host",
        "cannot connect to",
        "Connection refused",
        "Connection timed out",
        "Network is unreachable",
        "No space left on device",
        "error: interrupted by the user",
    ];
    SIGNS.iter().any(|sign| log.contains(sign))
}

/// Whether anything is left to be done in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resumed {
    /// No.
    Over,
    /// The machine is going down.
    GoingDown,
}

/// A release as it is taken up.
struct Release<'a> {
    manifest: &'a Manifest,
    tree: PathBuf,
    /// The secrets, encrypted.
    secrets: PathBuf,
    /// Whether the tree has other inputs than the release, which the host has updated by itself.
    other_inputs: bool,
}

/// The parts of a run.
struct Agent<'a> {
    config: &'a AgentConfig,
    system: System<'a>,
    secrets: Secrets,
    outbox: Outbox,
    log: Log,
    journal: Journal,
    /// Whether somebody at the machine wants it to stay as it is.
    held: bool,
    /// Why the last attempt of this run ended short of the new system.
    trouble: Option<Error>,
}

/// What a report says beyond who says it and when.
struct Said {
    serial: u64,
    outcome: Outcome,
    stage: Stage,
    reason: Option<String>,
    note: Option<String>,
    wanted: Option<StorePath>,
    built: Option<StorePath>,
    previous: Option<StorePath>,
    inputs: Vec<InputChange>,
}

impl Said {
    /// An end of which there is nothing more to say.
    fn plain(serial: u64, outcome: Outcome, stage: Stage, wanted: Option<StorePath>) -> Self {
        let (inputs, wanted) = (Vec::new(), wanted);
        Self { serial, outcome, stage, reason: None, note: None, wanted, built: None, previous: None, inputs }
    }
}

impl<'a> Agent<'a> {
    fn new(config: &'a AgentConfig) -> Result<Self> {
        let state_dir = &config.state_dir;
        files::clear_temporaries(state_dir)?;
        state::keep_ballast(state_dir);
        Ok(Self {
            config,
            system: System::new(config),
            secrets: Secrets::new(config),
            outbox: Outbox::open(state_dir)?,
            log: Log::open(&state_dir.join(LOG))?,
            journal: Journal::open(state_dir)?,
            held: !matches!(hold::read(state_dir), Ok(None)),
            trouble: None,
        })
    }

    /// Brings to an end what an earlier run left.
    fn resume(&mut self) -> Result<Resumed> {
        let before = self.journal.state.phase.clone();
        let event =
            Event::Woke { boot: self.system.boot_id(), running: self.system.running(), booted: self.system.booted() };
        let phase = before.next(event)?;
        match (&before, &phase) {
            (Phase::Idle | Phase::Reported { .. }, _) => self.log.clear()?,
            (Phase::Waiting { .. }, Phase::Waiting { .. }) => {}
            _ => self.log.say(&format!(
                "going on where an earlier run stopped: {} -> {}",
                before.name(),
                phase.name()
            ))?,
        }
        if phase != before {
            self.enter(phase)?;
        }
        self.drive(None)
    }

    /// Asks the hub and takes up what is new.
    fn poll(&mut self, asked: bool) -> Result<Polled> {
        let hub = self.config.hub.connect_patiently()?;
        self.answer_to_name();
        // a hub that takes no reports may still have the release that mends that; the run ends with another try
        if let Err(error) = self.deliver_over(&hub) {
            self.log.say(&format!("cannot deliver the reports of earlier runs: {error:#}"))?;
        }
        self.show_presence(&hub)?;
        let manifest = match read_manifest(&hub, &self.config.signers) {
            Ok(manifest) => manifest,
            Err(error) => return Err(self.complain(self.journal.state.serial, Stage::Manifest, None, error)?),
        };
        let now = Timestamp::now();
        if let Err(error) = manifest.check_for(&self.config.host, self.journal.state.seen(), now) {
            // what is reported has no time in it: with each poll it would be another one
            let error = self.complain(manifest.serial, Stage::Manifest, Some(manifest.toplevel), error)?;
            return Err(error.context(format!("the hub's release is refused (the time here is {now})")));
        }
        let serial = manifest.serial;
        let state = &mut self.journal.state;
        if !manifest.is_newer_than(state.seen()) {
            match state.phase {
                Phase::Waiting { .. } => {
                    self.take_back_complaint(&manifest, Outcome::Success, Stage::Reboot)?;
                    return Ok(Polled::Current { serial });
                }
                Phase::Reported { outcome: outcome @ (Outcome::Success | Outcome::Autoupdate) } => {
                    self.take_back_complaint(&manifest, outcome, Stage::Done)?;
                    drop(hub);
                    return self.update_inputs(&manifest, outcome, asked);
                }
                Phase::Reported { .. } => {
                    let gave_up = state.end.as_ref().is_some_and(Report::gave_up);
                    self.repeat_end()?;
                    let came_to = if gave_up { "was given up here" } else { "failed here before" };
                    bail!("release {serial} {came_to}; waiting for a newer one")
                }
                _ if self.held => return Ok(Polled::Held { serial }),
                _ => {}
            }
            if let Some(put_off) = state.put_off.filter(|_| !asked)
                && let Some(left) = left(put_off)
            {
                bail!("release {serial} could not be taken up {} times; trying again in {left} s", put_off.times);
            }
        } else if self.held {
            return Ok(Polled::Held { serial });
        } else {
            if serial > state.serial {
                state.attempts = 0;
            }
            state.serial = serial;
            state.complaint = None;
            state.put_off = None;
        }
        state.started = Some(Timestamp::now());
        state.created = Some(manifest.created);
        state.wanted = Some(manifest.toplevel.clone());
        state.reboot = manifest.policy.reboot;
        if !matches!(state.phase, Phase::Waiting { .. }) {
            state.phase = Phase::Idle;
        }
        self.journal.save()?;
        self.log.clear()?;
        self.log.say(&format!("release {serial} for {}: {}", manifest.host, manifest.toplevel))?;
        let releases = self.config.state_dir.join(RELEASES);
        let fetched = match fetch::fetch(&hub, &manifest, &releases) {
            Ok(fetched) => fetched,
            Err(error) => {
                let error = error.context(format!("cannot fetch release {serial}"));
                return Err(self.complain(serial, Stage::Fetch, Some(manifest.toplevel), error)?);
            }
        };
        // the build may take hours: no idle connection meanwhile
        drop(hub);
        self.log.say(&format!("fetched and verified {} files", manifest.files.len()))?;
        let own = self.journal.state.own_lock.as_ref();
        let updated = self_update::with_own_lock(&manifest, &fetched.tree, own, &self.config.state_dir)?;
        let goal = if updated.is_some() { Goal::SelfUpdate } else { Goal::Release };
        let other_inputs = updated.is_some();
        let Fetched { tree, secrets } = fetched;
        let tree = updated.as_ref().map_or(tree, SourceTree::path);
        self.take_up(Event::Fetched { goal }, &Release { manifest: &manifest, tree, secrets, other_inputs })
    }

    /// Forgets which releases were seen under another name: serials are counted for each name.
    fn answer_to_name(&mut self) {
        let state = &mut self.journal.state;
        if state.host.as_ref().is_some_and(|host| host != &self.config.host) {
            state.serial = 0;
            state.created = None;
            state.attempts = 0;
        }
        state.host = Some(self.config.host.clone());
    }

    /// Looks for newer inputs of the release that runs, if that is wanted, and takes them up.
    fn update_inputs(&mut self, manifest: &Manifest, outcome: Outcome, asked: bool) -> Result<Polled> {
        let serial = manifest.serial;
        let tree = self.release_dir(serial).join(TREE_NAME);
        let state = &self.journal.state;
        let waits = !asked && state.put_off.and_then(left).is_some();
        if self.held || waits || !self_update::is_wanted(manifest) || !tree.is_dir() {
            return Ok(Polled::Current { serial });
        }
        let state_dir = &self.config.state_dir;
        let found = match self_update::update(manifest, &tree, state.own_lock.as_ref(), state_dir, &mut self.log) {
            Ok(found) => Ok(found.filter(|(_, lock)| self.journal.state.refused_lock.as_ref() != Some(lock))),
            Err(error) => {
                // the host runs what it should: what it could not find out it will ask again
                let reason = format!("{error:#}");
                self.log.say(&reason)?;
                Err(reason)
            }
        };
        let (updated, _) = match found {
            Ok(Some(found)) => found,
            nothing => {
                self.remark(manifest, outcome, nothing.err())?;
                return Ok(Polled::Current { serial });
            }
        };
        self.journal.state.started = Some(Timestamp::now());
        self.log.say("there are newer inputs")?;
        let secrets = self.release_dir(serial).join(fetch::SECRETS);
        self.take_up(Event::Updated, &Release { manifest, tree: updated.path(), secrets, other_inputs: true })
    }

    /// Where a fetched release is.
    fn release_dir(&self, serial: u64) -> PathBuf {
        self.config.state_dir.join(RELEASES).join(serial.to_string())
    }

    /// Takes up what is there.
    fn take_up(&mut self, event: Event, release: &Release) -> Result<Polled> {
        let serial = release.manifest.serial;
        self.enter(self.journal.state.phase.next(event)?)?;
        let driven = self.drive(Some(release))?;
        if let Some(error) = self.trouble.take() {
            return Err(error.context(format!("release {serial}")));
        }
        match self.system.running() {
            _ if driven == Resumed::GoingDown => Ok(Polled::Restarting),
            Some(toplevel) => Ok(Polled::Updated { serial, toplevel }),
            None => bail!("release {serial} is taken up, but nothing says which system runs"),
        }
    }

    /// Goes back to the system that ran before, or to `target`.
    fn roll_back(&mut self, target: Option<StorePath>) -> Result<Polled> {
        let state = &self.journal.state;
        let target = match (target, &state.phase) {
            (Some(target), _) => target,
            (None, Phase::Waiting { trial }) => {
                trial.previous.clone().context("there is no earlier system on record: name one by --to")?
            }
            (None, _) => state.before.clone().context("there is no earlier system on record: name one by --to")?,
        };
        if !target.as_path().join("bin/switch-to-configuration").is_file() {
            bail!("{target} is no system that is here");
        }
        if self.system.running().as_ref() == Some(&target) {
            bail!("{target} runs already");
        }
        let given_up = state.phase.trial().map(|trial| trial.previous.as_ref());
        if given_up.is_some_and(|previous| previous != Some(&target)) {
            bail!("a system waits for a restart here: give that up first, by a rollback without --to");
        }
        let waits = given_up.is_some();
        // going back from where somebody went back to: the release is taken up again
        let returns = state.end.as_ref().is_some_and(|end| {
            let went_back = end.outcome == Outcome::Rollback && end.built == self.system.running();
            went_back && end.previous.as_ref() == Some(&target)
        });
        let goal = if returns { Goal::Release } else { Goal::Rollback };
        let phase = state.phase.next(Event::Recalled { toplevel: target.clone(), goal })?;
        self.journal.state.started = Some(Timestamp::now());
        self.log.clear()?;
        self.log.say(&format!("somebody at the machine wants {target} back"))?;
        self.enter(phase)?;
        let driven = self.drive(None)?;
        let running = self.system.running();
        match self.trouble.take() {
            // the one who gave up a system that was not booted yet wanted this end
            Some(_) if waits && running.as_ref() == Some(&target) => {}
            Some(error) => return Err(error),
            None => {}
        }
        if driven == Resumed::GoingDown { Ok(Polled::Restarting) } else { Ok(Polled::WentBack { toplevel: target }) }
    }

    /// Enters a phase. On a disk that takes nothing more, what keeps the host in reach goes on without it: the phase on disk is
    /// one that leads to the same.
    fn enter(&mut self, phase: Phase) -> Result<()> {
        let before = self.journal.state.phase.clone();
        let Err(error) = self.journal.enter(phase.clone()) else { return Ok(()) };
        let error = error.context("cannot write the agent's journal");
        match phase {
            Phase::Returning { .. } | Phase::Settling { .. } => {
                // no log can be written either
                eprintln!("{error:#}: going back all the same");
                Ok(())
            }
            Phase::Confirmed { trial, .. } if matches!(before, Phase::Testing { .. } | Phase::Proving { .. }) => {
                let reason = format!("{error:#}");
                self.journal.state.phase = Phase::Returning { trial, stage: Stage::Confirm, reason };
                Ok(())
            }
            _ => {
                self.journal.state.phase = before;
                Err(error)
            }
        }
    }

    /// Does what the phase calls for, until there is nothing left to do.
    fn drive(&mut self, release: Option<&Release>) -> Result<Resumed> {
        while let Some(action) = self.journal.state.phase.action() {
            let Some(event) = self.perform(action, release)? else { return Ok(Resumed::GoingDown) };
            let phase = self.journal.state.phase.next(event.clone())?;
            if phase == self.journal.state.phase {
                bail!("nothing can be done about it now: {event:?}; the next run tries again");
            }
            self.enter(phase)?;
        }
        self.system.disarm_watchdog();
        if !matches!(self.journal.state.phase, Phase::Waiting { .. }) {
            for root in ["previous", "result", system::DERIVATION] {
                self.system.release(root)?;
            }
        }
        Ok(Resumed::Over)
    }

    /// Restarts the machine, if a system waits for that and this is the time.
    fn restart_if_due(&mut self) -> Result<Resumed> {
        // who wants the machine to stay as it is does not want it to restart either
        if self.held || !matches!(self.journal.state.phase, Phase::Waiting { .. }) {
            return Ok(Resumed::Over);
        }
        let asked_for = if self.journal.state.reboot { RebootPolicy::WhenNeeded } else { RebootPolicy::Never };
        let due = match self.config.reboot.policy.unwrap_or(asked_for) {
            RebootPolicy::Never => false,
            RebootPolicy::WhenNeeded => true,
            RebootPolicy::Window => self.config.reboot.window.is_some_and(|window| window.is_open(Zoned::now().time())),
        };
        if !due {
            return Ok(Resumed::Over);
        }
        self.enter(self.journal.state.phase.next(Event::RebootDue)?)?;
        self.drive(None)
    }

    /// Does one thing; `None` if the machine is going down. An error leaves the phase for the next run.
    fn perform(&mut self, action: Action, release: Option<&Release>) -> Result<Option<Event>> {
        let phase = self.journal.state.phase.clone();
        let trial = || phase.trial().context("a phase without a trial").cloned();
        let event = match action {
            Action::Build => self.build(release.context("there is no release to build")?),
            Action::Check => {
                let Phase::Realised { attempt, toplevel } = phase else { bail!("there is nothing to check") };
                self.look(attempt, toplevel, release)
            }
            Action::Try => self.try_out(&trial()?),
            Action::Prove => self.prove(&trial()?),
            Action::Return => self.go_back(&trial()?),
            Action::Settle => self.settle(&trial()?),
            Action::Keep => {
                let toplevel = trial()?.toplevel;
                let kept = self.system.boot_always(&toplevel, &mut self.log);
                match kept.and_then(|()| self.secrets.accept()) {
                    Ok(()) => Event::Kept,
                    Err(error) => failed(error.context("cannot make the system the one that is booted")),
                }
            }
            Action::PrepareBoot => {
                let trial = trial()?;
                // nothing is known to boot but the system itself
                let standby = trial.standby.as_ref().unwrap_or(&trial.toplevel);
                match self.system.boot_once(&trial.toplevel, standby, &mut self.log) {
                    Ok(()) => Event::Prepared,
                    Err(error) => failed(error.context("cannot make the system the one that is booted next")),
                }
            }
            Action::Reboot => return self.go_down(Some(&trial()?.toplevel)),
            Action::Leave => {
                let trial = trial()?;
                if let Err(error) = self.boot_as_before(&trial) {
                    return Ok(Some(failed(error)));
                }
                return self.go_down(None);
            }
            Action::Report => {
                self.report()?;
                Event::Told
            }
        };
        Ok(Some(event))
    }

    fn build(&mut self, release: &Release) -> Event {
        match self.system.build(release.manifest, &release.tree, release.other_inputs, &mut self.log) {
            Ok(toplevel) => Event::Built { toplevel },
            Err(error) => {
                let log = self.log.content().unwrap_or_default();
                refused(Stage::Build, &error, is_transient(&String::from_utf8_lossy(&log)))
            }
        }
    }

    /// Looks whether the machine is fit to try a system out.
    fn look(&mut self, attempt: Attempt, toplevel: StorePath, release: Option<&Release>) -> Event {
        let previous = self.system.running();
        if let Some(Release { manifest, secrets, .. }) = release
            && let Err(error) = self.secrets.check(manifest, secrets)
        {
            return refused(Stage::Check, &error, false);
        }
        let prepared = match release {
            Some(Release { manifest, secrets, .. }) => {
                self.secrets.prepare(manifest, secrets, &toplevel, previous.as_ref())
            }
            None => self.secrets.prepare_return(&toplevel, previous.as_ref()),
        };
        if let Err(error) = prepared {
            return refused(Stage::Check, &error.context("cannot keep the release's secrets"), true);
        }
        let standby = match (self.system.booted(), &previous) {
            (Some(booted), Some(running)) if boot::differs(booted.as_path(), running.as_path()) => Some(booted),
            _ => previous.clone(),
        };
        let boot = self.system.boot_id();
        let mut trial = Trial { attempt, toplevel, previous, standby, boot, failed_units: Vec::new(), hub: true };
        if trial.previous.as_ref() == Some(&trial.toplevel) && self.system.boots(&trial.toplevel) {
            // where even this can't be written, the next step fails
            let _ = self.log.say("this system runs already");
            return self.change_secrets(trial);
        }
        if let Err(error) = self.system.check_space() {
            return refused(Stage::Check, &error, true);
        }
        if let Err(error) = self.system.ask_system(&trial.toplevel, &mut self.log) {
            return refused(Stage::Check, &error, false);
        }
        if let Err(error) = self.reach_hub(&self.config.hub) {
            // a host whose hub is away can't tell whether it lost it: it waits until the hub is back, unless somebody at the
            // machine knows better
            if attempt.goal != Goal::Rollback {
                let error = error.context("a system is tried out only while the hub can be reached");
                return refused(Stage::Check, &error, true);
            }
            trial.hub = false;
        }
        let armed = self.system.failed_units().and_then(|failed| {
            if !failed.is_empty() {
                self.log.say(&format!("units that have failed before: {}", failed.join(", ")))?;
            }
            trial.failed_units = failed;
            // what may be needed again must not be collected
            for (path, name) in [(&trial.previous, "previous"), (&trial.standby, "standby")] {
                if let Some(path) = path {
                    self.system.keep(path, name, &mut self.log)?;
                }
            }
            Ok(())
        });
        match armed {
            Ok(()) => Event::Ready { trial },
            Err(error) => refused(Stage::Check, &error, true),
        }
    }

    /// Puts the new secrets of the system that runs in place. If what reads them does not start with them, it gets those back
    /// that there were.
    fn change_secrets(&mut self, trial: Trial) -> Event {
        let unplaced = |error: Error| refused(Stage::Check, &error.context("cannot put the secrets in place"), true);
        if let Err(error) = self.secrets.place_trial().and_then(|()| self.secrets.give_away()) {
            return unplaced(error);
        }
        let Err(error) = self.restart_readers() else {
            return self.secrets.accept().map_or_else(unplaced, |()| Event::Runs { trial });
        };
        let back = self.secrets.place_for(Some(&trial.toplevel)).and_then(|()| self.secrets.give_away());
        let error = match back.and_then(|()| self.restart_readers()).and_then(|()| self.secrets.discard()) {
            Ok(()) => error.context("the secrets that there were are back in place"),
            Err(lost) => error.context(format!("the secrets that there were can't be put back: {lost:#}")),
        };
        refused(Stage::Check, &error, false)
    }

    /// Restarts what reads secrets that have changed.
    fn restart_readers(&mut self) -> Result<()> {
        let restarted = self.system.restart(&self.secrets.to_restart(), &mut self.log);
        restarted.context("what reads a secret does not start with the new one")?;
        self.secrets.restarted()
    }

    /// The longest that a trial of a system takes, in seconds.
    fn trial_seconds(&self, toplevel: &StorePath) -> u64 {
        let confirm = &self.config.confirm;
        // the hub is reached by the configuration that the system brings along
        let brought = self.config.of_system(toplevel).map_or(0, |brought| brought.hub.timeout);
        self.config.system.activation_timeout
            + confirm.settle
            + confirm.hub_seconds(brought.max(self.config.hub.timeout))
            + confirm.check_seconds()
            + confirm.margin
    }

    /// Activates a system for a test, under the watchdog, and sees whether it works.
    fn try_out(&mut self, trial: &Trial) -> Event {
        let unhealthy = |stage, error: Error| Event::Unhealthy { stage, reason: format!("{error:#}") };
        let had_timer = match self
            .system
            .arm_watchdog(self.trial_seconds(&trial.toplevel))
            .and_then(|()| self.system.has_timer())
        {
            Ok(had_timer) => had_timer,
            Err(error) => return unhealthy(Stage::Activate, error.context("cannot arm the watchdog")),
        };
        if let Err(error) = self.secrets.place_trial() {
            return unhealthy(Stage::Activate, error.context("cannot put the secrets in place"));
        }
        match self.system.activate(&trial.toplevel, system::Action::Test, &mut self.log) {
            Err(error) => return unhealthy(Stage::Activate, error.context("the activation failed")),
            Ok(Activated::UnitsFailed) if self.config.confirm.failed_units == FailedUnits::Refuse => {
                return unhealthy(Stage::Activate, self.name_failed(trial).context("the activation failed"));
            }
            Ok(_) => {}
        }
        // the activation may have brought their owners, and has restarted nothing that has not changed itself
        if let Err(error) = self.secrets.give_away().and_then(|()| self.restart_readers()) {
            return unhealthy(Stage::Activate, error);
        }
        match self.watch(trial, had_timer) {
            Ok(()) => Event::Healthy { reboot: self.system.needs_boot(&trial.toplevel) },
            Err(error) => unhealthy(Stage::Confirm, error),
        }
    }

    /// Says which units failed that had not before.
    fn name_failed(&self, trial: &Trial) -> Error {
        match self.new_failures(trial) {
            Ok(units) if !units.is_empty() => anyhow!("units failed: {}", units.join(", ")),
            Ok(_) => anyhow!("units failed (status 4)"),
            Err(error) => error.context("units failed (status 4)"),
        }
    }

    fn new_failures(&self, trial: &Trial) -> Result<Vec<String>> {
        Ok(trial.new_failures(self.system.failed_units()?))
    }

    /// Watches a system for a while: the hub can be reached, no unit fails that did not before, the checks pass.
    fn watch(&mut self, trial: &Trial, had_timer: bool) -> Result<()> {
        let confirm = &self.config.confirm;
        let settled =
            Instant::now() + Duration::from_secs(if self.config.system.has_systemd() { confirm.settle } else { 0 });
        // by the configuration that every later run will have
        let config =
            AgentConfig::read(&self.config.file).context("the new system has no sound configuration for the agent")?;
        if trial.hub {
            self.reach_hub(&config.hub)?;
        }
        for check in &confirm.checks {
            health::check(check, &mut self.log)?;
        }
        std::thread::sleep(settled.saturating_duration_since(Instant::now()));
        let failures = self.new_failures(trial)?;
        if !failures.is_empty() {
            let units = failures.join(", ");
            if confirm.failed_units == FailedUnits::Refuse {
                bail!("units failed: {units}");
            }
            self.log.say(&format!("units failed, which is accepted: {units}"))?;
        }
        if had_timer && !self.system.has_timer()? {
            bail!("the new system would not ask the hub again: {} is not active any more", confirm.timer);
        }
        Ok(())
    }

    /// Sees whether the system that was booted works.
    fn prove(&mut self, trial: &Trial) -> Event {
        let armed = self.system.arm_watchdog(self.trial_seconds(&trial.toplevel));
        let watched = armed.and_then(|()| put_secrets_in_place(self.config)).and_then(|()| self.watch(trial, false));
        match watched {
            Ok(()) => Event::Healthy { reboot: false },
            Err(error) => {
                Event::Unhealthy { stage: Stage::Boot, reason: format!("booted, it does not work: {error:#}") }
            }
        }
    }

    /// Sees that boot entry and profile name what was before.
    fn boot_as_before(&mut self, trial: &Trial) -> Result<()> {
        let Some(standby) = &trial.standby else { return Ok(()) };
        if self.system.boots(standby) {
            return Ok(());
        }
        let Err(error) = self.system.boot_always(standby, &mut self.log) else { return Ok(()) };
        // a boot loader's installer that has no room for the system that is given up makes none for any other
        if *standby == trial.toplevel || !self.system.forget_generations(&trial.toplevel, &mut self.log)? {
            return Err(error);
        }
        let _ = self.log.say(&format!("{error:#}: trying again without a boot entry for {}", trial.toplevel));
        self.system.boot_always(standby, &mut self.log)
    }

    /// Activates the recorded previous system again.
    fn go_back(&mut self, trial: &Trial) -> Event {
        let Some(previous) = &trial.previous else {
            return Event::Stuck { reason: "there is no earlier system to go back to".to_owned(), safe: false };
        };
        // a log that can't be written keeps nobody from going back
        let _ = self.log.say(&format!("going back to {previous}"));
        if let Err(error) = self.boot_as_before(trial) {
            return Event::Stuck { reason: format!("{error:#}"), safe: false };
        }
        self.place_secrets_of(previous);
        // what fails with the new system alone would pass for something that failed before, the next time
        if let Ok(failures) = self.new_failures(trial) {
            self.system.forget_failures(&failures);
        }
        // units that fail in the old system too are no reason to be stuck
        let activated = self.system.activate(previous, system::Action::Test, &mut self.log);
        self.hand_secrets_out();
        match activated {
            Ok(_) => Event::Restored { hub: self.reach_hub(&self.config.hub).is_ok() },
            Err(error) => Event::Stuck { reason: format!("{error:#}"), safe: self.reach_hub(&self.config.hub).is_ok() },
        }
    }

    /// Puts right what outlives a boot, in the recorded previous system, which a boot has activated: whatever of it has failed
    /// since has failed by itself.
    fn settle(&mut self, trial: &Trial) -> Event {
        if let Some(previous) = &trial.previous {
            let _ = self.log.say(&format!("the machine came up in {previous}: nothing has to be activated"));
            self.place_secrets_of(previous);
            self.hand_secrets_out();
        }
        match self.boot_as_before(trial) {
            Ok(()) => Event::Restored { hub: self.reach_hub(&self.config.hub).is_ok() },
            Err(error) => failed(error.context("cannot make what ran before the system that is booted")),
        }
    }

    /// Puts the secrets of the system in place that the host goes back to: without them it is still the one that the host can
    /// be reached in.
    fn place_secrets_of(&mut self, previous: &StorePath) {
        if let Err(error) = self.secrets.place_for(Some(previous)).and_then(|()| self.secrets.discard()) {
            let _ = self.log.say(&format!("cannot put its secrets back in place: {error:#}"));
        }
    }

    /// Gives secrets to their owners, and to those who have read others; what does not work is only said.
    fn hand_secrets_out(&mut self) {
        if let Err(error) = self.secrets.give_away().and_then(|()| self.restart_readers()) {
            let _ = self.log.say(&format!("{error:#}"));
        }
    }

    /// Has the machine go down, and waits for that.
    fn go_down(&mut self, next: Option<&StorePath>) -> Result<Option<Event>> {
        self.log.say("restarting the machine")?;
        if let Err(error) = self.system.go_down(next, &mut self.log) {
            return Ok(Some(failed(error)));
        }
        std::thread::sleep(GOING_DOWN);
        Ok(Some(failed(anyhow!("the machine did not go down within {} s", GOING_DOWN.as_secs()))))
    }

    /// Makes sure that the hub can be reached by a new connection: one lost probe is no lost network.
    fn reach_hub(&mut self, hub: &HubAddress) -> Result<()> {
        let tries = self.config.confirm.tries.max(1);
        for number in 1..=tries {
            let reached = hub.connect().and_then(|hub| hub.exists(manifest::FILE));
            match reached {
                Ok(_) => return self.log.say("the hub can be reached"),
                Err(error) => self.log.say(&format!("try {number} of {tries} to reach the hub: {error:#}"))?,
            }
            if number < tries {
                std::thread::sleep(Duration::from_secs(self.config.confirm.pause));
            }
        }
        bail!("the hub could not be reached ({tries} tries)")
    }

    /// Reports trouble that came before any attempt and may pass by itself: once, not with every poll. Gives the error
    /// back.
    fn complain(&mut self, serial: u64, stage: Stage, wanted: Option<StorePath>, error: Error) -> Result<Error> {
        let reason = format!("{error:#}");
        self.log.note(&format!("error: {reason}"))?;
        if self.journal.state.complaint.as_ref() != Some(&reason) {
            self.journal.state.complaint = Some(reason.clone());
            self.queue(Said { reason: Some(reason), ..Said::plain(serial, Outcome::Failure, stage, wanted) })?;
            self.journal.save()?;
        }
        Ok(error)
    }

    /// Says that the host runs its release after all, if the last thing that it said was a complaint.
    fn take_back_complaint(&mut self, manifest: &Manifest, outcome: Outcome, stage: Stage) -> Result<()> {
        if self.journal.state.complaint.take().is_some() {
            self.queue(Said::plain(manifest.serial, outcome, stage, Some(manifest.toplevel.clone())))?;
            self.journal.save()?;
        }
        Ok(())
    }

    /// Says once more how the last attempt ended, if the last thing that the host said was a complaint.
    fn repeat_end(&mut self) -> Result<()> {
        if self.journal.state.complaint.take().is_some()
            && let Some(end) = self.journal.state.end.clone()
        {
            let Report { outcome, stage, reason, wanted, built, previous, .. } = end;
            let plain = Said::plain(self.journal.state.serial, outcome, stage, wanted);
            self.queue(Said { reason, built, previous, ..plain })?;
            self.journal.save()?;
        }
        Ok(())
    }

    /// Reports what does not work beside the release that runs, or that this is over: once, not with every poll.
    fn remark(&mut self, manifest: &Manifest, outcome: Outcome, note: Option<String>) -> Result<()> {
        if self.journal.state.note != note {
            self.journal.state.note.clone_from(&note);
            let plain = Said::plain(manifest.serial, outcome, Stage::Done, Some(manifest.toplevel.clone()));
            let inputs = self.journal.state.last.as_ref().map_or_else(Vec::new, |last| last.inputs.clone());
            self.queue(Said { note, inputs, ..plain })?;
            self.journal.save()?;
        }
        Ok(())
    }

    /// Queues a report, with what was logged, under the next attempt's number.
    fn queue(&mut self, said: Said) -> Result<()> {
        let now = Timestamp::now();
        let report = Report {
            schema: report::SCHEMA,
            host: self.config.host.clone(),
            serial: said.serial,
            attempt: self.journal.state.attempts + 1,
            outcome: said.outcome,
            stage: said.stage,
            reason: said.reason,
            note: said.note,
            wanted: said.wanted,
            built: said.built,
            previous: said.previous,
            running: self.system.running(),
            started: self.journal.state.started.unwrap_or(now),
            finished: now,
            log: None,
            failed_units: self.system.failed_units().unwrap_or_default(),
            inputs: said.inputs,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // queued before the state moves on: a crash in between queues the same attempt again, in the same place
        let log = self.log.content()?;
        state::with_ballast(&self.config.state_dir, || self.outbox.add(&report, &log))?;
        self.journal.state.attempts += 1;
        self.journal.state.last = Some(report);
        Ok(())
    }

    /// Queues the report of the attempt that the phase tells of. What may be tried again and ends the same way again is
    /// not reported again.
    fn report(&mut self) -> Result<()> {
        let state = &mut self.journal.state;
        let (serial, wanted) = (state.serial, state.wanted.clone());
        let worked = |trial: Trial, stage| {
            let goal = trial.attempt.goal;
            let reason = (goal == Goal::Rollback).then(|| {
                let before = trial.previous.as_ref().map_or("the system", StorePath::base_name);
                format!("somebody at the machine gave up {before}")
            });
            let (outcome, built) = (goal.outcome(), Some(trial.toplevel));
            let previous = trial.previous;
            Said { reason, built, previous, ..Said::plain(serial, outcome, stage, wanted.clone()) }
        };
        let worked_out = !matches!(state.phase, Phase::Ended { .. });
        let mut before = None;
        let updated = state.phase.trial().is_some_and(|trial| trial.attempt.goal == Goal::SelfUpdate);
        let mut said = match state.phase.clone() {
            Phase::Booted { trial } => {
                before = trial.previous.clone().filter(|previous| previous != &trial.toplevel);
                worked(trial, Stage::Done)
            }
            Phase::Staged { trial } => worked(trial, Stage::Reboot),
            Phase::Ended { attempt, outcome, stage, reason, built, previous, retry } => {
                if attempt.goal == Goal::SelfUpdate {
                    if attempt.settled.is_none() {
                        // the release is taken up as it was published
                        state.own_lock = None;
                    } else if !retry {
                        state.refused_lock = self_update::tried(&self.config.state_dir);
                    }
                }
                self.log.note(&format!("error: {reason}"))?;
                self.trouble = Some(anyhow!("{reason}"));
                let repeated = state.complaint.as_ref() == Some(&reason);
                state.complaint = retry.then(|| reason.clone());
                let times = if retry { state.put_off.map_or(0, |put_off| put_off.times) + 1 } else { 0 };
                state.put_off = retry.then(|| PutOff { times, until: Timestamp::now() + pause(times) });
                if repeated && retry {
                    return Ok(());
                }
                Said { reason: Some(reason), built, previous, ..Said::plain(serial, outcome, stage, wanted) }
            }
            other => bail!("there is nothing to report in the state {}", other.name()),
        };
        if worked_out {
            self.journal.state.complaint = None;
            self.journal.state.put_off = None;
        }
        if updated {
            let (state_dir, tree) = (&self.config.state_dir, self.release_dir(serial).join(TREE_NAME));
            // what is not known is not said; the system works all the same
            said.inputs = self_update::changes(state_dir, &tree).unwrap_or_default();
            if said.stage == Stage::Done {
                match self_update::keep(state_dir, &tree) {
                    Ok(own) => self.journal.state.own_lock = Some(own),
                    Err(error) => self.log.say(&format!("cannot keep the lock of the new inputs: {error:#}"))?,
                }
            }
        }
        if let Some(before) = before {
            // without it nobody can go back, which is no reason not to go on
            match self.system.keep(&before, "before", &mut self.log) {
                Ok(()) => self.journal.state.before = Some(before),
                Err(error) => self.log.say(&format!("cannot keep {before}: {error:#}"))?,
            }
        }
        self.journal.state.note = None;
        self.log.say(&format!("release {serial}: {}", said.outcome.word()))?;
        self.notify(&said);
        self.queue(said)?;
        self.journal.state.end.clone_from(&self.journal.state.last);
        Ok(())
    }

    /// Tells whoever is at the machine. That this does not work is no reason for anything.
    fn notify(&mut self, said: &Said) {
        let [program, arguments @ ..] = self.config.notify.command.as_slice() else { return };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("BENTO_HOST", self.config.host.as_str())
            .env("BENTO_RELEASE", said.serial.to_string())
            .env("BENTO_OUTCOME", said.outcome.word())
            .env("BENTO_REASON", said.reason.as_deref().unwrap_or_default())
            .env("BENTO_REBOOT_NEEDED", if self.system.reboot_needed() { "1" } else { "" });
        if let Err(error) = self.log.run(&mut command, Some(NOTIFICATION)) {
            eprintln!("cannot notify: {error:#}");
        }
    }

    /// Delivers what this run has queued.
    fn deliver(&mut self) -> Result<()> {
        if self.outbox.is_empty()? {
            return Ok(());
        }
        let hub = self.config.hub.connect()?;
        self.deliver_over(&hub)?;
        self.show_presence(&hub)
    }

    /// Delivers what is queued.
    fn deliver_over(&mut self, hub: &Connection) -> Result<()> {
        if self.outbox.is_empty()? {
            return Ok(());
        }
        self.outbox.deliver(&self.config.host, hub, self.signer().as_ref())
    }

    /// Who signs what this host says. A key that can't sign is no reason to keep silent: the hub shows what is not signed as such.
    fn signer(&self) -> Option<Signer> {
        Signer::of_host(&self.config.hub.identity)
            .inspect_err(|error| eprintln!("what this host says is not signed: {error:#}"))
            .ok()
    }

    /// Tells the hub that this host is there, and what it runs. A hub that does not take it is no reason to do nothing.
    fn show_presence(&mut self, hub: &Connection) -> Result<()> {
        let presence = Presence {
            schema: report::SCHEMA,
            host: self.config.host.clone(),
            serial: self.journal.state.serial,
            running: self.system.running(),
            booted: self.system.booted(),
            reboot_needed: self.system.reboot_needed(),
            held: self.held,
            failed_units: self.system.count_failed_units(),
            interval: self.config.interval,
            time: Timestamp::now(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            signature: None,
        };
        let file = format!("{}/{}", outbox::LOGS, report::PRESENCE);
        let signed = || {
            let signature = match self.signer() {
                Some(signer) => Some(signer.sign_in(sign::PRESENCES, &presence.to_json()?)?),
                None => None,
            };
            Presence { signature, ..presence.clone() }.to_json()
        };
        match signed().and_then(|text| hub.replace(&file, &text)) {
            Ok(()) => Ok(()),
            Err(error) => self.log.say(&format!("cannot tell the hub that this host is there: {error:#}")),
        }
    }
}

/// The pause after so many failures in a row.
fn pause(times: u32) -> SignedDuration {
    let seconds = FIRST_PAUSE.saturating_mul(1 << times.saturating_sub(1).min(16));
    SignedDuration::from_secs(seconds.min(LONGEST_PAUSE))
}

/// How many seconds of a pause are left, if any are. One that is longer than any comes of a clock that was wrong.
fn left(put_off: PutOff) -> Option<i64> {
    let left = put_off.until.duration_since(Timestamp::now()).as_secs();
    (1..=LONGEST_PAUSE).contains(&left).then_some(left)
}

fn refused(stage: Stage, error: &Error, retry: bool) -> Event {
    Event::Refused { stage, reason: format!("{error:#}"), retry }
}

fn failed(error: Error) -> Event {
    Event::Failed { reason: format!("{error:#}") }
}
