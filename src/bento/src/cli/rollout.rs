//! `bento rollout`: a change goes to a few hosts first, and on only while those are well.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use jiff::{Span, Timestamp};

use super::deploy::{Releases, digest_key};
use super::fleet::FleetOptions;
use super::progress::Display;
use super::push::{Desk, Prepared, PushOptions, Screen, seconds, settle};
use crate::build::{Builder, Job};
use crate::evaluation::{Evaluation, Evaluator, SearchPath, Subject};
use crate::fleet::config::Config;
use crate::fleet::{Fleet, FleetHost};
use crate::host::{Host, HostName};
use crate::hub::Hub;
use crate::manifest::Manifest;
use crate::nix::Programs;
use crate::package::Package;
use crate::publish::{self, Candidate, Published};
use crate::push::deliver::{Wanted, deliver};
use crate::push::lockout::{self, Access};
use crate::push::run::Runs;
use crate::push::settings::BuildOn;
use crate::push::survey;
use crate::push::target::Target;
use crate::push::{Ending, Machine};
use crate::rollout::{self, Position, Progress, Rollout as Record, Shelf, Staged, Undo, Wave};
use crate::secrets::draft::Draft;
use crate::sign::{Signer, read_public_key};
use crate::source::SourceTree;
use crate::status::{self, HostState, HostStatus};

/// How often the hub is looked at while hosts are awaited.
const TICK: Duration = Duration::from_secs(2);
/// What was put aside of the new release.
const NEW: &str = "new";
/// What was put aside of the one before.
const BEFORE: &str = "before";

/// Roll a change out: to canaries first, then in batches, and on only while the hosts that have it are well
///
/// Hosts that pull see their new release when their wave comes, and are awaited; hosts with `push` in the settings are pushed to. When
/// more hosts fail than may, it stops, and those that had the change get back what was before. What is not said here is as in the table
/// `[rollout]` of the settings. A wave is written as hosts are selected, as a number of hosts, or as a share of them (`10%`).
#[derive(Args)]
pub(super) struct Rollout {
    /// The hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]
    hosts: Vec<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Who comes first (can be given several times)
    #[arg(long, value_name = "HOSTS")]
    canary: Vec<String>,
    /// A wave after that (can be given several times); who is in none comes last
    #[arg(long, value_name = "HOSTS")]
    batch: Vec<String>,
    /// For how long the hosts of a wave have to be well before the next one begins: `10m`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    soak: Option<u64>,
    /// How many hosts may fail before it stops
    #[arg(long, value_name = "NUMBER")]
    max_failures: Option<usize>,
    /// Within how long a host that pulls has to report: `1h`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    timeout: Option<u64>,
    /// Who gets back what was before, when it stops
    #[arg(long, value_enum)]
    undo: Option<Undo>,
    /// Go on with a rollout that was interrupted, or with what a stopped one could not take back
    #[arg(long, conflicts_with_all = ["hosts", "stop", "show", "dry_run"])]
    resume: bool,
    /// Stop a rollout that was interrupted, as if too many hosts had failed
    #[arg(long, conflicts_with_all = ["hosts", "show", "dry_run"])]
    stop: bool,
    /// Say how far the last rollout is
    #[arg(long, conflicts_with = "dry_run")]
    show: bool,
    /// Say which hosts would come in which wave, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// With --show and in the end, print the rollout as JSON
    #[arg(long)]
    json: bool,
    /// Don't build before the first wave
    #[arg(long)]
    no_build: bool,
    /// Sign with this key: a private key's file, or the public key's of one that the ssh agent holds
    #[arg(long, value_name = "FILE", env = "SIGNING_KEY")]
    signing_key: Option<PathBuf>,
    #[command(flatten)]
    pushing: PushOptions,
}

/// What waves are done with.
struct Work<'a> {
    config: &'a Config,
    shelf: Shelf,
    desk: Desk<'a>,
    record: Record,
}

impl Rollout {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let hub = config.hub(&dir).context("a rollout keeps on the hub how far it is and what was before")?;
        let shelf = Shelf::new(&hub);
        if self.show {
            let record = shelf.load()?.context("there was no rollout yet")?;
            if self.json {
                super::print_json(&record)?;
            } else {
                super::print(&describe(&record))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let _lock = if self.dry_run { None } else { Some(shelf.lock()?) };
        let again = self.resume || self.stop;
        let unfinished = shelf.load()?.filter(|record| !record.is_over() || again && !record.left().is_empty());
        let signing_key = self.signing_key.as_deref().or(config.release.signing_key.as_deref());
        // nobody signs for a plan
        let open = |key| Signer::open(key, super::ssh_agent().as_deref());
        let signer = signing_key.filter(|_| !self.dry_run).map(open).transpose()?;
        let key = signing_key.map(read_public_key).transpose()?.map(|(key, _)| key);
        let releases = || Releases {
            config: &config,
            hub: hub.clone(),
            key: key.as_ref(),
            signer: signer.as_ref(),
            mode: None,
            days: None,
        };
        let evaluator = self.fleet.evaluator()?;
        let screen = Screen::new(false);
        let record = match (unfinished, again) {
            (Some(record), true) => record,
            (None, true) => bail!("no rollout is under way"),
            (Some(record), false) if !self.dry_run => bail!(
                "the rollout that began at {} is not over: --resume goes on with it, --stop stops it",
                record.started.strftime("%Y-%m-%d %H:%M")
            ),
            (_, false) => {
                let search_path = self.fleet.search_path()?;
                let selection = self.fleet.selection(&self.hosts, &config)?;
                let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
                if let Some(broken) = fleet.concerned(&selection).next() {
                    bail!("{}: {:#}", broken.dir.display(), broken.error);
                }
                let hosts: Vec<&FleetHost> = fleet.selected(&selection).collect();
                let options = self.pushing.resolve(&config.push, &config.build.options)?;
                let here = matches!(options.settings.build_on, BuildOn::Here | BuildOn::Auto);
                let here = here && Programs::default().are_installed();
                let built = |host: &FleetHost| {
                    let pushed = config.hosts.get(&host.host.name).is_some_and(|host| host.push.is_some());
                    !self.dry_run && (self.builds(&config, host) || pushed && here)
                };
                let mut evaluations: BTreeMap<usize, Evaluation> = BTreeMap::new();
                let mut wrong = Vec::new();
                for to_build in [true, false] {
                    let chosen: Vec<usize> =
                        (0..hosts.len()).filter(|index| built(hosts[*index]) == to_build).collect();
                    let subjects: Vec<Subject<'_>> = chosen.iter().map(|index| hosts[*index].subject()).collect();
                    let mut done = |position: usize, evaluation: Result<Evaluation>| match evaluation {
                        Ok(evaluation) => drop(evaluations.insert(chosen[position], evaluation)),
                        Err(error) => {
                            let host = hosts[chosen[position]];
                            let text = host.tree.original_names(&format!("{error:#}"));
                            wrong.push(format!("{}: {text}", host.host.name));
                        }
                    };
                    match to_build {
                        true => evaluator.instantiate_fleet(&subjects, &search_path, &mut done),
                        false => evaluator.evaluate_fleet(&subjects, &search_path, &mut done),
                    }
                }
                if !wrong.is_empty() {
                    bail!("nothing is rolled out, as not everything can be evaluated:\n{}", wrong.join("\n"));
                }
                let found: Vec<(&FleetHost, &Evaluation)> =
                    evaluations.iter().map(|(index, evaluation)| (hosts[*index], evaluation)).collect();
                self.plan(&config, &releases(), &shelf, &screen, &found, &search_path, evaluator.as_ref())?
            }
        };
        if self.dry_run || record.hosts.is_empty() {
            super::print(&describe(&record))?;
            return Ok(ExitCode::SUCCESS);
        }
        // as it was when the rollout began
        let search_path = SearchPath::new(&record.search_path, &[], &dir)?;
        let options = self.pushing.resolve(&config.push, &config.build.options)?;
        let release = Some(releases());
        let desk = Desk { options, screen, evaluator: evaluator.as_ref(), search_path: &search_path, release };
        let mut work = Work { config: &config, shelf, desk, record };
        if again {
            settle(&work.desk.options, &work.desk.screen, work.desk.release.as_ref().map(|release| &release.hub))?;
        }
        if self.stop {
            work.stop()?;
        }
        work.take_back_again()?;
        work.drive()?;
        if self.json {
            super::print_json(&work.record)?;
        }
        Ok(if work.record.position == Position::Finished { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Whether a host's system has to be built before the first wave.
    fn builds(&self, config: &Config, host: &FleetHost) -> bool {
        !self.no_build && config.builds(&host.host.name)
    }

    /// Builds what is new, parts its hosts into waves, and puts everything aside.
    #[allow(clippy::too_many_arguments)]
    fn plan(
        &self,
        config: &Config,
        releases: &Releases<'_>,
        shelf: &Shelf,
        screen: &Screen,
        found: &[(&FleetHost, &Evaluation)],
        search_path: &SearchPath,
        evaluator: &dyn Evaluator,
    ) -> Result<Record> {
        let now = Timestamp::now();
        let holds = releases.hub.holds()?;
        let digest_key = digest_key(found.iter().map(|(host, _)| *host), !self.dry_run)?;
        let mut changed = Vec::new();
        for (host, evaluation) in found {
            let name = &host.host.name;
            if holds.contains_key(name) {
                screen.say(&format!("{name}: held"));
                continue;
            }
            let secrets = releases.secrets(host, digest_key.as_ref()).with_context(|| name.to_string())?;
            let candidate = releases.candidate(&host.host, &host.tree, secrets, evaluation, search_path, now)?;
            let push = config.hosts.get(name).and_then(|host| host.push.clone());
            let plan = publish::plan(&releases.hub, &candidate, releases.key, now)?;
            if matches!(plan.published, Published::Unchanged { .. }) && push.is_none() {
                screen.say(&format!("{name}: unchanged"));
                continue;
            }
            let push = push.map(|target| Target { config: Some(name.clone()), ..target });
            changed.push((*host, (*evaluation).clone(), candidate.secrets, push));
        }
        // read now, as the files that it comes of may be others when the wave comes
        let pushed: Vec<&FleetHost> =
            changed.iter().filter(|(.., push)| push.is_some()).map(|(host, ..)| *host).collect();
        let subjects: Vec<Subject<'_>> = pushed.iter().map(|host| host.subject()).collect();
        let mut accesses: BTreeMap<HostName, Access> = BTreeMap::new();
        let mut wrong = Vec::new();
        evaluator.inspect_fleet(&subjects, search_path, lockout::FUNCTION, &mut |index, json| {
            let name = &pushed[index].host.name;
            match json.and_then(|json| Access::parse(&json)) {
                Ok(access) => drop(accesses.insert(name.clone(), access)),
                Err(error) => wrong.push(format!("{name}: {error:#}")),
            }
        });
        if !wrong.is_empty() {
            bail!("cannot tell who could log in:\n{}", wrong.join("\n"));
        }
        if !self.dry_run {
            let jobs: Vec<Job<'_>> = changed
                .iter()
                .filter(|(host, ..)| self.builds(config, host))
                .map(|(host, evaluation, ..)| Job { host: &host.host, evaluation })
                .collect();
            let builder = Builder::new(&config.build.options);
            let results = builder.build(&jobs, &Display::new());
            let failed = jobs
                .iter()
                .zip(&results)
                .filter_map(|(job, result)| result.as_ref().err().map(|error| format!("{}: {error:#}", job.host.name)));
            let failed: Vec<String> = failed.collect();
            if !failed.is_empty() {
                bail!("nothing is rolled out, as not everything can be built:\n{}", failed.join("\n"));
            }
            for job in &jobs {
                builder.keep(&job.evaluation.toplevel, &shelf.root(&job.host.name))?;
            }
        }
        let mut settings = config.rollout.clone();
        if !self.canary.is_empty() {
            settings.canaries.clone_from(&self.canary);
        }
        if !self.batch.is_empty() {
            settings.batches.clone_from(&self.batch);
        }
        settings.soak = self.soak.unwrap_or(settings.soak);
        settings.max_failures = self.max_failures.unwrap_or(settings.max_failures);
        settings.timeout = self.timeout.unwrap_or(settings.timeout);
        settings.undo = self.undo.unwrap_or(settings.undo);
        let names: Vec<HostName> = changed.iter().map(|(host, ..)| host.host.name.clone()).collect();
        let waves = rollout::waves(&names, &settings, config)?;
        if !self.dry_run {
            shelf.clear()?;
        }
        let mut hosts = BTreeMap::new();
        for (host, evaluation, secrets, push) in changed {
            let name = host.host.name.clone();
            let before = releases.hub.host(&name).manifest().ok().flatten();
            if !self.dry_run {
                shelf.put(&name, NEW, &host.tree)?;
                let sealed = publish::seal(&releases.hub.host(&name), before.as_ref(), &secrets)?;
                shelf.put_secrets(&name, NEW, &sealed)?;
                if let Some(before) = &before {
                    shelf.put(&name, BEFORE, &rollout::before(&releases.hub, before)?)?;
                    shelf.put_secrets(&name, BEFORE, &rollout::secrets_before(&releases.hub, before)?)?;
                }
            }
            let staged = Staged {
                kind: host.host.kind,
                toplevel: evaluation.toplevel,
                drv_path: evaluation.drv_path,
                push,
                access: accesses.remove(&name),
                before,
                progress: Progress::Waiting,
            };
            hosts.insert(name, staged);
        }
        let record = Record::new(&settings, search_path.entries(), waves, hosts, now);
        if !self.dry_run && !record.hosts.is_empty() {
            shelf.save(&record)?;
        }
        Ok(record)
    }
}

/// A rollout, for people.
fn describe(record: &Record) -> String {
    if record.hosts.is_empty() {
        return "there is nothing to roll out: every host has what it should\n".to_owned();
    }
    let mut text = String::new();
    for (number, Wave { name, hosts }) in record.waves.iter().enumerate() {
        text += &format!("wave {} of {}, {name}:\n", number + 1, record.waves.len());
        for host in hosts {
            let progress = record.hosts.get(host).map_or_else(String::new, |staged| match &staged.progress {
                Progress::Waiting => String::new(),
                Progress::Offered { serial, .. } => format!(": release {serial} is offered"),
                Progress::Pushing { .. } => ": being pushed to".to_owned(),
                Progress::Done { .. } => ": done".to_owned(),
                Progress::Skipped { reason } => format!(": skipped: {reason}"),
                Progress::Failed { reason, .. } => format!(": failed: {reason}"),
                Progress::Undone => ": back at what was before".to_owned(),
            });
            text += &format!("  {host}{progress}\n");
        }
    }
    match &record.position {
        Position::Stopping { reason, .. } => text += &format!("stopping: {reason}\n"),
        Position::Stopped { reason, left, .. } => {
            text += &format!("stopped: {reason}\n");
            if !left.is_empty() {
                text += &format!("{}\n", not_back(left));
            }
        }
        Position::Finished => text += "finished\n",
        Position::Soaking { until, .. } => text += &format!("watching until {until}\n"),
        Position::Wave { .. } => {}
    }
    text
}

/// Says which hosts did not go back, and what can be done about it.
fn not_back(left: &[HostName]) -> String {
    let names: Vec<&str> = left.iter().map(HostName::as_str).collect();
    format!("not back at what was before: {} (bento rollout --resume tries again)", names.join(", "))
}

/// What a host that pulls says of a release: nothing yet, that it works, or that it does not and why.
fn verdict(host: &HostStatus, serial: u64) -> Option<Result<(), String>> {
    if host.reported_serial.is_none_or(|reported| reported < serial) {
        return None;
    }
    match host.state {
        HostState::Failing | HostState::Rollbacked | HostState::Diverged => {
            Some(Err(host.reason.clone().unwrap_or_else(|| host.state.words().to_owned())))
        }
        HostState::CorruptReport
        | HostState::ForgedReport
        | HostState::DamagedRelease
        | HostState::NotPublished
        | HostState::Stale
        | HostState::Removed => Some(Err(host.state.words().to_owned())),
        HostState::NewMachine | HostState::SyncPending | HostState::RebuildPending => None,
        // what it said was about this release only if there is none after it
        HostState::Held => (host.serial == Some(serial)).then_some(Ok(())),
        HostState::UpToDate | HostState::ExtraLogs | HostState::AutoUpgraded | HostState::RebootNeeded => Some(Ok(())),
    }
}

impl Work<'_> {
    fn say(&self, text: &str) {
        self.desk.screen.say(text);
    }

    fn hub(&self) -> Result<&Hub> {
        Ok(&self.release()?.hub)
    }

    fn release(&self) -> Result<&Releases<'_>> {
        self.desk.release.as_ref().context("a rollout needs a hub")
    }

    fn save(&self) -> Result<()> {
        self.shelf.save(&self.record)
    }

    fn staged(&self, name: &HostName) -> Result<&Staged> {
        self.record.hosts.get(name).with_context(|| format!("nothing was put aside for {name}"))
    }

    /// Notes how far a host is, for good.
    fn note(&mut self, name: &HostName, progress: Progress) -> Result<()> {
        match &progress {
            Progress::Offered { serial, .. } => self.say(&format!("{name}: release {serial} is offered")),
            Progress::Done { .. } => self.say(&format!("{name}: done")),
            Progress::Failed { reason, .. } => self.say(&format!("{name}: failed: {reason}")),
            Progress::Skipped { reason } => self.say(&format!("{name}: skipped: {reason}")),
            Progress::Undone => self.say(&format!("{name}: back at what was before")),
            Progress::Waiting | Progress::Pushing { .. } => {}
        }
        if let Some(staged) = self.record.hosts.get_mut(name) {
            staged.progress = progress;
        }
        self.save()
    }

    /// Stops at the next opportunity, which is now.
    fn stop(&mut self) -> Result<()> {
        let number = match self.record.position {
            Position::Wave { number } | Position::Soaking { number, .. } | Position::Stopping { number, .. } => number,
            Position::Stopped { .. } | Position::Finished => return Ok(()),
        };
        self.record.position = Position::Stopping { reason: "somebody stopped it".to_owned(), number };
        self.save()
    }

    /// Has a rollout that is over take back what it could not the first time.
    fn take_back_again(&mut self) -> Result<()> {
        match &self.record.position {
            Position::Stopped { reason, number, left } if !left.is_empty() => {
                self.record.position = Position::Stopping { reason: reason.clone(), number: *number };
                self.save()
            }
            _ => Ok(()),
        }
    }

    /// Goes on until it is over.
    fn drive(&mut self) -> Result<()> {
        while !self.record.is_over() {
            self.record.position = match self.record.position.clone() {
                Position::Wave { number } => self.wave(number)?,
                Position::Soaking { number, until } => self.soak(number, until)?,
                Position::Stopping { reason, number } => self.undo(reason, number)?,
                over => over,
            };
            self.save()?;
        }
        match &self.record.position {
            Position::Stopped { reason, left, .. } => {
                self.say(&format!("stopped: {reason}"));
                if !left.is_empty() {
                    self.say(&not_back(left));
                }
            }
            _ => self.say("finished"),
        }
        Ok(())
    }

    /// Has the hosts of a wave take up the change.
    fn wave(&mut self, number: usize) -> Result<Position> {
        let hosts = self.record.wave(number);
        let name = self.record.waves.get(number).map_or("", |wave| wave.name.as_str());
        self.say(&format!("wave {} of {}, {name}: {} hosts", number + 1, self.record.waves.len(), hosts.len()));
        let mut pushes = Vec::new();
        for name in hosts {
            let staged = self.staged(&name)?.clone();
            match (&staged.progress, &staged.push) {
                (Progress::Waiting, None) => {
                    let tree = self.shelf.take(&name, NEW)?;
                    let host = Host { name: name.clone(), kind: staged.kind };
                    let secrets = self.shelf.take_secrets(&name, NEW)?;
                    let evaluation = staged.evaluation();
                    let serial = self.release()?.publish(&host, &tree, secrets, &evaluation, self.desk.search_path)?;
                    self.note(&name, Progress::Offered { serial, since: Timestamp::now() })?;
                }
                (Progress::Waiting | Progress::Pushing { .. }, Some(target)) => pushes.push((name, target.clone())),
                _ => {}
            }
        }
        self.push(&pushes)?;
        while self.record.objection().is_none() && self.look(number)? {
            std::thread::sleep(TICK);
        }
        self.record.after_wave(number, Timestamp::now())
    }

    /// Pushes to hosts.
    fn push(&mut self, hosts: &[(HostName, Target)]) -> Result<()> {
        let targets: Vec<Target> = hosts.iter().map(|(_, target)| target.clone()).collect();
        let found = survey(&targets, &self.desk.options, &self.desk.screen);
        let mut ready = Vec::new();
        for ((name, _), machine) in hosts.iter().zip(found) {
            match machine {
                Ok(machine) => {
                    let staged = self.staged(name)?.clone();
                    // of a push that was interrupted, what ran before that
                    let running = machine.facts.running.clone().filter(|running| *running != staged.toplevel);
                    let previous = match &staged.progress {
                        Progress::Pushing { previous: Some(previous) } => Some(previous.clone()),
                        _ => running,
                    };
                    self.note(name, Progress::Pushing { previous })?;
                    let host = Host { name: name.clone(), kind: staged.kind };
                    ready.push((
                        machine,
                        host,
                        self.shelf.take(name, NEW)?,
                        self.shelf.take_secrets(name, NEW)?,
                        staged.evaluation(),
                        staged.access.clone(),
                    ));
                }
                Err(Ending::Unreachable { reason, skipped: true }) => self.note(name, Progress::Skipped { reason })?,
                Err(ending) => {
                    self.note(name, Progress::Failed { serial: None, previous: None, reason: ending.text() })?;
                }
            }
        }
        let mut names = Vec::new();
        let mut machines = Vec::new();
        let mut rest = Vec::new();
        for (machine, host, tree, secrets, evaluation, access) in ready {
            names.push(host.name.clone());
            machines.push((machine, secrets, access));
            rest.push((host, tree, evaluation));
        }
        let prepare = |((machine, secrets, access), (host, tree, evaluation))| {
            let (host, tree, evaluation): (&Host, &SourceTree, &Evaluation) = (host, tree, evaluation);
            let (machine, secrets, access): (Machine, Vec<Draft>, Option<Access>) = (machine, secrets, access);
            Prepared { machine, host, tree, secrets, evaluation, access }
        };
        let rest = rest.iter().map(|(host, tree, evaluation)| (host, tree, evaluation));
        let delivered = self.desk.deliver_all(machines.into_iter().zip(rest).map(prepare).collect())?;
        for (name, (_, delivered)) in names.into_iter().zip(delivered) {
            let serial = self.hub()?.host(&name).summary().ok().flatten().map(|summary| summary.serial);
            let previous = match &self.staged(&name)?.progress {
                Progress::Pushing { previous } => previous.clone(),
                _ => None,
            };
            let progress = match delivered.ending {
                Ending::Pushed { .. } | Ending::Unchanged { .. } => Progress::Done { serial, previous },
                // it may run the one or the other
                ending @ Ending::Lost { .. } => Progress::Failed { serial, previous, reason: ending.text() },
                ending => Progress::Failed { serial, previous: None, reason: ending.text() },
            };
            self.note(&name, progress)?;
        }
        Ok(())
    }

    /// What the hub knows of each host.
    fn statuses(&self) -> Result<BTreeMap<HostName, HostStatus>> {
        let expected = super::status::expected(self.config)?;
        let hosts = status::status(self.hub()?, &expected, Timestamp::now())?;
        Ok(hosts.into_iter().map(|host| (host.machine.clone(), host)).collect())
    }

    /// Looks what the hosts of a wave say that pull; gives whether some are still awaited.
    fn look(&mut self, number: usize) -> Result<bool> {
        let statuses = self.statuses()?;
        let now = Timestamp::now();
        let mut awaited = false;
        for name in self.record.wave(number) {
            let Progress::Offered { serial, since } = self.staged(&name)?.progress else { continue };
            let waited = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
            match statuses.get(&name).and_then(|host| verdict(host, serial)) {
                Some(Ok(())) => self.note(&name, Progress::Done { serial: Some(serial), previous: None })?,
                Some(Err(reason)) => {
                    self.note(&name, Progress::Failed { serial: Some(serial), previous: None, reason })?;
                }
                None if waited >= self.record.timeout => {
                    let reason = format!("it has not reported within {} s", self.record.timeout);
                    self.note(&name, Progress::Failed { serial: Some(serial), previous: None, reason })?;
                }
                None => awaited = true,
            }
        }
        Ok(awaited)
    }

    /// Watches the hosts that have the change, until then.
    fn soak(&mut self, number: usize, until: Timestamp) -> Result<Position> {
        self.say(&format!("watching until {}", until.strftime("%Y-%m-%d %H:%M:%S %Z")));
        let done = |staged: &Staged| matches!(staged.progress, Progress::Done { .. });
        loop {
            let statuses = self.statuses()?;
            let names: Vec<HostName> =
                self.record.hosts.iter().filter(|(_, staged)| done(staged)).map(|(name, _)| name.clone()).collect();
            for name in names {
                let Some(serial) = self.staged(&name)?.progress.serial() else { continue };
                if let Some(Err(reason)) = statuses.get(&name).and_then(|host| verdict(host, serial)) {
                    self.fail(&name, reason)?;
                }
            }
            let left = until.duration_since(Timestamp::now());
            if self.record.objection().is_some() || !left.is_positive() {
                break;
            }
            std::thread::sleep(TICK.min(left.unsigned_abs()));
        }
        // those that do not report by themselves are asked
        let pushed = self.record.hosts.iter().filter(|(_, staged)| done(staged));
        let pushed: Vec<(HostName, Target)> =
            pushed.filter_map(|(name, staged)| Some((name.clone(), staged.push.clone()?))).collect();
        let targets: Vec<Target> = pushed.iter().map(|(_, target)| target.clone()).collect();
        for ((name, _), found) in pushed.iter().zip(survey(&targets, &self.desk.options, &self.desk.screen)) {
            if let Err(ending) = found {
                self.fail(name, ending.text())?;
            }
        }
        Ok(self.record.after_soak(number))
    }

    /// Notes that a host that had taken up the change is not well.
    fn fail(&mut self, name: &HostName, reason: String) -> Result<()> {
        let progress = match self.staged(name)?.progress.clone() {
            Progress::Done { serial, previous } => Progress::Failed { serial, previous, reason },
            other => other,
        };
        self.note(name, progress)
    }

    /// Gives hosts back what was before.
    fn undo(&mut self, reason: String, number: usize) -> Result<Position> {
        self.say(&format!("stopping: {reason}"));
        let mut left = Vec::new();
        for name in self.record.to_undo(number) {
            let staged = self.staged(&name)?.clone();
            match self.undo_one(&name, &staged) {
                Ok(true) => self.note(&name, Progress::Undone)?,
                Ok(false) => self.say(&format!("{name}: there is no earlier release to go back to")),
                Err(error) => {
                    self.say(&format!("{name}: cannot go back: {error:#}"));
                    left.push(name);
                }
            }
        }
        Ok(Position::Stopped { reason, number, left })
    }

    /// Publishes what a host had before as a new release, and has a host that was pushed to run it again. Gives whether there was
    /// something to go back to.
    fn undo_one(&self, name: &HostName, staged: &Staged) -> Result<bool> {
        let published = match &staged.before {
            Some(before) if staged.progress.serial().is_some() => Some(self.publish_again(name, before)?),
            _ => None,
        };
        let previous = match &staged.progress {
            Progress::Done { previous, .. } | Progress::Failed { previous, .. } | Progress::Pushing { previous } => {
                previous.clone()
            }
            _ => None,
        };
        let (Some(target), Some(previous)) = (&staged.push, previous) else {
            // one that was pushed to in vain went back by itself
            return Ok(published.is_some() || staged.push.is_some());
        };
        let started = Timestamp::now();
        let options = crate::push::Options { health: false, ..self.desk.options.clone() };
        let found = survey(std::slice::from_ref(target), &options, &self.desk.screen).pop();
        let mut machine = found.context("nothing is known of it")?.map_err(|ending| anyhow!(ending.text()))?;
        let host = Host { name: name.clone(), kind: staged.kind };
        let wanted = Wanted::System { host: &host, toplevel: &previous };
        let delivered = deliver(&mut machine, &wanted, &options, &Runs::of_user()?, &self.desk.screen);
        if let Some(serial) = published {
            self.release()?.report(&host, serial, started, &delivered)?;
        }
        if delivered.ending.is_good() { Ok(true) } else { bail!("{}", delivered.ending.text()) }
    }

    /// Publishes an earlier release as the newest one.
    fn publish_again(&self, name: &HostName, before: &Manifest) -> Result<u64> {
        let release = self.release()?;
        let tree = self.shelf.take(name, BEFORE)?;
        let now = Timestamp::now();
        let days = self.config.release.valid_for_days;
        let candidate = Candidate {
            host: &rollout::host_of(before),
            tree: &tree,
            package: Package::of(&tree.path())?,
            secrets: self.shelf.take_secrets(name, BEFORE)?,
            evaluation: Evaluation { drv_path: before.drv_path.clone(), toplevel: before.toplevel.clone() },
            search_path: before.search_path.clone(),
            mode: before.mode,
            substituters: before.substituters.clone(),
            trusted_public_keys: before.trusted_public_keys.clone(),
            expires: days.map(|days| now.checked_add(Span::new().hours(24 * i64::from(days)))).transpose()?,
        };
        let _lock = release.hub.lock()?;
        let (Published::Unchanged { serial } | Published::New { serial }) =
            publish::publish(&release.hub, &candidate, release.signer, now)?.published;
        Ok(serial)
    }
}
