//! The agent: runs on a host, takes up what the hub publishes, and says how it went.
//!
//! One run is one poll. What it does is a walk through the states of [`state::Phase`], each on disk before the step
//! that it allows; a run that finds a state from a run that was cut short first brings that to an end.

pub mod config;
pub mod fetch;
pub mod log;
pub mod machine;
pub mod outbox;
pub mod state;
pub mod system;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use jiff::Timestamp;

use crate::files;
use crate::manifest::{self, Manifest};
use crate::report::{self, Outcome, Presence, Report, Stage};
use crate::sign::{self, SigningKey};
use crate::ssh::Connection;
use crate::store_path::StorePath;

use config::AgentConfig;
use log::Log;
use outbox::Outbox;
use state::{Journal, Phase};
use system::{Action, System};

/// What a poll came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Polled {
    /// The host already runs the hub's release.
    Current {
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
}

/// One poll: delivers what is queued, takes up a new release, reports.
///
/// An error is everything that leaves the host with another system than the hub's release asks for, or the hub without
/// the report of it.
pub fn run(config: &AgentConfig) -> Result<Polled> {
    let state_dir = &config.state_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("cannot create {}", state_dir.display()))?;
    let lock = state_dir.join("lock");
    let _lock = files::try_lock(&lock)?
        .with_context(|| format!("another run of the agent is at work: it holds {}", lock.display()))?;
    files::clear_temporaries(state_dir)?;
    let journal = Journal::open(state_dir)?;
    let mut agent = Agent {
        config,
        system: System::new(config),
        outbox: Outbox::open(state_dir)?,
        log: Log::open(&state_dir.join("attempt.log"))?,
        journal,
    };
    agent.resume()?;
    let polled = agent.poll();
    // also after a failure: the report of it is what the hub waits for
    let delivered = agent.deliver();
    match (polled, delivered) {
        (Ok(polled), Ok(())) => Ok(polled),
        (Ok(_), Err(error)) => Err(error.context("the report is not delivered yet; the next run tries again")),
        (Err(error), _) => Err(error),
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

/// The parts of a run.
struct Agent<'a> {
    config: &'a AgentConfig,
    system: System<'a>,
    outbox: Outbox,
    log: Log,
    journal: Journal,
}

/// What a report says beyond who says it and when.
struct Said {
    serial: u64,
    outcome: Outcome,
    stage: Stage,
    reason: Option<String>,
    wanted: Option<StorePath>,
    built: Option<StorePath>,
    previous: Option<StorePath>,
}

/// How an attempt ended short of the new system.
struct Ending {
    outcome: Outcome,
    stage: Stage,
    error: Error,
    built: Option<StorePath>,
    previous: Option<StorePath>,
    retry: bool,
}

impl Agent<'_> {
    /// Brings to an end what an earlier run left.
    fn resume(&mut self) -> Result<()> {
        match self.journal.state.phase.clone() {
            Phase::Idle | Phase::Reported { .. } => self.log.clear(),
            // nothing was changed yet: the poll begins anew
            Phase::Fetched | Phase::Realised { .. } => self.journal.enter(Phase::Idle),
            Phase::Testing { toplevel, previous } => {
                self.log.say("the agent was interrupted while it tried out a system: going back")?;
                let error = anyhow!("the agent was interrupted while it tried out {toplevel}");
                let ending = self.go_back(Some(toplevel), previous, Stage::Activate, error);
                self.close(ending).map(|_| ())
            }
            Phase::Confirmed { toplevel, previous } => {
                self.log.say("the agent was interrupted before it made a system permanent: going on")?;
                match self.make_permanent(toplevel, previous) {
                    Ok(_) => Ok(()),
                    Err(ending) => self.close(*ending).map(|_| ()),
                }
            }
            Phase::Booted { .. } | Phase::Ended { .. } => self.report(),
        }
    }

    /// Asks the hub and takes up what is new.
    fn poll(&mut self) -> Result<Polled> {
        let hub = self.config.hub.connect()?;
        // a hub that takes no reports may still have the release that mends that; the run ends with another try
        if let Err(error) = self.outbox.deliver(&hub) {
            self.log.say(&format!("cannot deliver the reports of earlier runs: {error:#}"))?;
        }
        self.show_presence(&hub)?;
        let manifest = match read_manifest(&hub, &self.config.signers) {
            Ok(manifest) => manifest,
            Err(error) => return Err(self.complain(self.journal.state.serial, Stage::Manifest, None, error)?),
        };
        if let Err(error) = manifest.check_for(&self.config.host, self.journal.state.serial, Timestamp::now()) {
            return Err(self.complain(manifest.serial, Stage::Manifest, Some(manifest.toplevel), error)?);
        }
        let state = &mut self.journal.state;
        if manifest.serial == state.serial {
            match state.phase {
                Phase::Reported { outcome } if outcome.is_success() => {
                    self.take_back_complaint(&manifest, outcome)?;
                    return Ok(Polled::Current { serial: manifest.serial });
                }
                Phase::Reported { .. } => {
                    bail!("release {} failed here before; waiting for a newer one", manifest.serial);
                }
                _ => {}
            }
        } else {
            state.serial = manifest.serial;
            state.attempts = 0;
            state.complaint = None;
        }
        state.started = Some(Timestamp::now());
        state.wanted = Some(manifest.toplevel.clone());
        self.journal.enter(Phase::Idle)?;
        self.log.clear()?;
        self.log.say(&format!("release {} for {}: {}", manifest.serial, manifest.host, manifest.toplevel))?;
        let releases = self.config.state_dir.join("releases");
        let tree = match fetch::fetch(&hub, &manifest, &releases) {
            Ok(tree) => tree,
            Err(error) => {
                let error = error.context(format!("cannot fetch release {}", manifest.serial));
                return Err(self.complain(manifest.serial, Stage::Fetch, Some(manifest.toplevel), error)?);
            }
        };
        // the build may take hours: no idle connection meanwhile
        drop(hub);
        self.journal.enter(Phase::Fetched)?;
        self.log.say(&format!("fetched and verified {} files", manifest.files.len()))?;
        let attempt = match self.system.build(&manifest, &tree, &mut self.log) {
            Ok(toplevel) => self.take_up(toplevel),
            Err(error) => Err(Box::new(Ending {
                outcome: Outcome::Failure,
                stage: Stage::Build,
                error,
                built: None,
                previous: None,
                retry: false,
            })),
        };
        let serial = manifest.serial;
        match attempt {
            Ok(toplevel) => Ok(Polled::Updated { serial, toplevel }),
            Err(ending) => Err(self.close(*ending)?.context(format!("release {serial}"))),
        }
    }

    /// Reports trouble that came before any attempt and may pass by itself: once, not with every poll. Gives the error
    /// back.
    fn complain(&mut self, serial: u64, stage: Stage, wanted: Option<StorePath>, error: Error) -> Result<Error> {
        let reason = format!("{error:#}");
        self.log.note(&format!("error: {reason}"))?;
        if self.journal.state.complaint.as_ref() != Some(&reason) {
            self.journal.state.complaint = Some(reason.clone());
            let outcome = Outcome::Failure;
            self.queue(Said { serial, outcome, stage, reason: Some(reason), wanted, built: None, previous: None })?;
            self.journal.save()?;
        }
        Ok(error)
    }

    /// Says that the host runs its release after all, if the last thing that it said was a complaint.
    fn take_back_complaint(&mut self, manifest: &Manifest, outcome: Outcome) -> Result<()> {
        if self.journal.state.complaint.take().is_some() {
            let (serial, stage) = (manifest.serial, Stage::Done);
            let wanted = Some(manifest.toplevel.clone());
            self.queue(Said { serial, outcome, stage, reason: None, wanted, built: None, previous: None })?;
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
            wanted: said.wanted,
            built: said.built,
            previous: said.previous,
            running: self.system.running(),
            started: self.journal.state.started.unwrap_or(now),
            finished: now,
            log: None,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // queued before the state moves on: a crash in between queues the same attempt again, in the same place
        self.outbox.add(&report, &self.log.content()?)?;
        self.journal.state.attempts += 1;
        self.journal.state.started = None;
        Ok(())
    }

    /// Makes the built system the one that runs and boots; gives it back.
    fn take_up(&mut self, toplevel: StorePath) -> Result<StorePath, Box<Ending>> {
        let previous = self.system.running();
        let before = |error: Error| {
            let (built, previous) = (Some(toplevel.clone()), previous.clone());
            Box::new(Ending { outcome: Outcome::Failure, stage: Stage::Activate, error, built, previous, retry: true })
        };
        self.journal.enter(Phase::Realised { toplevel: toplevel.clone() }).map_err(before)?;
        if previous.as_ref() == Some(&toplevel) && self.system.profile().as_ref() == Some(&toplevel) {
            self.log.say("this system runs already").map_err(before)?;
            let phase = Phase::Booted { toplevel: toplevel.clone(), previous: previous.clone() };
            self.journal.enter(phase).and_then(|()| self.report()).map_err(before)?;
            return Ok(toplevel);
        }
        if let Some(previous) = &previous {
            // what may be needed again must not be collected
            self.system.keep(previous, "previous", &mut self.log).map_err(before)?;
        }
        let phase = Phase::Testing { toplevel: toplevel.clone(), previous: previous.clone() };
        self.journal.enter(phase).map_err(before)?;
        let tested = match self.system.activate(&toplevel, Action::Test, &mut self.log) {
            Ok(()) => self.confirm().map_err(|error| (Stage::Confirm, error)),
            Err(error) => Err((Stage::Activate, error.context("the activation failed"))),
        };
        if let Err((stage, error)) = tested {
            return Err(Box::new(self.go_back(Some(toplevel), previous, stage, error)));
        }
        let phase = Phase::Confirmed { toplevel: toplevel.clone(), previous: previous.clone() };
        match self.journal.enter(phase) {
            Ok(()) => self.make_permanent(toplevel, previous),
            Err(error) => Err(Box::new(self.go_back(Some(toplevel), previous, Stage::Confirm, error))),
        }
    }

    /// Makes sure that the hub can be reached by a new connection: one lost probe is no lost network.
    fn confirm(&mut self) -> Result<()> {
        let tries = self.config.confirm.tries.max(1);
        for number in 1..=tries {
            let reached = self.config.hub.connect().and_then(|hub| hub.exists(manifest::FILE));
            match reached {
                Ok(_) => return self.log.say("the hub can still be reached"),
                Err(error) => self.log.say(&format!("try {number} of {tries} to reach the hub: {error:#}"))?,
            }
            if number < tries {
                std::thread::sleep(Duration::from_secs(self.config.confirm.pause));
            }
        }
        bail!("the hub could not be reached any more ({tries} tries)")
    }

    /// Makes a confirmed system the one that is booted, and reports; gives it back.
    fn make_permanent(&mut self, toplevel: StorePath, previous: Option<StorePath>) -> Result<StorePath, Box<Ending>> {
        let permanent = self
            .system
            .set_profile(&toplevel, &mut self.log)
            .and_then(|()| self.system.activate(&toplevel, Action::Boot, &mut self.log));
        if let Err(error) = permanent {
            // neither profile nor boot loader may be left with a system that was given up
            if let Some(previous) = &previous {
                let back = self
                    .system
                    .set_profile(previous, &mut self.log)
                    .and_then(|()| self.system.activate(previous, Action::Boot, &mut self.log));
                if let Err(error) = back {
                    eprintln!("cannot boot {previous} again: {error:#}");
                }
            }
            let error = error.context("cannot make the system the one that is booted");
            return Err(Box::new(self.go_back(Some(toplevel), previous, Stage::Boot, error)));
        }
        let phase = Phase::Booted { toplevel: toplevel.clone(), previous: previous.clone() };
        let reported = self.journal.enter(phase).and_then(|()| self.report());
        match reported {
            Ok(()) => Ok(toplevel),
            Err(error) => Err(Box::new(Ending {
                outcome: Outcome::Failure,
                stage: Stage::Done,
                error,
                built: Some(toplevel),
                previous,
                retry: true,
            })),
        }
    }

    /// Activates the recorded previous system again, and tells what that makes of the attempt.
    fn go_back(&mut self, built: Option<StorePath>, previous: Option<StorePath>, stage: Stage, error: Error) -> Ending {
        let failed = |error| Ending {
            outcome: Outcome::Failure,
            stage,
            error,
            built: built.clone(),
            previous: previous.clone(),
            retry: false,
        };
        let Some(target) = &previous else {
            return failed(error.context("there is no earlier system to go back to"));
        };
        if let Err(back) = self.system.activate(target, Action::Test, &mut self.log) {
            return failed(anyhow!("{error:#}; going back to {target} failed too: {back:#}"));
        }
        // a hub that is out of reach from the old system as well is down: that is not the release's fault
        let retry = stage == Stage::Confirm && self.confirm().is_err();
        let error = if retry { error.context("the hub is out of reach from the old system too") } else { error };
        Ending { outcome: Outcome::Rollback, stage, error, built, previous, retry }
    }

    /// Writes down and reports how an attempt ended; gives its error back.
    ///
    /// What may be tried again and ends the same way again is not reported again.
    fn close(&mut self, ending: Ending) -> Result<Error> {
        let Ending { outcome, stage, error, built, previous, retry } = ending;
        let reason = format!("{error:#}");
        self.log.note(&format!("error: {reason}"))?;
        if stage == Stage::Done {
            // the system is booted, only the report is missing: the state says so, and the next run reports
            return Ok(error);
        }
        if retry && self.journal.state.complaint.as_ref() == Some(&reason) {
            self.journal.enter(Phase::Idle)?;
            return Ok(error);
        }
        let complaint = retry.then(|| reason.clone());
        self.journal.enter(Phase::Ended { outcome, stage, reason, built, previous, retry })?;
        self.report()?;
        self.journal.state.complaint = complaint;
        self.journal.save()?;
        Ok(error)
    }

    /// Queues the report of the attempt that the state tells of, and is done with it.
    fn report(&mut self) -> Result<()> {
        let state = &mut self.journal.state;
        let (serial, wanted) = (state.serial, state.wanted.clone());
        let (said, retry) = match state.phase.clone() {
            Phase::Booted { toplevel, previous } => {
                let (outcome, stage, built) = (Outcome::Success, Stage::Done, Some(toplevel));
                (Said { serial, outcome, stage, reason: None, wanted, built, previous }, false)
            }
            Phase::Ended { outcome, stage, reason, built, previous, retry } => {
                (Said { serial, outcome, stage, reason: Some(reason), wanted, built, previous }, retry)
            }
            other => bail!("there is nothing to report in the state {other:?}"),
        };
        state.complaint = None;
        let outcome = said.outcome;
        self.log.say(&format!("release {serial}: {}", outcome.word()))?;
        self.queue(said)?;
        self.journal.enter(if retry { Phase::Idle } else { Phase::Reported { outcome } })?;
        for root in ["previous", "result"] {
            self.system.release(root)?;
        }
        Ok(())
    }

    /// Delivers what this run has queued.
    fn deliver(&mut self) -> Result<()> {
        if self.outbox.is_empty()? {
            return Ok(());
        }
        let hub = self.config.hub.connect()?;
        self.outbox.deliver(&hub)?;
        self.show_presence(&hub)
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
            held: false,
            failed_units: None,
            interval: self.config.interval,
            time: Timestamp::now(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let file = format!("{}/{}", outbox::LOGS, report::PRESENCE);
        match presence.to_json().and_then(|text| hub.replace(&file, &text)) {
            Ok(()) => Ok(()),
            Err(error) => self.log.say(&format!("cannot tell the hub that this host is there: {error:#}")),
        }
    }
}
