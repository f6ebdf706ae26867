//! One push, from a machine that was looked at to its end: build, copy, check, trial, confirmation.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::agent::machine::{Attempt, Event, Goal, Phase, Trial};
use crate::build::log::Progress;
use crate::build::{self, Builder, Watcher};
use crate::evaluation::{Evaluation, SearchPath};
use crate::host::{Host, HostKind};
use crate::nix::{Programs, TOPLEVEL, flake_toplevel, non_flake_expression};
use crate::process::converse;
use crate::push::facts::Facts;
use crate::push::lockout::Access;
use crate::push::remote::{Remote, Unreachable};
use crate::push::run::{Held, Runs};
use crate::push::settings::BuildOn;
use crate::push::target::Target;
use crate::push::{Ending, Machine, Observer, Options, Step};
use crate::report::{Outcome, Stage};
use crate::source::{SourceTree, TREE_NAME};
use crate::store_path::StorePath;

/// How often a machine is asked how far its trial is.
const TICK: Duration = Duration::from_millis(500);
/// For how long a question may take that a machine answers at once.
const BRIEF: Duration = Duration::from_secs(30);
/// For how long a question may take while the network may be gone.
const ATTEMPT: Duration = Duration::from_secs(10);

/// A push that ended at one of the steps, with a reason.
struct Stopped {
    stage: Stage,
    error: Error,
}

trait At<T> {
    /// Says at which step it was that something went wrong.
    fn at(self, stage: Stage) -> Result<T, Stopped>;
}

impl<T, E: Into<Error>> At<T> for Result<T, E> {
    fn at(self, stage: Stage) -> Result<T, Stopped> {
        self.map_err(|error| Stopped { stage, error: error.into() })
    }
}

/// A configuration that a machine shall run.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Whose it is.
    pub host: &'a Host,
    /// The staged files.
    pub tree: &'a SourceTree,
    /// What they come to. If it is built here ([`Options::builds_here`]), the derivation is in this machine's store.
    pub evaluation: &'a Evaluation,
    /// Where `<name>` was looked up.
    pub search_path: &'a SearchPath,
}

/// What a machine shall run.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// What a configuration comes to, and what that says about who can log in.
    Configuration {
        /// What has to be built.
        job: Job<'a>,
        /// What it says about logging in.
        access: Option<&'a Access>,
        /// The release that stands for it on the hub, if the push is to be reported there.
        serial: Option<u64>,
    },
    /// A system that it ran before.
    System {
        /// Whose it is.
        host: &'a Host,
        /// It.
        toplevel: &'a StorePath,
    },
}

impl Wanted<'_> {
    fn host(&self) -> &Host {
        match self {
            Self::Configuration { job, .. } => job.host,
            Self::System { host, .. } => host,
        }
    }

    fn serial(&self) -> Option<u64> {
        match self {
            Self::Configuration { serial, .. } => *serial,
            Self::System { .. } => None,
        }
    }
}

/// A push under way.
struct Push<'a> {
    machine: &'a mut Machine,
    options: &'a Options,
    observer: &'a dyn Observer,
}

/// How a push ended, and what was on trial, if it came that far.
#[derive(Debug)]
pub struct Delivered {
    /// How.
    pub ending: Ending,
    /// The system that was meant.
    pub toplevel: StorePath,
    /// What ran before.
    pub previous: Option<StorePath>,
    /// What the machine was like at the end, if that is known.
    pub facts: Option<Facts>,
}

/// Pushes to one machine.
pub fn deliver(
    machine: &mut Machine,
    wanted: &Wanted<'_>,
    options: &Options,
    runs: &Runs,
    observer: &dyn Observer,
) -> Delivered {
    let previous = machine.facts.running.clone();
    let mut push = Push { machine, options, observer };
    let mut toplevel = match wanted {
        Wanted::Configuration { job, .. } => job.evaluation.toplevel.clone(),
        Wanted::System { toplevel, .. } => (*toplevel).clone(),
    };
    let ending =
        push.run(wanted, &mut toplevel, runs).unwrap_or_else(|Stopped { stage, error }| Ending::failed(stage, &error));
    let facts = Facts::ask(&push.machine.remote, BRIEF).ok();
    observer.ended(&push.machine.target, &ending);
    Delivered { ending, toplevel, previous, facts }
}

impl Push<'_> {
    fn step(&self, step: Step) {
        self.observer.step(&self.machine.target, step);
    }

    /// All of it. An error is what went wrong before anything was changed.
    fn run(&mut self, wanted: &Wanted<'_>, toplevel: &mut StorePath, runs: &Runs) -> Result<Ending, Stopped> {
        let facts = &self.machine.facts;
        if let Wanted::Configuration { access: Some(access), .. } = wanted
            && self.options.lockout
        {
            let objections = access.objections(facts, self.machine.remote.key.as_deref());
            if !objections.is_empty() {
                let list = objections.join("; ");
                return Err(anyhow!("{list} (--lockout-check=skip goes on all the same)")).at(Stage::Check);
            }
        }
        let settled = |facts: &Facts, toplevel: &StorePath| {
            facts.running.as_ref() == Some(toplevel) && facts.profile.as_ref() == Some(toplevel)
        };
        let exact = wanted.host().kind == HostKind::Flake || matches!(wanted, Wanted::System { .. });
        if exact && settled(facts, toplevel) {
            return Ok(Ending::Unchanged { toplevel: toplevel.clone() });
        }
        let mut held =
            runs.begin(&self.machine.target, &wanted.host().name, toplevel, wanted.serial()).at(Stage::Check)?;
        let nonce = held.run.nonce.clone();
        let ended = self.prepare(wanted, toplevel, &nonce, &mut held).and_then(|()| {
            if settled(&self.machine.facts, toplevel) {
                return Ok(());
            }
            self.begin(toplevel, &mut held)
        });
        match (ended, held.run.phase.trial().is_some()) {
            (Ok(()), true) => {
                let ending = follow(self.machine, &mut held, self.options, self.observer);
                if !matches!(ending, Ending::Lost { .. }) {
                    held.forget().at(Stage::Done)?;
                }
                Ok(ending)
            }
            (ended, began) => {
                // where the trial may have begun after all, its own end comes
                if !began {
                    let _ = self.root(&["drop", &nonce], BRIEF);
                }
                held.forget().at(Stage::Done)?;
                ended.map(|()| Ending::Unchanged { toplevel: toplevel.clone() })
            }
        }
    }

    /// Has the helper do something.
    fn root(&self, words: &[&str], limit: Duration) -> Result<String> {
        self.machine.root.call(&self.machine.remote, words, limit)
    }

    /// Keeps a system from being collected on the machine, where it need not be yet.
    fn hold(&self, nonce: &str, system: &StorePath) -> Result<()> {
        self.root(&["hold", nonce, system.as_str()], BRIEF).map(|_| ())
    }

    /// Brings the system to the machine, kept from being collected there, and has it checked.
    fn prepare(
        &self,
        wanted: &Wanted<'_>,
        toplevel: &mut StorePath,
        nonce: &str,
        held: &mut Held,
    ) -> Result<(), Stopped> {
        let settings = &self.options.settings;
        held.enter(Event::Fetched { goal: Goal::Release }).at(Stage::Build)?;
        self.hold(nonce, toplevel).at(Stage::Build)?;
        if let Wanted::Configuration { job, .. } = wanted {
            *toplevel = self.place(job, nonce).at(Stage::Build)?;
            held.run.toplevel = toplevel.clone();
        }
        held.enter(Event::Built { toplevel: toplevel.clone() }).at(Stage::Build)?;
        self.step(Step::Check);
        let seconds = settings.check_timeout.to_string();
        let limit = Duration::from_secs(settings.check_timeout) + BRIEF;
        let said = self.root(&["check", nonce, &settings.pre_activate_script, &seconds], limit);
        let said = said.context("the system's own check is against activating it").at(Stage::Check)?;
        said.lines().for_each(|line| self.observer.line(&self.machine.target, line));
        Ok(())
    }

    /// Begins the trial, or what is done without one.
    fn begin(&self, toplevel: &StorePath, held: &mut Held) -> Result<(), Stopped> {
        let settings = &self.options.settings;
        let facts = &self.machine.facts;
        let (step, stage, verb, limit) = match self.options.trial {
            true => (Step::Activate, Stage::Activate, "begin", BRIEF),
            false => (Step::Boot, Stage::Boot, "boot", settings.trial()),
        };
        self.step(step);
        let trial = Trial {
            attempt: Attempt::default(),
            toplevel: toplevel.clone(),
            previous: facts.running.clone(),
            standby: facts.profile.clone(),
            boot: facts.boot.clone(),
            failed_units: facts.failed_units.clone(),
            // whoever pushes is the hub
            hub: true,
        };
        let earlier = held.run.phase.clone();
        // on disk first: if this is cut short, whoever asks looks at the machine
        held.enter(Event::Ready { trial }).at(stage)?;
        let figures = [settings.activation_timeout, settings.settle, settings.confirm_timeout].map(|n| n.to_string());
        let words = [verb, &held.run.nonce, &figures[0], &figures[1], &figures[2]];
        let Err(error) = self.root(&words, limit) else { return Ok(()) };
        // the answer was lost, and maybe only that; or it did not come in time
        let begun = || Said::ask(&self.machine.remote, &held.run.nonce, 0).is_ok_and(|said| said.phase.is_some());
        if error.downcast_ref::<Unreachable>().is_some() || begun() {
            return Ok(());
        }
        held.run.phase = earlier;
        Err(error).at(stage)
    }

    /// Has the system be in the machine's store.
    fn place(&self, job: &Job<'_>, nonce: &str) -> Result<StorePath> {
        if self.options.builds_here(&self.machine.facts) {
            return self.build_here(job, nonce);
        }
        match &self.options.settings.build_on {
            BuildOn::Auto | BuildOn::Here | BuildOn::Target => {
                self.build_there(&self.machine.remote, job, "the target", |built| self.hold(nonce, built))
            }
            BuildOn::Builder(builder) => {
                self.step(Step::Connect);
                let limit = Duration::from_secs(self.options.settings.connect_timeout);
                let remote = Remote::connect(&builder.destination, &self.options.ssh, limit).context("the builder")?;
                self.build_there(&remote, job, "the builder", |built| {
                    // through this machine: the one need not know the other
                    self.copy(&remote, "--from", None, built).context("from the builder")?;
                    self.copy_there(built, nonce)
                })
            }
        }
    }

    fn build_here(&self, job: &Job<'_>, nonce: &str) -> Result<StorePath> {
        self.step(Step::Build);
        let watcher = Told { observer: self.observer, target: &self.machine.target };
        let builder = Builder::new(&self.options.build_options).within(self.options.settings.build_timeout);
        let job = build::Job { host: job.host, evaluation: job.evaluation };
        let built = builder.build(&[job], &watcher).pop().context("the build was lost")??;
        // not collected before it is copied
        let kept = tempfile::tempdir().context("cannot make a directory")?;
        builder.keep(&built, &kept.path().join("result"))?;
        self.copy_there(&built, nonce)?;
        Ok(built)
    }

    /// Copies a system from this machine's store to the target's, which takes what it can from its binary caches.
    fn copy_there(&self, system: &StorePath, nonce: &str) -> Result<()> {
        self.step(Step::Copy);
        // before it is there: so it can't be collected in between
        self.hold(nonce, system)?;
        let program = (!self.machine.root.needs_password()).then(|| format!("{} serve", self.machine.root.words()));
        self.copy(&self.machine.remote, "--to", program.as_deref(), system).context("the system can't be copied")
    }

    fn copy(&self, remote: &Remote, direction: &str, program: Option<&str>, system: &StorePath) -> Result<()> {
        let (place, options) = remote.for_nix();
        let program =
            program.map_or_else(String::new, |program| format!("?remote-program={}", program.replace(' ', "%20")));
        let mut command = Programs::default().nix("copy");
        command.args(["--no-check-sigs", "--substitute-on-destination", direction]);
        command.arg(format!("ssh://{place}{program}")).arg(system.as_path()).env("NIX_SSHOPTS", options);
        let spoken = converse(&mut command, b"", None, Duration::from_secs(self.options.settings.copy_timeout))?;
        if spoken.status.success() {
            return Ok(());
        }
        let said = spoken.stderr.trim().trim_start_matches("error: ");
        let hint = match said.contains("signature") || said.contains("trusted") {
            true => {
                " (who logs in there is no trusted user of Nix: allow the helper without a password, or use --build-on target)"
            }
            false => "",
        };
        bail!("{}{hint}", last_lines(said));
    }

    /// Builds on another machine, from a copy of the source. What is done with it there is done before it can be collected.
    fn build_there(
        &self,
        remote: &Remote,
        job: &Job<'_>,
        who: &str,
        done: impl FnOnce(&StorePath) -> Result<()>,
    ) -> Result<StorePath> {
        let settings = &self.options.settings;
        self.step(Step::Source);
        let archive = job.tree.pack()?;
        let unpack = format!(
            "dir=$(mktemp -d /tmp/bento-push-XXXXXX) && head -c {} | tar -x -p -C \"$dir\" && echo \"$dir\"",
            archive.len()
        );
        let dir = remote.feed(&unpack, &archive, Duration::from_secs(settings.copy_timeout));
        let dir = dir.with_context(|| format!("the source can't be copied to {who}"))?.trim().to_owned();
        if !dir.starts_with("/tmp/bento-push-") {
            bail!("{who} made no directory for the source: it says {dir:?}");
        }
        self.step(Step::Build);
        let built = self.build_in(remote, job, &dir).with_context(|| format!("the build on {who} failed"));
        let built = built.and_then(|built| {
            if job.host.kind == HostKind::Flake && built != job.evaluation.toplevel {
                bail!("{who} built {built}, and not {}", job.evaluation.toplevel);
            }
            done(&built)?;
            Ok(built)
        });
        // what is left over goes with the next start
        let _ = remote.run(&format!("rm -rf {dir}"), BRIEF);
        built
    }

    fn build_in(&self, remote: &Remote, job: &Job<'_>, dir: &str) -> Result<StorePath> {
        let tree = Path::new(dir).join(TREE_NAME);
        let words = match job.host.kind {
            HostKind::Flake => {
                let mut words = self.options.build_cmdline.clone();
                words.extend(["--no-update-lock-file", "--print-build-logs", "--out-link"].map(str::to_owned));
                words.extend([format!("{dir}/result"), flake_toplevel(&tree, job.host.name.as_str())?]);
                words
            }
            HostKind::NonFlake => {
                let mut words = vec!["nix-build".to_owned()];
                words.extend(job.search_path.portable().into_iter().flat_map(|entry| ["-I".to_owned(), entry]));
                words.extend(["--out-link".to_owned(), format!("{dir}/result"), "-A".to_owned(), TOPLEVEL.to_owned()]);
                words.extend(["-E".to_owned(), non_flake_expression(&tree)?]);
                words
            }
        };
        let command: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let script = format!("{} 2>&1 > /dev/null | tail -n 40 >&2; readlink -f {dir}/result", command.join(" "));
        let limit = Duration::from_secs(self.options.settings.build_timeout);
        let spoken = remote.run_whole(&script, limit)?;
        match StorePath::new(spoken.stdout.trim()) {
            Ok(built) => Ok(built),
            Err(_) => bail!("{}", last_lines(spoken.stderr.trim())),
        }
    }
}

/// The last lines of what a program complained about.
fn last_lines(text: &str) -> String {
    const SHOWN: usize = 15;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Hands on what a build says.
struct Told<'a> {
    observer: &'a dyn Observer,
    target: &'a Target,
}

impl Watcher for Told<'_> {
    fn progress(&self, _: &Host, progress: &Progress) {
        self.observer.detail(self.target, &progress.to_string());
    }

    fn line(&self, _: &Host, line: &str) {
        self.observer.line(self.target, line);
    }

    fn done(&self, _: &Host) {}
}

/// What a machine says about a trial.
#[derive(Debug, Default)]
struct Said {
    /// The kernel's name for the boot that it is in.
    boot: String,
    running: Option<StorePath>,
    profile: Option<StorePath>,
    /// How far the trial is; nothing if the machine knows no such trial.
    phase: Option<String>,
    reason: Option<String>,
    exit: Option<i32>,
    failed_units: Vec<String>,
    /// What was logged since it was asked last.
    log: String,
}

impl Said {
    /// Asks a machine about a run; `offset` is how much of its log is known.
    fn ask(remote: &Remote, nonce: &str, offset: usize) -> Result<Self> {
        let script = format!(
            "cd /run/bento-push/{nonce} 2> /dev/null && cat state\n\
             echo \"boot=$(cat /proc/sys/kernel/random/boot_id)\"\n\
             echo \"running=$(readlink -f /run/current-system)\"\n\
             echo \"profile=$(readlink -f /nix/var/nix/profiles/system)\"\n\
             echo log:\n\
             [ ! -e state ] || tail -c +{} log",
            offset + 1
        );
        let spoken = remote.speak(&script, b"", ATTEMPT)?;
        let (head, log) = spoken.stdout.split_once("log:\n").context("the machine did not answer")?;
        let found: BTreeMap<&str, &str> = head.lines().filter_map(|line| line.split_once('=')).collect();
        let text = |name: &str| found.get(name).map(|value| (*value).to_owned());
        let path = |name: &str| found.get(name).and_then(|path| StorePath::new(*path).ok());
        let mut failed_units: Vec<String> =
            found.get("failed").into_iter().flat_map(|units| units.split_whitespace()).map(str::to_owned).collect();
        failed_units.sort();
        Ok(Self {
            boot: text("boot").unwrap_or_default(),
            running: path("running"),
            profile: path("profile"),
            phase: text("phase"),
            reason: text("reason"),
            exit: found.get("exit").and_then(|status| status.parse().ok()),
            failed_units,
            log: log.to_owned(),
        })
    }
}

/// Follows a trial to its end, and decides it. Connections that are lost are made again, as long as the trial may take.
pub fn follow(machine: &mut Machine, held: &mut Held, options: &Options, observer: &dyn Observer) -> Ending {
    let mut follower = Follower {
        machine,
        held,
        options,
        observer,
        offset: 0,
        tested: None,
        deadline: Instant::now() + options.settings.trial(),
    };
    loop {
        match follower.look() {
            Ok(Some(ending)) => return ending,
            Ok(None) => {}
            Err(error) => {
                if Instant::now() >= follower.deadline {
                    return Ending::Lost { reason: format!("{error:#}") };
                }
                follower.observer.detail(&follower.machine.target, "the connection is lost; trying again");
                let destination = follower.machine.target.destination.clone();
                if let Ok(remote) = Remote::connect(&destination, &options.ssh, ATTEMPT) {
                    follower.machine.remote = remote;
                }
            }
        }
        sleep(TICK);
    }
}

struct Follower<'a> {
    machine: &'a mut Machine,
    held: &'a mut Held,
    options: &'a Options,
    observer: &'a dyn Observer,
    /// How much of the machine's log is known.
    offset: usize,
    /// Since when the system waits for its confirmation.
    tested: Option<Instant>,
    deadline: Instant,
}

impl Follower<'_> {
    /// Looks once, and does what is to be done. An error is a machine that does not answer.
    fn look(&mut self) -> Result<Option<Ending>> {
        let said = Said::ask(&self.machine.remote, &self.held.run.nonce, self.offset)?;
        self.offset += said.log.len();
        said.log.lines().for_each(|line| self.observer.line(&self.machine.target, line));
        let Some(phase) = said.phase.as_deref() else { return self.restarted(&said).map(Some) };
        match phase {
            "armed" | "testing" => self.step(Step::Activate),
            "tested" => self.decide(&said)?,
            "keeping" => self.step(Step::Boot),
            "kept" => return Ok(Some(self.kept())),
            "restoring" | "stuck" => self.step(Step::Restore),
            "restored" => {
                self.failed(&said)?;
                return ended(self.held.run.phase.next(Event::Restored { hub: true })?).map(Some);
            }
            other => bail!("the helper on the machine says {other:?}, which this bento does not know"),
        }
        if Instant::now() >= self.deadline {
            bail!("the trial does not end: the machine says {phase:?}");
        }
        Ok(None)
    }

    fn step(&self, step: Step) {
        self.observer.step(&self.machine.target, step);
    }

    /// Confirms a system that was activated by a new connection, or refuses it.
    fn decide(&mut self, said: &Said) -> Result<()> {
        let Phase::Testing { trial } = &self.held.run.phase else {
            // it was decided, and the machine is about to see it
            return Ok(());
        };
        let failures = trial.new_failures(said.failed_units.clone());
        let units = if failures.is_empty() { "(status 4)".to_owned() } else { failures.join(", ") };
        if said.exit != Some(0) || !failures.is_empty() {
            return self.refuse(Stage::Activate, format!("units failed: {units}"));
        }
        self.step(Step::Confirm);
        let since = *self.tested.get_or_insert_with(Instant::now);
        let nonce = self.held.run.nonce.clone();
        let settings = &self.options.settings;
        // made as the first one was: whoever answered for that one at a terminal can do so again
        let limit = Duration::from_secs(settings.connect_timeout.min(settings.confirm_timeout));
        let connected = Remote::connect(self.machine.remote.destination(), &self.options.ssh, limit);
        let confirmed = connected.and_then(|remote| self.machine.root.call(&remote, &["confirm", &nonce], ATTEMPT));
        let Err(error) = confirmed else { return self.held.enter(Event::Healthy { reboot: false }) };
        let patience = Duration::from_secs(settings.confirm_timeout / 2);
        if since.elapsed() < patience {
            self.observer.detail(&self.machine.target, &format!("{error:#}"));
            return Ok(());
        }
        self.refuse(Stage::Confirm, format!("no new connection could confirm it: {error:#}"))
    }

    /// Has the machine go back.
    fn refuse(&mut self, stage: Stage, reason: String) -> Result<()> {
        self.step(Step::Restore);
        let nonce = self.held.run.nonce.clone();
        // where this can't be said, nobody confirms: that comes to the same, a little later
        let refused = self.machine.root.call(&self.machine.remote, &["refuse", &nonce], ATTEMPT);
        self.held.enter(Event::Unhealthy { stage, reason })?;
        refused.map(|_| ())
    }

    /// The machine boots the system, and runs it if it was tried out. It was confirmed, whatever is known of that here: the answer may have
    /// been lost. What is on record stays until this is told, so that it can be asked for again.
    fn kept(&self) -> Ending {
        let toplevel = self.held.run.toplevel.clone();
        let facts = Facts::ask(&self.machine.remote, BRIEF);
        let reboot_needed = facts.is_ok_and(|facts| facts.reboot_needed || facts.running.as_ref() != Some(&toplevel));
        Ending::Pushed { toplevel, reboot_needed }
    }

    /// Brings the record to where it says that the machine goes back, in the machine's words if it was not decided here.
    fn failed(&mut self, said: &Said) -> Result<()> {
        let reason = said.reason.clone().unwrap_or_else(|| "the machine does not say why".to_owned());
        match &self.held.run.phase {
            Phase::Testing { .. } => {
                let stage =
                    if said.exit.is_some_and(|exit| matches!(exit, 0 | 4)) { Stage::Confirm } else { Stage::Activate };
                self.held.enter(Event::Unhealthy { stage, reason })
            }
            Phase::Confirmed { .. } => self.held.enter(Event::Failed { reason }),
            _ => Ok(()),
        }
    }

    /// The machine has restarted since the trial began, and knows nothing of it: what it came up in tells.
    fn restarted(&self, said: &Said) -> Result<Ending> {
        let phase = &self.held.run.phase;
        let Some(trial) = phase.trial() else { bail!("the record of the run knows no trial") };
        // what the restart left
        let limit = Duration::from_secs(self.options.settings.activation_timeout) + BRIEF;
        let dropped = self.machine.root.call(&self.machine.remote, &["drop", &self.held.run.nonce], limit);
        if said.profile.as_ref() == Some(&trial.toplevel) && said.profile != said.running {
            // it came between the profile and the boot entry: this is what sets them back
            dropped?;
        }
        if said.boot == trial.boot {
            // the helper refused before it began
            let event = Event::Unhealthy { stage: Stage::Activate, reason: "the trial never began".to_owned() };
            return ended(phase.next(event)?.next(Event::Restored { hub: true })?);
        }
        if said.running.as_ref() == Some(&trial.toplevel) && said.profile == said.running {
            return Ok(self.kept());
        }
        // what runs so soon after a boot is what was booted
        let (boot, running) = (said.boot.clone(), said.running.clone());
        let woken = phase.next(Event::Woke { boot, booted: running.clone(), running })?;
        match &woken {
            Phase::Settling { .. } => ended(woken.next(Event::Restored { hub: true })?),
            Phase::Returning { .. } => {
                let runs = said.running.as_ref().map_or_else(|| "an unknown system".to_owned(), ToString::to_string);
                ended(woken.next(Event::Stuck { reason: format!("the machine runs {runs}"), safe: true })?)
            }
            _ => Ok(Ending::Restored {
                stage: Stage::Boot,
                reason: "the machine restarted by itself before the system was the one that is booted".to_owned(),
                previous: said.running.clone(),
            }),
        }
    }
}

/// How a push ended, of the phase that it ended in.
fn ended(phase: Phase) -> Result<Ending> {
    let Phase::Ended { outcome, stage, reason, previous, .. } = phase else {
        bail!("the record of the run does not know how it ended");
    };
    Ok(match outcome {
        Outcome::Rollback => Ending::Restored { stage, reason, previous },
        _ => Ending::Failed { stage, reason },
    })
}
