//! `bento deploy`: evaluate the fleet, build it, and publish what changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow, bail};
use clap::Args;
use jiff::{Span, Timestamp};
use serde::Serialize;
use ssh_key::PublicKey;

use super::fleet::FleetOptions;
use super::progress::Display;
use super::push::{self, Desk, PushOptions, Screen};
use crate::build::{Builder, Job};
use crate::evaluation::{Aside, Evaluation, Evaluator, SearchPath, Subject};
use crate::fleet::config::{Config, HubConfig, TOML};
use crate::fleet::{Fleet, FleetHost, Selection};
use crate::host::{Host, HostKind, HostName};
use crate::hub::{Hold, Hub};
use crate::manifest::ReleaseMode;
use crate::package::Package;
use crate::publish::{self, Candidate, Published};
use crate::push::deliver::Delivered;
use crate::push::record::{self, Story};
use crate::push::target::Target;
use crate::secrets::draft::{DigestKey, Draft};
use crate::sign::{Signer, read_public_key};
use crate::source::SourceTree;

/// Evaluate the fleet's hosts, build them, and publish those that changed; or push systems to machines over SSH
///
/// A host that can't be evaluated or built is not published; the others are, and the exit status is 1. With NOLOCALBUILD
/// nothing is built here.
///
/// What is pushed: targets (`nixos://[USER@]HOST[:PORT][/CONFIGURATION]`, or `USER@HOST`), hosts with `push` in the settings, with
/// --push all hosts, and in a fleet without a hub all that are named. A pushed system is tried out, confirmed by a new connection,
/// and only then kept; the exit status is 0 only if all of that worked everywhere.
#[derive(Args)]
pub(super) struct Deploy {
    /// The hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]; or targets to push to
    #[arg(value_name = "HOST|TARGET")]
    hosts: Vec<String>,
    /// Push the hosts, also those that pull
    #[arg(long)]
    push: bool,
    /// Publish the hosts, also those that are pushed
    #[arg(long, conflicts_with = "push")]
    publish: bool,
    /// Bring pushes that were interrupted to their ends, and tell these
    #[arg(long, conflicts_with_all = ["hosts", "push", "publish", "dry_run"])]
    resume: bool,
    /// Print the program that does root's part on machines that are pushed to, and how to allow it
    #[arg(long, conflicts_with_all = ["hosts", "push", "publish", "resume"])]
    helper: bool,
    /// The fleet's directory [default: that in the environment's BENTO_DIR, or else this one]
    #[arg(long, value_name = "DIR")]
    flake: Option<PathBuf>,
    #[command(flatten)]
    pushing: PushOptions,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Say what would be published and why, and neither build nor publish anything
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON; of pushes, an object on a line for each event
    #[arg(long)]
    json: bool,
    /// Publish without having built
    #[arg(long, conflicts_with = "built")]
    no_build: bool,
    /// Build nothing, and publish only what is built already, here or in one of the settings' binary caches
    #[arg(long)]
    built: bool,
    /// Hosts stop accepting the release after so many days
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    valid_for: Option<u16>,
    /// How hosts get their systems, whatever the settings say
    #[arg(long, value_enum)]
    mode: Option<ReleaseMode>,
    /// Sign with this key: a private key's file, or the public key's of one that the ssh agent holds
    #[arg(long, value_name = "FILE", env = "SIGNING_KEY")]
    signing_key: Option<PathBuf>,
}

/// How many hosts are published at a time: nearly all of it is waiting for the disk, which makes many changes durable at once.
const PUBLISHERS: usize = 16;

/// What became of one host, for `--json`.
#[derive(Serialize)]
struct Line {
    /// The host; a directory that is no sound host has its path instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostName>,
    directory: String,
    /// `published`, `unchanged`, `would-publish`, `held` or `failed`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    toplevel: Option<String>,
    /// The digest of the host's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<String>,
    /// Why there is, or would be, a new release.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Since the first evaluation began.
    seconds: f64,
}

impl Line {
    fn new(host: &FleetHost, outcome: &'static str) -> Self {
        Self {
            host: Some(host.host.name.clone()),
            directory: host.dir.display().to_string(),
            outcome,
            serial: None,
            toplevel: None,
            package: None,
            why: Vec::new(),
            error: None,
            seconds: 0.0,
        }
    }

    fn held(host: &FleetHost, hold: &Hold) -> Self {
        let reason = hold.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let why = vec![format!("since {}{reason}", hold.since.strftime("%Y-%m-%d"))];
        Self { why, ..Self::new(host, "held") }
    }

    fn failed(host: Option<&HostName>, directory: &Path, error: &Error, seconds: f64) -> Self {
        Self {
            host: host.cloned(),
            directory: directory.display().to_string(),
            outcome: "failed",
            serial: None,
            toplevel: None,
            package: None,
            why: Vec::new(),
            error: Some(format!("{error:#}")),
            seconds,
        }
    }

    /// For people.
    fn text(&self) -> String {
        let who = self.host.as_ref().map_or(self.directory.as_str(), HostName::as_str);
        let serial = self.serial.map_or_else(String::new, |serial| format!(" release {serial}"));
        let toplevel = self.toplevel.as_ref().map_or_else(String::new, |toplevel| format!(": {toplevel}"));
        let why: String = self.why.iter().map(|why| format!("\n    {why}")).collect();
        match (&self.error, self.outcome) {
            // the trace of an evaluation begins on a line of its own
            (Some(error), _) if error.starts_with('\n') => format!("{who}: failed:{error}"),
            (Some(error), _) => format!("{who}: failed: {error}"),
            (None, "unchanged") => format!("{who}: unchanged,{serial}{toplevel}"),
            (None, "held") => format!("{who}: held, {}", self.why.join(", ")),
            (None, "would-publish") => format!("{who}: would publish{serial}{toplevel}{why}"),
            (None, _) => format!("{who}: published{serial}{toplevel} ({:.1} s)", self.seconds),
        }
    }
}

/// What of a fleet is published.
struct Found<'a> {
    selection: &'a Selection,
    fleet: &'a Fleet,
    hosts: &'a [&'a FleetHost],
    /// Whether nothing else is pushed.
    alone: bool,
}

impl Found<'_> {
    /// What is wrong with the fleet, as far as it was asked for.
    fn broken(&self) -> Vec<Line> {
        let concerned = self.fleet.concerned(self.selection);
        concerned.map(|broken| Line::failed(broken.name.as_ref(), &broken.dir, &broken.error, 0.0)).collect()
    }
}

/// What all hosts are deployed with.
struct Work<'a> {
    releases: Releases<'a>,
    search_path: &'a SearchPath,
    builder: &'a Builder,
    digest_key: Option<&'a DigestKey>,
    display: &'a Display,
}

/// What becomes of each host, by its index. Failures are said when they are known, all else in the order of the hosts.
struct Ledger<'a> {
    entries: Mutex<Entries>,
    say: &'a (dyn Fn(&Line) + Sync),
}

struct Entries {
    lines: Vec<Option<Line>>,
    /// How many of the first have been said.
    said: usize,
}

impl<'a> Ledger<'a> {
    /// The ledger of so many hosts.
    fn new(hosts: usize, say: &'a (dyn Fn(&Line) + Sync)) -> Self {
        let lines = (0..hosts).map(|_| None).collect();
        Self { entries: Mutex::new(Entries { lines, said: 0 }), say }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters what became of a host.
    fn enter(&self, index: usize, line: Line) {
        let mut entries = self.entries();
        if line.error.is_some() {
            (self.say)(&line);
        }
        entries.lines[index] = Some(line);
        let Entries { lines, said } = &mut *entries;
        for line in lines[*said..].iter().map_while(Option::as_ref) {
            if line.error.is_none() {
                (self.say)(line);
            }
            *said += 1;
        }
    }

    /// The hosts of which nothing is known.
    fn missing(&self) -> Vec<usize> {
        let entries = self.entries();
        (0..entries.lines.len()).filter(|index| entries.lines[*index].is_none()).collect()
    }

    /// What became of all hosts, in their order.
    fn close(self) -> Result<Vec<Line>> {
        let entries = self.entries.into_inner().unwrap_or_else(PoisonError::into_inner);
        entries.lines.into_iter().map(|line| line.context("what became of a host was lost")).collect()
    }
}

impl Deploy {
    pub(super) fn run(self) -> Result<ExitCode> {
        if self.helper {
            return push::show_helper();
        }
        let dir = match &self.flake {
            Some(dir) => std::env::current_dir().context("cannot tell the working directory")?.join(dir),
            None => super::fleet_dir()?,
        };
        let config = Config::read(&dir)?;
        let hub = if self.publish { Some(config.hub(&dir)?) } else { config.hub.as_ref().map(HubConfig::hub) };
        if self.resume {
            let options = self.pushing.resolve(&config.push, &config.build.options)?;
            return push::resume(&options, self.json, hub.as_ref());
        }
        let (mut targets, words) = self.words()?;
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator()?;
        // without a hub there are no releases
        let signing_key = self.signing_key.as_deref().or(config.release.signing_key.as_deref());
        let signing_key = signing_key.filter(|_| hub.is_some());
        let signer = if hub.is_some() { self.signer(signing_key)? } else { None };
        let key = signing_key.map(read_public_key).transpose()?.map(|(key, _)| key);
        let releases = || {
            hub.clone().map(|hub| Releases {
                config: &config,
                hub,
                key: key.as_ref(),
                signer: signer.as_ref(),
                mode: self.mode,
                days: self.valid_for,
            })
        };
        let mut others = ExitCode::SUCCESS;
        if targets.is_empty() || !words.is_empty() {
            let selection = self.fleet.selection(&words, &config)?;
            let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
            let by_name = self.push || hub.is_none() && selection.is_said();
            let pushed = |host: &HostName| match config.hosts.get(host).and_then(|host| host.push.clone()) {
                _ if self.publish => None,
                Some(target) => Some(Target { config: Some(host.clone()), ..target }),
                None => by_name.then(|| Target::named(host)),
            };
            targets.extend(fleet.selected(&selection).filter_map(|host| pushed(&host.host.name)));
            let rest: Vec<&FleetHost> =
                fleet.selected(&selection).filter(|host| pushed(&host.host.name).is_none()).collect();
            let found = Found { selection: &selection, fleet: &fleet, hosts: &rest, alone: targets.is_empty() };
            // a whole fleet is recorded also if all of it is pushed
            let concerned = !rest.is_empty() || fleet.concerned(&selection).next().is_some();
            others = match releases() {
                Some(releases) if concerned || selection.is_all() => {
                    self.publish_fleet(releases, &found, evaluator.as_ref(), &search_path)?
                }
                None if concerned => self.leave(&found)?,
                _ => ExitCode::SUCCESS,
            };
        }
        if targets.is_empty() {
            return Ok(others);
        }
        let desk = Desk {
            options: self.pushing.resolve(&config.push, &config.build.options)?,
            screen: Screen::new(self.json),
            evaluator: evaluator.as_ref(),
            search_path: &search_path,
            release: releases(),
        };
        let endings = desk.push(&dir, &targets, self.dry_run)?;
        let pushed = desk.sum_up(&endings);
        Ok(if others == ExitCode::SUCCESS { pushed } else { others })
    }

    /// The arguments that are targets, and the others.
    fn words(&self) -> Result<(Vec<Target>, Vec<String>)> {
        let mut targets = Vec::new();
        let mut words = Vec::new();
        for word in &self.hosts {
            if Target::is_meant(word) {
                targets.push(word.parse()?);
            } else {
                words.push(word.clone());
            }
        }
        Ok((targets, words))
    }

    /// Says of hosts that there is neither a hub to publish them to nor a place to push them to.
    fn leave(&self, found: &Found<'_>) -> Result<ExitCode> {
        let mut lines = found.broken();
        if let Some(first) = found.hosts.first().filter(|_| found.alone && lines.is_empty()) {
            bail!(
                "the fleet has no hub to publish to, and nothing says where its hosts are pushed to: name them (`bento deploy {name}`, or \
                 --push for all of them), have hosts.NAME.push in a {TOML} say where each is, or name a hub there, as hub.directory",
                name = first.host.name
            );
        }
        lines.extend(found.hosts.iter().map(|FleetHost { host, dir, .. }| {
            let error = anyhow!(
                "the fleet has no hub to publish it to, and the settings do not say where it is pushed to, as hosts.{name}.push: \
                 `bento deploy {name}` pushes to the machine of that name",
                name = host.name
            );
            Line::failed(Some(&host.name), dir, &error, 0.0)
        }));
        lines.iter().for_each(|line| eprintln!("{}", line.text()));
        self.sum_up(&lines, found.alone)
    }

    /// Prints what became of hosts, if that is to be JSON; gives the exit status.
    fn sum_up(&self, lines: &[Line], alone: bool) -> Result<ExitCode> {
        if self.json && alone {
            super::print_json(&lines)?;
        } else if self.json {
            for line in lines {
                super::print(&(serde_json::to_string(line).context("cannot write JSON")? + "\n"))?;
            }
        }
        let failed = lines.iter().any(|line| line.error.is_some());
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Evaluates these hosts of the fleet, builds them, and publishes those that changed.
    fn publish_fleet(
        &self,
        releases: Releases<'_>,
        found: &Found<'_>,
        evaluator: &dyn Evaluator,
        search_path: &SearchPath,
    ) -> Result<ExitCode> {
        let Found { selection, fleet, hosts: selected, alone } = found;
        let (config, hub) = (releases.config, releases.hub.clone());
        // a plan must not even create the hub's directory
        let _lock = if self.dry_run { None } else { Some(hub.lock()?) };
        let holds = hub.holds()?;
        let display = Display::new();
        let say = |line: &Line| {
            if !self.json || line.error.is_some() {
                display.say(&line.text());
            }
        };
        let mut lines = found.broken();
        let (held, hosts): (Vec<&FleetHost>, Vec<&FleetHost>) =
            selected.iter().partition(|host| holds.contains_key(&host.host.name));
        lines.extend(held.iter().map(|host| Line::held(host, &holds[&host.host.name])));
        lines.iter().for_each(say);
        let builder = Builder::new(&config.build.options);
        if hosts.iter().any(|host| self.builds(config, host)) {
            builder.check().context("set NOLOCALBUILD to publish without building here")?;
        }
        // a plan must not make a key
        let digest_key = digest_key(hosts.iter().copied(), !self.dry_run)?;
        let work =
            Work { releases, search_path, builder: &builder, digest_key: digest_key.as_ref(), display: &display };
        let ledger = Ledger::new(hosts.len(), &say);
        self.deploy_hosts(&work, evaluator, &hosts, &ledger)?;
        lines.extend(ledger.close()?);
        if !self.dry_run && selection.is_all() {
            record_fleet(&hub, fleet)?;
        }
        self.sum_up(&lines, *alone)
    }

    /// Who signs, if anybody; nobody does for a plan.
    fn signer(&self, key: Option<&Path>) -> Result<Option<Signer>> {
        if self.dry_run {
            return Ok(None);
        }
        let signer = key.map(|key| Signer::open(key, super::ssh_agent().as_deref())).transpose()?;
        if signer.is_none() {
            eprintln!(
                "warning: the releases are not signed, so only hosts with unsigned-releases = true take them up: set \
                 SIGNING_KEY"
            );
        }
        Ok(signer)
    }

    /// Whether a host's system is built here before it is published.
    fn builds(&self, config: &Config, host: &FleetHost) -> bool {
        !self.dry_run && !self.no_build && !self.built && config.builds(&host.host.name)
    }

    /// Has the hosts evaluated, and publishes each as soon as it may be: when it is evaluated, or else, if it is built here,
    /// when all are built. Enters into the ledger what becomes of each.
    fn deploy_hosts(
        &self,
        work: &Work<'_>,
        evaluator: &dyn Evaluator,
        hosts: &[&FleetHost],
        ledger: &Ledger<'_>,
    ) -> Result<()> {
        let start = Instant::now();
        let fail = |index: usize, error: &Error| {
            let FleetHost { host, dir, .. } = hosts[index];
            ledger.enter(index, Line::failed(Some(&host.name), dir, error, start.elapsed().as_secs_f64()));
        };
        let (built, others): (Vec<usize>, Vec<usize>) =
            (0..hosts.len()).partition(|index| self.builds(work.releases.config, hosts[*index]));
        // it has to begin before there are any threads
        let evaluations = Aside::start(|done| {
            for (indices, to_build) in [(&built, true), (&others, false)] {
                let subjects: Vec<Subject<'_>> = indices.iter().map(|index| hosts[*index].subject()).collect();
                let mut done = |at: usize, evaluation| done(indices[at], evaluation);
                if to_build {
                    evaluator.instantiate_fleet(&subjects, work.search_path, &mut done);
                } else {
                    evaluator.evaluate_fleet(&subjects, work.search_path, &mut done);
                }
            }
        })?;
        let (hand_over, waiting) = mpsc::channel::<(usize, Evaluation)>();
        let waiting = Mutex::new(waiting);
        let publish = || {
            let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
            while let Some((index, evaluation)) = next() {
                match self.publish(work, hosts[index], &evaluation) {
                    Ok(line) => ledger.enter(index, Line { seconds: start.elapsed().as_secs_f64(), ..line }),
                    Err(error) => fail(index, &error),
                }
            }
        };
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..PUBLISHERS.min(hosts.len())).map(|_| scope.spawn(publish)).collect();
            let mut to_build = BTreeMap::new();
            let listened = evaluations.listen(&mut |index, evaluation| match evaluation {
                Ok(evaluation) if self.builds(work.releases.config, hosts[index]) => {
                    to_build.insert(index, evaluation);
                }
                // a publisher leaves only if it broke, which is told below
                Ok(evaluation) => drop(hand_over.send((index, evaluation))),
                Err(error) => fail(index, &anyhow!(hosts[index].tree.original_names(&format!("{error:#}")))),
            });
            let jobs: Vec<Job<'_>> =
                to_build.iter().map(|(index, evaluation)| Job { host: &hosts[*index].host, evaluation }).collect();
            let results = work.builder.build(&jobs, work.display);
            for ((index, evaluation), result) in to_build.into_iter().zip(results) {
                match result {
                    Ok(_) => drop(hand_over.send((index, evaluation))),
                    Err(error) => fail(index, &error),
                }
            }
            drop(hand_over);
            for publisher in publishers {
                publisher.join().map_err(|_| anyhow!("publishing broke: this is a defect of bento"))?;
            }
            if let Err(error) = listened {
                ledger.missing().into_iter().for_each(|index| fail(index, &error));
            }
            Ok(())
        })
    }

    /// Publishes one host.
    fn publish(&self, work: &Work<'_>, fleet_host: &FleetHost, evaluation: &Evaluation) -> Result<Line> {
        let Work { releases, search_path, builder, digest_key, display } = work;
        let hub = &releases.hub;
        let FleetHost { host, tree, .. } = fleet_host;
        let toplevel = &evaluation.toplevel;
        if self.built && !self.dry_run {
            builder.find(toplevel, &releases.config.release.substituters)?;
        }
        let now = Timestamp::now();
        let secrets = releases.secrets(fleet_host, *digest_key)?;
        let candidate = releases.candidate(host, tree, secrets, evaluation, search_path, now)?;
        let line = |published, new, why| {
            let (outcome, serial) = match published {
                Published::New { serial } => (new, serial),
                Published::Unchanged { serial } => ("unchanged", serial),
            };
            let (toplevel, package) = (Some(toplevel.to_string()), Some(candidate.package.digest()));
            Line { serial: Some(serial), toplevel, package, why, ..Line::new(fleet_host, outcome) }
        };
        if self.dry_run {
            let plan = publish::plan(hub, &candidate, releases.key, now)?;
            return Ok(line(plan.published, "would-publish", plan.why));
        }
        let done = publish::publish(hub, &candidate, releases.signer, now)?;
        let (Published::New { serial } | Published::Unchanged { serial }) = done.published;
        if (self.built || self.builds(releases.config, fleet_host)) && toplevel.as_path().exists() {
            publish::keep_releases(hub, &host.name, serial, |link| builder.keep(toplevel, link))?;
        }
        if done.lacks_user {
            display.say(&format!(
                "{0}: this machine has no user {0}: sshd lets the host in only once it has (`bento hub serve` needs none)",
                host.name
            ));
        }
        Ok(line(done.published, "published", done.why))
    }
}

/// How releases are made, and where they go.
pub(super) struct Releases<'a> {
    pub(super) config: &'a Config,
    pub(super) hub: Hub,
    /// The public half of the key that signs.
    pub(super) key: Option<&'a PublicKey>,
    /// Who signs; nobody does for a plan.
    pub(super) signer: Option<&'a Signer>,
    /// How hosts get their systems, whatever the settings say.
    pub(super) mode: Option<ReleaseMode>,
    /// For how many days hosts accept a release, whatever the settings say.
    pub(super) days: Option<u16>,
}

impl Releases<'_> {
    /// What only this host may read; the key is the one that secrets are known again by, if any host has some.
    pub(super) fn secrets(&self, host: &FleetHost, digest_key: Option<&DigestKey>) -> Result<Vec<Draft>> {
        let Some(folder) = &host.secrets else { return Ok(Vec::new()) };
        let name = &host.host.name;
        let keys = self.config.hosts.get(name).map_or(&[][..], |host| &host.keys);
        Draft::of_folder(name, folder, keys, digest_key)
    }

    /// What would be published to a host.
    pub(super) fn candidate<'h>(
        &self,
        host: &'h Host,
        tree: &'h SourceTree,
        secrets: Vec<Draft>,
        evaluation: &Evaluation,
        search_path: &SearchPath,
        now: Timestamp,
    ) -> Result<Candidate<'h>> {
        let config = self.config;
        let days = self.days.or(config.release.valid_for_days);
        Ok(Candidate {
            host,
            tree,
            package: Package::of(&tree.path())?,
            secrets,
            evaluation: evaluation.clone(),
            search_path: match host.kind {
                HostKind::Flake => Vec::new(),
                HostKind::NonFlake => search_path.portable(),
            },
            mode: self.mode.unwrap_or_else(|| config.mode(&host.name)),
            substituters: config.release.substituters.clone(),
            trusted_public_keys: config.release.trusted_public_keys.clone(),
            expires: days.map(|days| now.checked_add(Span::new().hours(24 * i64::from(days)))).transpose()?,
        })
    }

    /// Publishes to a host what is pushed to it; gives the release's serial.
    pub(super) fn publish(
        &self,
        host: &Host,
        tree: &SourceTree,
        secrets: Vec<Draft>,
        evaluation: &Evaluation,
        search_path: &SearchPath,
    ) -> Result<u64> {
        let _lock = self.hub.lock()?;
        let now = Timestamp::now();
        let candidate = self.candidate(host, tree, secrets, evaluation, search_path, now)?;
        let (Published::Unchanged { serial } | Published::New { serial }) =
            publish::publish(&self.hub, &candidate, self.signer, now)?.published;
        Ok(serial)
    }

    /// Reports what came of a push, in the place of a host that does not do so itself.
    pub(super) fn report(&self, host: &Host, serial: u64, started: Timestamp, delivered: &Delivered) -> Result<()> {
        let _lock = self.hub.lock()?;
        let story = Story { host: &host.name, serial, started, delivered };
        record::report(&self.hub, &story, Timestamp::now())
    }
}

/// The user's key that secrets are known again by, if any of these hosts has some; it is made only if `create` says so.
pub(super) fn digest_key<'h>(
    hosts: impl IntoIterator<Item = &'h FleetHost>,
    create: bool,
) -> Result<Option<DigestKey>> {
    let secret = |host: &FleetHost| host.has_secrets().unwrap_or(true);
    hosts.into_iter().any(secret).then(|| DigestKey::of_user(create)).transpose()
}

/// Remembers which hosts there are, so that `status` can tell those that were removed.
fn record_fleet(hub: &Hub, fleet: &Fleet) -> Result<()> {
    let mut hosts: Vec<HostName> = fleet.hosts.iter().map(|host| host.host.name.clone()).collect();
    hosts.extend(fleet.broken.iter().filter_map(|broken| broken.name.clone()));
    // a flake that can't be read hides its hosts: they aren't removed
    if fleet.broken.iter().any(|broken| broken.name.is_none()) {
        hosts.extend(hub.fleet()?.unwrap_or_default());
    }
    hub.record_fleet(hosts)
}
