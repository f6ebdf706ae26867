//! `bento deploy`: evaluate the fleet, build it, and publish what changed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow};
use clap::Args;
use jiff::{Span, Timestamp};
use serde::Serialize;
use ssh_key::PublicKey;

use super::fleet::FleetOptions;
use super::progress::Display;
use super::push::{self, Desk, PushOptions, Screen};
use crate::build::{Builder, Job};
use crate::evaluation::{Evaluation, Evaluator, SearchPath, Subject};
use crate::fleet::config::Config;
use crate::fleet::{Fleet, FleetHost, Selection};
use crate::host::{Host, HostKind, HostName};
use crate::hub::Hub;
use crate::manifest::ReleaseMode;
use crate::package::Package;
use crate::publish::{self, Candidate, Published};
use crate::push::deliver::Delivered;
use crate::push::record::{self, Story};
use crate::push::target::Target;
use crate::secrets::draft::{DigestKey, Draft};
use crate::secrets::folder;
use crate::sign::{Signer, read_public_key};
use crate::source::SourceTree;

/// Evaluate the fleet's hosts, build them, and publish those that changed; or push systems to machines over SSH
///
/// A host that can't be evaluated or built is not published; the others are, and the exit status is 1. With NOLOCALBUILD
/// nothing is built here.
///
/// What is pushed: targets (`nixos://[USER@]HOST[:PORT][/CONFIGURATION]`, or `USER@HOST`), hosts with `push` in the settings, with
/// --push all hosts, and where the fleet has no settings too, as there is no hub then. A pushed system is tried out, confirmed by a
/// new connection, and only then kept; the exit status is 0 only if all of that worked everywhere.
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
    seconds: f64,
}

impl Line {
    fn new(host: &FleetHost, outcome: &'static str, seconds: f64) -> Self {
        Self {
            host: Some(host.host.name.clone()),
            directory: host.dir.display().to_string(),
            outcome,
            serial: None,
            toplevel: None,
            package: None,
            why: Vec::new(),
            error: None,
            seconds,
        }
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

/// What all hosts are deployed with.
struct Work<'a> {
    releases: Releases<'a>,
    search_path: &'a SearchPath,
    builder: &'a Builder,
    digest_key: Option<&'a DigestKey>,
}

/// A host on its way to being published.
struct Step<'a> {
    host: &'a FleetHost,
    evaluation: Evaluation,
    seconds: f64,
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
        // without a hub there is nothing to publish to
        let config = match Config::exists(&dir) || self.hosts.is_empty() && !self.resume {
            true => Some(Config::read(&dir)?),
            false => None,
        };
        let settings = config.as_ref().map(|config| config.push.clone()).unwrap_or_default();
        let build_options = config.as_ref().map(|config| config.build.options.clone()).unwrap_or_default();
        if self.resume {
            let hub = config.as_ref().map(|config| Hub::new(&config.hub.directory));
            return push::resume(&self.pushing.resolve(&settings, &build_options)?, self.json, hub.as_ref());
        }
        let (mut targets, words): (Vec<Target>, Vec<String>) = self.words(config.is_none())?;
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator()?;
        let signing_key =
            config.as_ref().and_then(|config| self.signing_key.as_deref().or(config.release.signing_key.as_deref()));
        let signer = if config.is_some() { self.signer(signing_key)? } else { None };
        let key = signing_key.map(read_public_key).transpose()?.map(|(key, _)| key);
        let mut published = ExitCode::SUCCESS;
        if let Some(config) = config.as_ref().filter(|_| targets.is_empty() || !words.is_empty()) {
            let selection = self.fleet.selection(&words, config)?;
            let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
            let pushed = |host: &HostName| match config.hosts.get(host).and_then(|host| host.push.clone()) {
                _ if self.publish => None,
                Some(target) => Some(Target { config: Some(host.clone()), ..target }),
                None => self.push.then(|| Target::named(host)),
            };
            targets.extend(fleet.selected(&selection).filter_map(|host| pushed(&host.host.name)));
            let mut rest = fleet.selected(&selection).filter(|host| pushed(&host.host.name).is_none()).peekable();
            // a whole fleet is recorded also if all of it is pushed
            if rest.peek().is_some() || fleet.concerned(&selection).next().is_some() || selection.is_all() {
                let rest: Vec<&FleetHost> = rest.collect();
                let found = Found { selection: &selection, fleet: &fleet, hosts: &rest, alone: targets.is_empty() };
                published = self.publish_fleet(
                    config,
                    &found,
                    key.as_ref(),
                    signer.as_ref(),
                    evaluator.as_ref(),
                    &search_path,
                )?;
            }
        }
        if targets.is_empty() {
            return Ok(published);
        }
        let release = config.as_ref().map(|config| Releases {
            config,
            hub: Hub::new(&config.hub.directory),
            key: key.as_ref(),
            signer: signer.as_ref(),
            mode: self.mode,
            days: self.valid_for,
        });
        let desk = Desk {
            options: self.pushing.resolve(&settings, &build_options)?,
            screen: Screen::new(self.json),
            evaluator: evaluator.as_ref(),
            search_path: &search_path,
            release,
        };
        let endings = desk.push(&dir, &targets, self.dry_run)?;
        let pushed = desk.sum_up(&endings);
        Ok(if published == ExitCode::SUCCESS { pushed } else { published })
    }

    /// The arguments that are targets, and the others; `all` if all of them are.
    fn words(&self, all: bool) -> Result<(Vec<Target>, Vec<String>)> {
        let mut targets = Vec::new();
        let mut words = Vec::new();
        for word in &self.hosts {
            if Target::is_meant(word) {
                targets.push(word.parse()?);
            } else if all {
                targets.push(Target::named(&HostName::new(word.as_str())?));
            } else {
                words.push(word.clone());
            }
        }
        Ok((targets, words))
    }

    /// Evaluates these hosts of the fleet, builds them, and publishes those that changed.
    fn publish_fleet(
        &self,
        config: &Config,
        found: &Found<'_>,
        key: Option<&PublicKey>,
        signer: Option<&Signer>,
        evaluator: &dyn Evaluator,
        search_path: &SearchPath,
    ) -> Result<ExitCode> {
        let Found { selection, fleet, hosts: selected, alone } = found;
        let hub = Hub::new(&config.hub.directory);
        // a plan must not even create the hub's directory
        let _lock = if self.dry_run { None } else { Some(hub.lock()?) };
        let holds = hub.holds()?;
        let mut lines = Vec::new();
        let mut say = |line: Line| {
            if !self.json || line.error.is_some() {
                eprintln!("{}", line.text());
            }
            lines.push(line);
        };
        for broken in fleet.concerned(selection) {
            say(Line::failed(broken.name.as_ref(), &broken.dir, &broken.error, 0.0));
        }
        let mut hosts = Vec::new();
        for &host in *selected {
            if let Some(hold) = holds.get(&host.host.name) {
                let mut line = Line::new(host, "held", 0.0);
                let reason = hold.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
                line.why = vec![format!("since {}{reason}", hold.since.strftime("%Y-%m-%d"))];
                say(line);
                continue;
            }
            hosts.push(host);
        }
        let builder = Builder::new(&config.build.options);
        let (built, others): (Vec<&FleetHost>, Vec<&FleetHost>) =
            hosts.into_iter().partition(|host| self.builds(config, host));
        if !built.is_empty() {
            builder.check().context("set NOLOCALBUILD to publish without building here")?;
        }
        let start = Instant::now();
        let mut steps = Vec::new();
        for (hosts, to_build) in [(built, true), (others, false)] {
            let subjects: Vec<Subject<'_>> = hosts.iter().map(|host| host.subject()).collect();
            let mut done = |index: usize, evaluation: Result<Evaluation>| {
                let (host, seconds) = (hosts[index], start.elapsed().as_secs_f64());
                match evaluation {
                    Ok(evaluation) => steps.push(Step { host, evaluation, seconds }),
                    Err(error) => {
                        let error = anyhow!(host.tree.original_names(&format!("{error:#}")));
                        say(Line::failed(Some(&host.host.name), &host.dir, &error, seconds));
                    }
                }
            };
            if to_build {
                evaluator.instantiate_fleet(&subjects, search_path, &mut done);
            } else {
                evaluator.evaluate_fleet(&subjects, search_path, &mut done);
            }
        }
        steps.sort_by(|one, other| one.host.host.name.cmp(&other.host.host.name));
        // a plan must not make a key
        let digest_key = digest_key(steps.iter().map(|step| step.host), !self.dry_run)?;
        let work = Work {
            releases: Releases { config, hub: hub.clone(), key, signer, mode: self.mode, days: self.valid_for },
            search_path,
            builder: &builder,
            digest_key: digest_key.as_ref(),
        };
        for (step, error) in self.gate(&work, &mut steps)? {
            say(Line::failed(Some(&step.host.host.name), &step.host.dir, &error, step.seconds));
        }
        for line in self.publish_all(&work, &steps)? {
            say(line);
        }
        if !self.dry_run && selection.is_all() {
            record_fleet(&hub, fleet)?;
        }
        if self.json && *alone {
            super::print_json(&lines)?;
        } else if self.json {
            for line in &lines {
                super::print(&(serde_json::to_string(line).context("cannot write JSON")? + "\n"))?;
            }
        }
        let failed = lines.iter().any(|line| line.error.is_some());
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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

    /// Whether a host's system has to be built, here or elsewhere, before it is published.
    fn gated(&self, work: &Work<'_>, step: &Step<'_>) -> bool {
        (self.built && !self.dry_run) || self.builds(work.releases.config, step.host)
    }

    /// Takes out of `steps` what must not be published, because it can't be built or isn't.
    fn gate<'a>(&self, work: &Work<'_>, steps: &mut Vec<Step<'a>>) -> Result<Vec<(Step<'a>, Error)>> {
        let results: Vec<Result<()>> = if self.no_build {
            return Ok(Vec::new());
        } else if self.built {
            let check = |step: &Step<'_>| {
                let toplevel = &step.evaluation.toplevel;
                match !self.gated(work, step)
                    || work.builder.is_available(toplevel, &work.releases.config.release.substituters)
                {
                    true => Ok(()),
                    false => Err(anyhow!("{toplevel} is neither here nor in one of release.substituters")),
                }
            };
            steps.iter().map(check).collect()
        } else {
            let jobs: Vec<Job<'_>> = steps
                .iter()
                .filter(|step| self.gated(work, step))
                .map(|step| Job { host: &step.host.host, evaluation: &step.evaluation })
                .collect();
            let mut built = work.builder.build(&jobs, &Display::new()).into_iter();
            let result = |step: &Step<'_>| {
                self.gated(work, step).then(|| built.next()).flatten().map_or(Ok(()), |result| result.map(|_| ()))
            };
            steps.iter().map(result).collect()
        };
        let mut refused = Vec::new();
        for (step, result) in std::mem::take(steps).into_iter().zip(results) {
            match result {
                Ok(()) => steps.push(step),
                Err(error) => refused.push((step, error)),
            }
        }
        Ok(refused)
    }

    /// Publishes hosts, many at a time; gives what became of each.
    fn publish_all(&self, work: &Work<'_>, steps: &[Step<'_>]) -> Result<Vec<Line>> {
        let publish = |step: &Step<'_>| {
            let start = Instant::now();
            let line = self.publish(work, step);
            let seconds = step.seconds + start.elapsed().as_secs_f64();
            match line {
                Ok(line) => Line { seconds, ..line },
                Err(error) => Line::failed(Some(&step.host.host.name), &step.host.dir, &error, seconds),
            }
        };
        let next = AtomicUsize::new(0);
        let take = || {
            let index = next.fetch_add(1, Ordering::Relaxed);
            steps.get(index).map(|step| (index, step))
        };
        let mut lines = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..PUBLISHERS.min(steps.len()))
                .map(|_| {
                    scope.spawn(|| {
                        std::iter::from_fn(take).map(|(index, step)| (index, publish(step))).collect::<Vec<_>>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().map_err(|_| anyhow!("publishing broke: this is a defect of bento")))
                .collect::<Result<Vec<_>>>()
        })?
        .into_iter()
        .flatten()
        .collect::<Vec<_>>();
        lines.sort_by_key(|(index, _)| *index);
        Ok(lines.into_iter().map(|(_, line)| line).collect())
    }

    /// Publishes one host.
    fn publish(&self, work: &Work<'_>, step: &Step<'_>) -> Result<Line> {
        let Work { releases, search_path, builder, digest_key } = work;
        let hub = &releases.hub;
        let FleetHost { host, tree, .. } = step.host;
        let now = Timestamp::now();
        let secrets = releases.secrets(step.host, *digest_key)?;
        let candidate = releases.candidate(host, tree, secrets, &step.evaluation, search_path, now)?;
        let digest = candidate.package.digest();
        let plan = publish::plan(hub, &candidate, releases.key, now)?;
        let (outcome, serial) = match plan.published {
            Published::New { serial } if self.dry_run => ("would-publish", serial),
            Published::Unchanged { serial } if self.dry_run => ("unchanged", serial),
            _ => match publish::publish(hub, &candidate, releases.signer, now)? {
                Published::Unchanged { serial } => ("unchanged", serial),
                Published::New { serial } => ("published", serial),
            },
        };
        if !self.dry_run {
            let toplevel = &step.evaluation.toplevel;
            if self.gated(work, step) && toplevel.as_path().exists() {
                publish::keep_releases(hub, &host.name, serial, |link| builder.keep(toplevel, link))?;
            }
            if publish::lacks_user(host)? {
                eprintln!(
                    "{0}: this machine has no user {0}: sshd lets the host in only once it has (`bento hub serve` needs none)",
                    host.name
                );
            }
        }
        Ok(Line {
            serial: Some(serial),
            toplevel: Some(step.evaluation.toplevel.to_string()),
            package: Some(digest),
            why: plan.why,
            ..Line::new(step.host, outcome, 0.0)
        })
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
            publish::publish(&self.hub, &candidate, self.signer, now)?;
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
    let secret = |host: &FleetHost| host.secrets.as_deref().is_some_and(|dir| folder::has_secrets(dir).unwrap_or(true));
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
