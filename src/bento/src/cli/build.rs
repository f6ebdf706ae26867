//! `bento build`: build the fleet's hosts, and maybe apply one of them here.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use super::fleet::FleetOptions;
use super::progress::Display;
use crate::build::apply::{Extent, Machine};
use crate::build::{Builder, Job};
use crate::evaluation::{Evaluation, Subject};
use crate::fleet::{Fleet, FleetHost};
use crate::host::HostName;
use crate::store_path::StorePath;

/// Build the fleet's hosts with this machine's Nix
///
/// MODE is dry-run (only evaluate), dry-build (say what would be built and fetched), build, or test and switch: these apply
/// one host to this machine, if it has that host's name, or to the one at TARGET_IP, through ssh with NIX_SSHOPTS. Without
/// any of these words it is build.
#[derive(Args)]
pub(super) struct Build {
    /// The mode, and the hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]
    #[arg(value_name = "MODE|HOST")]
    words: Vec<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Apply without asking
    #[arg(long)]
    yes: bool,
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    DryRun,
    DryBuild,
    Build,
    Apply(Extent),
}

impl Mode {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "dry-run" => Self::DryRun,
            "dry-build" => Self::DryBuild,
            "build" => Self::Build,
            "test" => Self::Apply(Extent::Test),
            "switch" => Self::Apply(Extent::Switch),
            _ => return None,
        })
    }
}

/// What became of one host, for `--json`.
#[derive(Serialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostName>,
    directory: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    toplevel: Option<StorePath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drv_path: Option<StorePath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    seconds: f64,
}

impl Line {
    fn new(host: &FleetHost, result: Result<&Evaluation, &Error>, seconds: f64) -> Self {
        Self {
            host: Some(host.host.name.clone()),
            directory: host.dir.display().to_string(),
            toplevel: result.ok().map(|evaluation| evaluation.toplevel.clone()),
            drv_path: result.ok().map(|evaluation| evaluation.drv_path.clone()),
            error: result.err().map(|error| format!("{error:#}")),
            seconds,
        }
    }

    /// For people.
    fn text(&self, done: &str) -> String {
        let who = self.host.as_ref().map_or(self.directory.as_str(), HostName::as_str);
        match (&self.error, &self.toplevel) {
            // the trace of an evaluation begins on a line of its own
            (Some(error), _) if error.starts_with('\n') => format!("{who}: failed:{error}"),
            (Some(error), _) => format!("{who}: failed: {error}"),
            (None, Some(toplevel)) => format!("{who}: {done} {toplevel} ({:.1} s)", self.seconds),
            (None, None) => format!("{who}: {done}"),
        }
    }
}

impl Build {
    pub(super) fn run(mut self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let mode = self.words.first().and_then(|word| Mode::of(word));
        if mode.is_some() {
            self.words.remove(0);
        }
        let mode = mode.unwrap_or(Mode::Build);
        let selection = self.fleet.selection(&self.words, &config)?;
        if matches!(mode, Mode::Apply(_)) && selection.is_all() {
            bail!("say which host's system shall be applied: `bento build switch HOST`");
        }
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator()?;
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        let selected: Vec<&FleetHost> = fleet.selected(&selection).collect();
        // before anything is built for nothing
        let target = match mode {
            Mode::Apply(_) => Some(target(&selected)?),
            _ => None,
        };
        let done = if mode == Mode::DryRun || mode == Mode::DryBuild { "would build" } else { "built" };
        let mut lines = Vec::new();
        let mut say = |line: Line| {
            if !self.json || line.error.is_some() {
                eprintln!("{}", line.text(done));
            }
            lines.push(line);
        };
        for broken in fleet.concerned(&selection) {
            say(Line {
                host: broken.name.clone(),
                directory: broken.dir.display().to_string(),
                toplevel: None,
                drv_path: None,
                error: Some(format!("{:#}", broken.error)),
                seconds: 0.0,
            });
        }
        let mut evaluated = Vec::new();
        let subjects: Vec<Subject<'_>> = selected.iter().map(|host| host.subject()).collect();
        let start = Instant::now();
        let mut done_with = |index: usize, evaluation: Result<Evaluation>| {
            let (host, seconds) = (selected[index], start.elapsed().as_secs_f64());
            match evaluation {
                Ok(evaluation) => evaluated.push((host, evaluation, seconds)),
                Err(error) => {
                    let error = anyhow!(host.tree.original_names(&format!("{error:#}")));
                    say(Line::new(host, Err(&error), seconds));
                }
            }
        };
        let builder = Builder::new(&config.build.options);
        if mode == Mode::DryRun {
            evaluator.evaluate_fleet(&subjects, &search_path, &mut done_with);
        } else {
            builder.check()?;
            evaluator.instantiate_fleet(&subjects, &search_path, &mut done_with);
        }
        evaluated.sort_by(|(one, ..), (other, ..)| one.host.name.cmp(&other.host.name));
        let jobs: Vec<Job<'_>> =
            evaluated.iter().map(|(host, evaluation, _)| Job { host: &host.host, evaluation }).collect();
        let start = Instant::now();
        let results: Vec<Result<()>> = match mode {
            Mode::DryRun => jobs.iter().map(|_| Ok(())).collect(),
            Mode::DryBuild => jobs.iter().map(|job| show_plan(&builder, job)).collect(),
            Mode::Build | Mode::Apply(_) => {
                builder.build(&jobs, &Display::new()).into_iter().map(|result| result.map(|_| ())).collect()
            }
        };
        let building = start.elapsed().as_secs_f64();
        for ((host, evaluation, seconds), result) in evaluated.iter().zip(&results) {
            say(Line::new(host, result.as_ref().map(|()| evaluation), seconds + building));
        }
        if self.json {
            super::print_json(&lines)?;
        }
        if lines.iter().any(|line| line.error.is_some()) {
            return Ok(ExitCode::FAILURE);
        }
        if let (Mode::Apply(extent), Some(target), Some((host, evaluation, _))) = (mode, target, evaluated.first()) {
            self.apply(&target, &host.host.name, &evaluation.toplevel, extent)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Applies a built system, once somebody agreed to that.
    fn apply(&self, target: &Machine, host: &HostName, toplevel: &StorePath, extent: Extent) -> Result<()> {
        let place = match target {
            Machine::Here => "this machine".to_owned(),
            Machine::Remote { address, .. } => format!("the machine at {address}"),
        };
        let word = match extent {
            Extent::Test => "test",
            Extent::Switch => "switch",
        };
        if !self.yes {
            eprint!("{word} {place}, which is {host}, to {toplevel}? (yes/no) ");
            std::io::stderr().flush().context("cannot ask")?;
            let mut answer = String::new();
            std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
            if answer.trim() != "yes" {
                bail!("nothing was applied: the answer was not \"yes\" (--yes agrees without being asked)");
            }
        }
        target.apply(toplevel, extent)?;
        eprintln!("{host}: {word} of {place} is done");
        Ok(())
    }
}

/// Shows what Nix would do for a job.
fn show_plan(builder: &Builder, job: &Job<'_>) -> Result<()> {
    let plan = builder.plan(job)?;
    if !plan.is_empty() {
        eprintln!("{plan}");
    }
    Ok(())
}

/// The machine that a selection of one host may be applied to: it must have that host's name.
fn target(selected: &[&FleetHost]) -> Result<Machine> {
    let [host] = selected else {
        let names: Vec<&str> = selected.iter().map(|host| host.host.name.as_str()).collect();
        bail!("only one host can be applied to a machine, but these are selected: {}", names.join(", "));
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let target = match variable("TARGET_IP") {
        None => Machine::Here,
        Some(address) => Machine::Remote { address, options: variable("NIX_SSHOPTS").unwrap_or_default() },
    };
    let (name, wanted) = (target.host_name()?, &host.host.name);
    if name != wanted.as_str() {
        match target {
            Machine::Here => bail!(
                "this machine is {name}, not {wanted}: its system is not applied here (TARGET_IP names another machine)"
            ),
            Machine::Remote { address, .. } => bail!("the machine at {address} is {name}, not {wanted}"),
        }
    }
    Ok(target)
}
