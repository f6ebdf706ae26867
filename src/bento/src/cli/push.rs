//! The part of `bento deploy` that pushes: its options, what it shows, and the way from targets to their ends.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::deploy::digest_key;
use super::progress::Display;
use crate::evaluation::{Evaluation, Evaluator, SearchPath, Subject};
use crate::fleet::{Fleet, FleetHost, Selection};
use crate::host::{Host, HostName};
use crate::hub::Hub;
use crate::push::deliver::{Delivered, Job, Wanted, deliver, follow};
use crate::push::facts::Facts;
use crate::push::lockout::{self, Access};
use crate::push::record::{self, Story};
use crate::push::root::{Escalation, HELPER, helper_path};
use crate::push::run::{Held, Runs};
use crate::push::settings::{BuildOn, PushConfig};
use crate::push::target::Target;
use crate::push::{Ending, Machine, Observer, Options, Step, in_parallel, survey};
use crate::report::Stage;
use crate::secrets::draft::Draft;
use crate::source::SourceTree;

/// How systems are pushed; what is not said here is as in the table `[push]` of the settings.
#[derive(Args)]
#[command(next_help_heading = "Pushing")]
pub(super) struct PushOptions {
    /// Where systems are built: `target`, `here`, the builder HOST, or `auto`, which is here if this machine has Nix and the same
    /// kind of processor, and else on the target
    #[arg(long, value_name = "auto|here|target|HOST")]
    build_on: Option<BuildOn>,
    /// Push to so many machines at a time, at most
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    parallel: Option<u16>,
    /// A machine that can't be reached is no failure
    #[arg(long)]
    skip_unreachable: bool,
    /// Whether only machines are pushed to on which no unit has failed
    #[arg(long, value_enum, value_name = "run|skip", default_value_t = Check::Run, hide_possible_values = true, hide_default_value = true)]
    preflight_check: Check,
    /// Whether a configuration is refused in which whoever deploys could not log in any more
    #[arg(long, value_enum, value_name = "run|skip", default_value_t = Check::Run, hide_possible_values = true, hide_default_value = true)]
    lockout_check: Check,
    /// Whether a system is tried out before it is made the one that is booted; if not, it only is from the next boot on
    #[arg(long, value_enum, value_name = "run|skip", default_value_t = Check::Run, hide_possible_values = true, hide_default_value = true)]
    test: Check,
    /// The program of a system that says whether it may be activated, relative to the system
    #[arg(long, value_name = "PROGRAM")]
    pre_activate_script: Option<String>,
    /// The words in the place of `nix build` where a target or a builder builds a flake
    #[arg(long, value_name = "COMMAND")]
    build_cmdline: Option<String>,
    /// How to become root on the target, where root does not log in
    #[arg(long, value_enum)]
    escalation: Option<Escalation>,
    /// Ask for the password that sudo, doas or run0 want there
    #[arg(long, conflicts_with = "password_file")]
    ask_password: bool,
    /// Read that password from a file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// For how long a connection may take: `20s`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    connect_timeout: Option<u64>,
    /// For how long a build may take: `1h`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    build_timeout: Option<u64>,
    /// For how long copying may take: `30m`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    copy_timeout: Option<u64>,
    /// For how long an activation may take: `5m`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    activation_timeout: Option<u64>,
    /// Within how long after the activation a new connection has to confirm: `1m`
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    confirm_timeout: Option<u64>,
}

/// Whether a check is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Check {
    Run,
    Skip,
}

/// A time in words (`90s`, `5m`, `1h 30m`) or a number of seconds, as at least one second.
pub(super) fn seconds(text: &str) -> Result<u64> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let time: SignedDuration = text.parse().context("a time is written like 90s, 5m or 1h")?;
            u64::try_from(time.as_secs()).context("a time is not negative")?
        }
    };
    if parsed == 0 { bail!("a time is at least one second") } else { Ok(parsed) }
}

impl PushOptions {
    /// With the settings for what was not said.
    pub(super) fn resolve(&self, settings: &PushConfig, build_options: &[String]) -> Result<Options> {
        let mut settings = settings.clone();
        if let Some(place) = &self.build_on {
            settings.build_on = place.clone();
        }
        if let Some(parallel) = self.parallel {
            settings.parallel = usize::from(parallel);
        }
        if let Some(escalation) = self.escalation {
            settings.escalation = escalation;
        }
        if let Some(program) = &self.pre_activate_script {
            settings.pre_activate_script = program.clone();
        }
        for (given, setting) in [
            (self.connect_timeout, &mut settings.connect_timeout),
            (self.build_timeout, &mut settings.build_timeout),
            (self.copy_timeout, &mut settings.copy_timeout),
            (self.activation_timeout, &mut settings.activation_timeout),
            (self.confirm_timeout, &mut settings.confirm_timeout),
        ] {
            if let Some(given) = given {
                *setting = given;
            }
        }
        let password = if self.ask_password {
            Some(
                rpassword::prompt_password("password of whoever logs in there: ")
                    .context("cannot ask for a password")?,
            )
        } else if let Some(file) = &self.password_file {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Some(text.trim_end_matches('\n').to_owned())
        } else {
            None
        };
        let build_cmdline = match &self.build_cmdline {
            Some(text) => text.split_whitespace().map(str::to_owned).collect(),
            None => ["nix", "--extra-experimental-features", "nix-command flakes", "build"].map(str::to_owned).to_vec(),
        };
        Ok(Options {
            settings,
            ssh: std::env::var("NIX_SSHOPTS").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            health: self.preflight_check == Check::Run,
            lockout: self.lockout_check == Check::Run,
            trial: self.test == Check::Run,
            skip_unreachable: self.skip_unreachable,
            password,
            build_cmdline,
            build_options: build_options.to_vec(),
        })
    }
}

/// Shows how pushes go: on standard error for people, or as one JSON object for each event on standard output.
pub(super) struct Screen {
    display: Display,
    json: bool,
}

/// Something that happened, for `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Happened<'a> {
    Step {
        target: &'a Target,
        step: Step,
        time: Timestamp,
    },
    Line {
        target: &'a Target,
        line: &'a str,
        time: Timestamp,
    },
    Ended {
        target: &'a Target,
        #[serde(flatten)]
        ending: &'a Ending,
        time: Timestamp,
    },
    Summary {
        pushed: usize,
        unchanged: usize,
        skipped: usize,
        failed: usize,
        time: Timestamp,
    },
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        Self { display: Display::new(), json }
    }

    /// Says something for good.
    pub(super) fn say(&self, text: &str) {
        self.display.say(text);
    }

    fn print(&self, happened: &Happened<'_>) {
        if self.json
            && let Ok(line) = serde_json::to_string(happened)
        {
            // if nobody reads it, it is lost
            let _ = super::print(&(line + "\n"));
        }
    }

    /// Says how all of it ended; gives the exit status.
    fn sum_up(&self, endings: &[(Target, Ending)]) -> ExitCode {
        let count = |fits: fn(&Ending) -> bool| endings.iter().filter(|(_, ending)| fits(ending)).count();
        let pushed = count(|ending| matches!(ending, Ending::Pushed { .. }));
        let unchanged = count(|ending| matches!(ending, Ending::Unchanged { .. }));
        let skipped = count(|ending| matches!(ending, Ending::Unreachable { skipped: true, .. }));
        let failed = count(|ending| !ending.is_good());
        self.print(&Happened::Summary { pushed, unchanged, skipped, failed, time: Timestamp::now() });
        let skips = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        self.display.say(&format!("{pushed} pushed, {unchanged} unchanged{skips}, {failed} failed"));
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl Observer for Screen {
    fn step(&self, target: &Target, step: Step) {
        self.print(&Happened::Step { target, step, time: Timestamp::now() });
        if self.display.is_live() {
            self.display.set(&target.label(), step.word());
        } else if !self.json {
            self.display.say(&format!("{}: {}", target.label(), step.word()));
        }
    }

    fn detail(&self, target: &Target, detail: &str) {
        if self.display.is_live() {
            self.display.set(&target.label(), detail);
        }
    }

    fn line(&self, target: &Target, line: &str) {
        if self.display.verbose {
            self.print(&Happened::Line { target, line, time: Timestamp::now() });
            self.display.say(&format!("{}: {line}", target.label()));
        }
    }

    fn ended(&self, target: &Target, ending: &Ending) {
        self.display.end(&target.label());
        self.print(&Happened::Ended { target, ending, time: Timestamp::now() });
        self.display.say(&format!("{}: {}", target.label(), ending.text()));
    }
}

/// What pushes are done with.
pub(super) struct Desk<'a> {
    pub(super) options: Options,
    pub(super) screen: Screen,
    pub(super) evaluator: &'a dyn Evaluator,
    pub(super) search_path: &'a SearchPath,
    /// Where pushes are recorded, and how releases are made; nowhere without a hub.
    pub(super) release: Option<super::deploy::Releases<'a>>,
}

/// A machine, and what it shall run.
pub(super) struct Prepared<'a> {
    pub(super) machine: Machine,
    pub(super) host: &'a Host,
    pub(super) tree: &'a SourceTree,
    /// What only the host may read. It comes with the release, by the host's agent: a push does not carry it.
    pub(super) secrets: Vec<Draft>,
    pub(super) evaluation: &'a Evaluation,
    pub(super) access: Option<Access>,
}

impl Desk<'_> {
    /// Pushes the fleet in `dir` to these targets; gives how each ended.
    pub(super) fn push(&self, dir: &Path, targets: &[Target], dry_run: bool) -> Result<Vec<(Target, Ending)>> {
        let mut endings = Vec::new();
        let mut machines: Vec<(HostName, Machine)> = Vec::new();
        for (target, machine) in targets.iter().zip(survey(targets, &self.options, &self.screen)) {
            match machine.and_then(|machine| Ok((self.config_of(&machine)?, machine))) {
                Ok(found) => machines.push(found),
                Err(ending) => endings.push((target.clone(), ending)),
            }
        }
        if machines.is_empty() {
            return Ok(endings);
        }
        let selection = Selection::of_names(machines.iter().map(|(name, _)| name.clone()).collect());
        let fleet = Fleet::discover(dir, self.evaluator, &selection)?;
        let end = |machine: &Machine, stage, error: &Error| {
            let ending = Ending::failed(stage, error);
            self.screen.ended(&machine.target, &ending);
            (machine.target.clone(), ending)
        };
        for broken in fleet.concerned(&selection) {
            let concerned = machines.extract_if(.., |(name, _)| broken.name.as_ref() == Some(name));
            endings.extend(concerned.map(|(_, machine)| end(&machine, Stage::Build, &broken.error)));
        }
        let hosts: Vec<&FleetHost> = fleet.selected(&selection).collect();
        let here = |(_, machine): &&(HostName, Machine)| !dry_run && self.options.builds_here(&machine.facts);
        let here: BTreeSet<HostName> = machines.iter().filter(here).map(|(name, _)| name.clone()).collect();
        let (evaluations, accesses) = self.evaluate(&hosts, &here);
        let digest_key = match &self.release {
            // a plan must not make a key
            Some(_) => digest_key(hosts.iter().copied(), !dry_run)?,
            None => None,
        };
        let secrets = |host: &FleetHost| match &self.release {
            Some(release) => release.secrets(host, digest_key.as_ref()),
            None => {
                if host.has_secrets()? {
                    let name = &host.host.name;
                    self.screen.say(&format!(
                        "{name}: its secrets are not pushed: they come with a release, by bento's agent, and the fleet has no hub"
                    ));
                }
                Ok(Vec::new())
            }
        };
        let mut prepared = Vec::new();
        for (name, machine) in machines {
            let found = hosts.iter().position(|host| host.host.name == name);
            let evaluated = found.map(|index| (hosts[index], &evaluations[index], &accesses[index]));
            match evaluated {
                Some((host, Ok(evaluation), Ok(access))) => match secrets(host) {
                    Ok(secrets) => prepared.push(Prepared {
                        machine,
                        host: &host.host,
                        tree: &host.tree,
                        secrets,
                        evaluation,
                        access: access.clone(),
                    }),
                    Err(error) => endings.push(end(&machine, Stage::Build, &error)),
                },
                Some((_, Err(error), _) | (_, _, Err(error))) => endings.push(end(&machine, Stage::Build, error)),
                None => endings.push(end(&machine, Stage::Build, &anyhow!("the fleet has no configuration {name}"))),
            }
        }
        if dry_run {
            for Prepared { machine, evaluation, .. } in &prepared {
                let running =
                    machine.facts.running.as_ref().map_or_else(|| "nothing known".to_owned(), ToString::to_string);
                let toplevel = &evaluation.toplevel;
                self.screen.say(&format!("{}: would push {toplevel}; it runs {running}", machine.target.label()));
            }
            return Ok(endings);
        }
        let delivered = self.deliver_all(prepared)?;
        endings.extend(delivered.into_iter().map(|(target, delivered)| (target, delivered.ending)));
        Ok(endings)
    }

    /// The configuration that a machine shall run.
    fn config_of(&self, machine: &Machine) -> Result<HostName, Ending> {
        let name = match &machine.target.config {
            Some(name) => Ok(name.clone()),
            None => machine.facts.config(),
        };
        let checked = name.and_then(|name| {
            let held = self.release.as_ref().map(|release| release.hub.holds()).transpose()?;
            match held.unwrap_or_default().contains_key(&name) {
                true => bail!("{name} is held: `bento release {name}` lets it have new releases again"),
                false => Ok(name),
            }
        });
        checked.map_err(|error| {
            let ending = Ending::failed(Stage::Check, &error);
            self.screen.ended(&machine.target, &ending);
            ending
        })
    }

    /// Evaluates hosts, so that those in `here` can be built on this machine, and reads out of their configurations who could log
    /// in.
    #[allow(clippy::type_complexity)]
    fn evaluate(
        &self,
        hosts: &[&FleetHost],
        here: &BTreeSet<HostName>,
    ) -> (Vec<Result<Evaluation>>, Vec<Result<Option<Access>>>) {
        let named = |index: usize, error: Error| anyhow!(hosts[index].tree.original_names(&format!("{error:#}")));
        let lost = || anyhow!("the evaluation did not end");
        let mut evaluations: Vec<Result<Evaluation>> = hosts.iter().map(|_| Err(lost())).collect();
        for built_here in [true, false] {
            let chosen: Vec<usize> =
                (0..hosts.len()).filter(|index| here.contains(&hosts[*index].host.name) == built_here).collect();
            let subjects: Vec<Subject<'_>> = chosen.iter().map(|index| hosts[*index].subject()).collect();
            let mut done = |position: usize, evaluation: Result<Evaluation>| {
                let index = chosen[position];
                evaluations[index] = evaluation.map_err(|error| named(index, error));
            };
            match built_here {
                true => self.evaluator.instantiate_fleet(&subjects, self.search_path, &mut done),
                false => self.evaluator.evaluate_fleet(&subjects, self.search_path, &mut done),
            }
        }
        let mut accesses: Vec<Result<Option<Access>>> = hosts.iter().map(|_| Ok(None)).collect();
        if self.options.lockout {
            // what can't be evaluated at all was said once
            let sound: Vec<usize> = (0..hosts.len()).filter(|index| evaluations[*index].is_ok()).collect();
            let subjects: Vec<Subject<'_>> = sound.iter().map(|index| hosts[*index].subject()).collect();
            self.evaluator.inspect_fleet(&subjects, self.search_path, lockout::FUNCTION, &mut |position, json| {
                let index = sound[position];
                let access = json.map_err(|error| named(index, error)).and_then(|json| Access::parse(&json));
                let context = "cannot tell who could log in (--lockout-check=skip goes on all the same)";
                accesses[index] = access.map(Some).context(context);
            });
        }
        (evaluations, accesses)
    }

    /// Delivers to machines, several at a time, and records on the hub what came of it.
    pub(super) fn deliver_all(&self, prepared: Vec<Prepared<'_>>) -> Result<Vec<(Target, Delivered)>> {
        let runs = Runs::of_user()?;
        let started = Timestamp::now();
        let mut jobs = Vec::new();
        // what is left to publish when the pushes are done
        let mut left = Vec::new();
        for Prepared { machine, host, tree, secrets, evaluation, access } in prepared {
            if !secrets.is_empty() && !machine.facts.agent {
                let text = "its secrets are not pushed: they come by bento's agent, which it does not run yet";
                self.screen.say(&format!("{}: {text}", machine.target.label()));
            }
            // one that reports by itself gets its release when it runs the system: then it has nothing more to do for it
            let (serial, secrets) = match (&self.release, machine.facts.agent) {
                (Some(release), false) => {
                    (Some(release.publish(host, tree, secrets, evaluation, self.search_path)?), Vec::new())
                }
                _ => (None, secrets),
            };
            left.push(secrets);
            jobs.push((machine, Job { host, tree, evaluation, search_path: self.search_path }, access, serial));
        }
        let (options, screen) = (&self.options, &self.screen);
        let done = in_parallel(jobs, options.settings.parallel, |(mut machine, job, access, serial)| {
            let wanted = Wanted::Configuration { job, access: access.as_ref(), serial };
            let delivered = deliver(&mut machine, &wanted, options, &runs, screen);
            (machine.target, job, serial, machine.facts.agent, delivered)
        });
        let mut delivered_all = Vec::new();
        // one that can't be recorded takes nothing from the others
        let mut unrecorded = Vec::new();
        for ((target, job, serial, agent, delivered), secrets) in done.into_iter().zip(left) {
            if let Some(release) = &self.release {
                // one that got its agent by this push reports by itself
                let reports = delivered.facts.as_ref().map_or(agent, |facts| facts.agent);
                let recorded = match serial {
                    Some(serial) if !reports => release.report(job.host, serial, started, &delivered),
                    None if agent && delivered.ending.is_good() => {
                        release.publish(job.host, job.tree, secrets, job.evaluation, self.search_path).map(|_| ())
                    }
                    _ => Ok(()),
                };
                if let Err(error) = recorded {
                    unrecorded.push(format!("{}: {error:#}", target.label()));
                }
            }
            delivered_all.push((target, delivered));
        }
        if self.release.is_none() && !delivered_all.is_empty() {
            let text = "the fleet's settings name no hub, so this is not recorded: `bento status` does not know of it";
            self.screen.say(text);
        }
        if !unrecorded.is_empty() {
            bail!(
                "what came of these can't be recorded on the hub; the same command again does it: {}",
                unrecorded.join("; ")
            );
        }
        Ok(delivered_all)
    }

    /// Says how all of it ended; gives the exit status.
    pub(super) fn sum_up(&self, endings: &[(Target, Ending)]) -> ExitCode {
        self.screen.sum_up(endings)
    }
}

/// `bento deploy --helper`: the program that runs as root on targets, and how to allow it.
pub(super) fn show_helper() -> Result<ExitCode> {
    let path = helper_path()?;
    super::print(&format!(
        "# sudo: DEPLOYER ALL=(root) NOPASSWD: {path}\n\
         # doas: permit nopass DEPLOYER cmd {path}\n\
         # NixOS: security.sudo.extraRules = [ {{ users = [ \"DEPLOYER\" ]; commands = [ {{ command = \"{path}\"; options = [ \"NOPASSWD\" ]; }} ]; }} ];\n\
         {HELPER}"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `bento deploy --resume`: brings pushes that were interrupted to their ends, and tells these.
pub(super) fn resume(options: &Options, json: bool, hub: Option<&Hub>) -> Result<ExitCode> {
    let screen = Screen::new(json);
    let endings = settle(options, &screen, hub)?;
    if endings.is_empty() {
        screen.say("no push was interrupted");
    }
    Ok(screen.sum_up(&endings))
}

/// Brings pushes that were interrupted to their ends; gives these.
pub(super) fn settle(options: &Options, screen: &Screen, hub: Option<&Hub>) -> Result<Vec<(Target, Ending)>> {
    let options = Options { health: false, skip_unreachable: false, ..options.clone() };
    let mut endings = Vec::new();
    for (run, held) in Runs::of_user()?.open()? {
        let Some(held) = held else {
            screen.say(&format!("{}: still under way in another process", run.target.label()));
            continue;
        };
        let ending = settle_one(held, &options, screen, hub)?;
        endings.push((run.target, ending));
    }
    Ok(endings)
}

/// Brings a push that was interrupted to its end. What can't be told now is not forgotten.
fn settle_one(mut held: Held, options: &Options, screen: &Screen, hub: Option<&Hub>) -> Result<Ending> {
    let run = held.run.clone();
    let Some(trial) = run.phase.trial() else {
        let ending = Ending::failed(Stage::Build, &anyhow!("it was interrupted before that"));
        screen.ended(&run.target, &ending);
        held.forget()?;
        return Ok(ending);
    };
    let found = survey(std::slice::from_ref(&run.target), options, screen).pop();
    let mut machine = match found.with_context(|| format!("nothing is known of {}", run.target.label()))? {
        Ok(machine) => machine,
        Err(ending) => return Ok(ending),
    };
    let ending = follow(&mut machine, &mut held, options, screen);
    screen.ended(&run.target, &ending);
    if matches!(ending, Ending::Lost { .. }) {
        return Ok(ending);
    }
    let limit = Duration::from_secs(options.settings.health_timeout);
    let facts = Facts::ask(&machine.remote, limit).ok();
    let agent = facts.as_ref().is_some_and(|facts| facts.agent);
    match (hub, run.serial) {
        (Some(hub), Some(serial)) if !agent => {
            let (toplevel, previous) = (run.toplevel.clone(), trial.previous.clone());
            let delivered = Delivered { ending: ending.clone(), toplevel, previous, facts };
            let _lock = hub.lock()?;
            let story = Story { host: &run.host, serial, started: run.started, delivered: &delivered };
            record::report(hub, &story, Timestamp::now())?;
        }
        (Some(_), None) if agent && ending.is_good() => screen.say(&format!(
            "{}: what was to be published with it is not known any more: `bento deploy {}` publishes it",
            run.target.label(),
            run.host
        )),
        _ => {}
    }
    held.forget()?;
    Ok(ending)
}
