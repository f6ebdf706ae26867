//! An evaluation: which system a host should run, and who works that out.

mod aside;
pub mod cache;
pub(crate) mod pool;
mod process;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

pub use self::aside::Aside;
use self::cache::{Cache, parse_size};
pub use self::pool::Resources;
use crate::builtin::BuiltinEvaluator;
use crate::host::Host;
use crate::nix::{NixEvaluator, TOPLEVEL};
use crate::nix_conf;
use crate::source::SourceTree;
use crate::store_path::StorePath;

/// What a host's configuration comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The derivation of the host's system.
    pub drv_path: StorePath,
    /// The system itself (`config.system.build.toplevel`): what the host runs once it is up to date.
    pub toplevel: StorePath,
}

/// A host to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// Its files.
    pub tree: &'s SourceTree,
    /// Its name and kind.
    pub host: &'s Host,
}

/// Something that can evaluate the configurations of a fleet.
///
/// Everything that an answer depends on is an argument: the staged tree, the host and the search path.
pub trait Evaluator {
    /// The names in `nixosConfigurations` of the flake in `tree`, unchecked and in no special order.
    fn flake_hosts(&self, tree: &SourceTree) -> Result<Vec<String>>;

    /// Evaluates the system of `host`, whose files are `tree`.
    ///
    /// A flake's is `nixosConfigurations.NAME.config.system.build.toplevel` of `path:TREE`, with the lock as it is; a
    /// non-flake's is `(import <nixpkgs/nixos> { configuration = TREE/configuration.nix; }).config.system.build.toplevel`,
    /// where `<nixpkgs>` is looked up in `search_path`.
    fn evaluate(&self, tree: &SourceTree, host: &Host, search_path: &SearchPath) -> Result<Evaluation>;

    /// Evaluates the systems of these hosts. Each one's comes to `done`, with its index, as soon as it is there, in any
    /// order; what is wrong with one host concerns no other.
    fn evaluate_fleet(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        for (index, Subject { tree, host }) in subjects.iter().enumerate() {
            done(index, self.evaluate(tree, host, search_path));
        }
    }

    /// As [`Evaluator::evaluate_fleet`]; the derivations, with all that they need, are in this machine's Nix store then, and
    /// can be built.
    fn instantiate_fleet(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        self.instantiate_attribute(subjects, search_path, TOPLEVEL, done);
    }

    /// As [`Evaluator::instantiate_fleet`], of another derivation of these hosts, such as `config.system.build.diskoScript`; its
    /// output is in the place of the system.
    fn instantiate_attribute(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        attribute: &str,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    );

    /// Applies a function, in the Nix language, to the `config` of each of these hosts. What it gives comes to `done` as JSON.
    fn inspect_fleet(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        function: &str,
        done: &mut dyn FnMut(usize, Result<String>),
    );
}

/// The evaluators to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluatorChoice {
    /// bento's own: no Nix is needed.
    Builtin,
    /// The C++ Nix that is installed on this machine: it fetches inputs, and builds what an evaluation reads.
    Nix,
}

/// How a command evaluates: who does, with how much of the machine, and from where.
#[derive(Args, Clone, Debug)]
pub struct EvaluationOptions {
    /// Who evaluates
    #[arg(long, value_enum, default_value_t = EvaluatorChoice::Builtin)]
    pub evaluator: EvaluatorChoice,
    /// Look up <NAME> there, before the entries of NIX_PATH
    #[allow(rustdoc::invalid_html_tags)] // it is what the help says
    #[arg(short = 'I', value_name = "NAME=PATH")]
    pub include: Vec<String>,
    /// Evaluate so many hosts at a time, at most [default: as many as there are processors]
    #[arg(short, long, value_name = "NUMBER", env = "BENTO_JOBS", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Use so much memory for evaluations, all together; K, M and G stand for powers of 1024
    /// [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", env = "BENTO_MEMORY", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Give a host up whose evaluation takes more than so many seconds of a processor's time
    #[arg(long, value_name = "SECONDS", env = "BENTO_TIME_LIMIT", default_value_t = 600,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub time_limit: u64,
    /// Evaluate every host, also where nothing has changed, and remember nothing
    #[arg(long)]
    pub no_cache: bool,
}

impl EvaluationOptions {
    /// The evaluator that these options ask for.
    pub fn open(&self) -> Result<Box<dyn Evaluator>> {
        Ok(match self.evaluator {
            EvaluatorChoice::Nix => Box::new(NixEvaluator::default()),
            EvaluatorChoice::Builtin => {
                let cache = if self.no_cache { None } else { Cache::of_user()? };
                Box::new(BuiltinEvaluator::new(self.resources(), cache))
            }
        })
    }

    /// How much of the machine these options allow.
    pub fn resources(&self) -> Resources {
        Resources {
            jobs: self.jobs.map_or_else(processors, usize::from),
            memory: self.memory.unwrap_or_else(|| available_memory() / 4 * 3),
            time: Duration::from_secs(self.time_limit),
        }
    }

    /// Where these options have `<name>` looked up.
    pub fn search_path(&self) -> Result<SearchPath> {
        let here = std::env::current_dir().context("cannot tell the working directory")?;
        let mut machine = nix_conf::search_path();
        machine.extend(nix_conf::channels());
        SearchPath::new(&self.include, &machine, &here)
    }
}

/// How many processors this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How much memory there is for new work, in bytes: on this machine, and in this control group.
fn available_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|figures| {
        let line = figures.lines().find_map(|line| line.strip_prefix("MemAvailable:").map(str::to_owned))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    });
    let group = || {
        let membership = read("/proc/self/cgroup")?;
        let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
        let figure = |name: &str| read(&format!("/sys/fs/cgroup{path}/{name}"))?.trim().parse::<u64>().ok();
        Some(figure("memory.max")?.saturating_sub(figure("memory.current").unwrap_or(0)))
    };
    // where neither can be told, what a small machine has
    let machine = machine.unwrap_or(4 << 30);
    group().map_or(machine, |group| group.min(machine))
}

/// Where `<name>` is looked up: entries `name=place` or `place`, the first that fits wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath {
    entries: Vec<String>,
}

impl SearchPath {
    /// The entries of `-I` options, before those of the machine. Relative places are relative to `here`.
    pub fn new(options: &[String], machine: &[String], here: &Path) -> Result<Self> {
        let mut entries = Vec::new();
        for entry in options.iter().chain(machine) {
            let (name, place) = match entry.split_once('=') {
                Some((name, place)) => (format!("{name}="), place),
                None => (String::new(), entry.as_str()),
            };
            if place.is_empty() {
                bail!("the search path's entry {entry:?} names no place");
            }
            let place = if is_url(place) {
                place.to_owned()
            } else {
                let absolute = here.join(place);
                absolute.to_str().with_context(|| format!("{} is not UTF-8", absolute.display()))?.to_owned()
            };
            entries.push(name + &place);
        }
        Ok(Self { entries })
    }

    /// All entries, each as its name (empty if it has none) and its place.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let pair = |entry: &String| {
            let (name, place) = entry.split_once('=').unwrap_or(("", entry));
            (name.to_owned(), place.to_owned())
        };
        self.entries.iter().map(pair).collect()
    }

    /// All entries, as the values of `-I`.
    pub fn entries(&self) -> &[String] {
        &self.entries
    }

    /// The entries that mean the same on every machine, so that a host can use them too: those with a URL.
    pub fn portable(&self) -> Vec<String> {
        let place = |entry: &String| entry.split_once('=').map_or(entry.as_str(), |(_, place)| place).to_owned();
        self.entries.iter().filter(|entry| is_url(&place(entry))).cloned().collect()
    }
}

/// A place that is fetched, not read from this machine.
fn is_url(place: &str) -> bool {
    place.starts_with("channel:") || place.starts_with("flake:") || place.contains("://")
}
