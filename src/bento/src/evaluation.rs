//! An evaluation: which system a host should run, and who works that out.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::builtin::BuiltinEvaluator;
use crate::host::Host;
use crate::nix::NixEvaluator;
use crate::nix_conf::split_nix_path;
use crate::source::SourceTree;
use crate::store_path::StorePath;

/// What a host's configuration comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evaluation {
    /// The derivation of the host's system.
    pub drv_path: StorePath,
    /// The system itself (`config.system.build.toplevel`): what the host runs once it is up to date.
    pub toplevel: StorePath,
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

    /// As [`Evaluator::evaluate`]; the derivation, with all that it needs, is in this machine's Nix store then, and can be
    /// built.
    fn instantiate(&self, tree: &SourceTree, host: &Host, search_path: &SearchPath) -> Result<Evaluation>;
}

/// The evaluators to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvaluatorChoice {
    /// bento's own: no Nix is needed.
    Builtin,
    /// The C++ Nix that is installed on this machine: it fetches inputs, and builds what an evaluation reads.
    Nix,
}

impl EvaluatorChoice {
    /// The evaluator of that name.
    pub fn open(self) -> Box<dyn Evaluator> {
        match self {
            Self::Builtin => Box::new(BuiltinEvaluator),
            Self::Nix => Box::new(NixEvaluator::default()),
        }
    }
}

/// Where `<name>` is looked up: entries `name=place` or `place`, the first that fits wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchPath {
    entries: Vec<String>,
}

impl SearchPath {
    /// The entries of `-I` options, before those of `NIX_PATH` or, where that is not set, the channels of this machine.
    /// Relative places are relative to `here`.
    pub fn new(options: &[String], nix_path: Option<&str>, here: &Path) -> Result<Self> {
        let from_environment = nix_path.map_or_else(channels, split_nix_path);
        let mut entries = Vec::new();
        for entry in options.iter().chain(&from_environment) {
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

/// What Nix takes for `NIX_PATH` where it is not set: the channels of the user and of root, if there are any.
pub(crate) fn channels() -> Vec<String> {
    const ROOT: &str = "/nix/var/nix/profiles/per-user/root/channels";
    let user = std::env::var("HOME").map(|home| format!("{home}/.nix-defexpr/channels")).ok();
    let mut entries = Vec::from_iter(user.filter(|place| Path::new(place).exists()));
    if Path::new(ROOT).join("nixpkgs").exists() {
        entries.push(format!("nixpkgs={ROOT}/nixpkgs"));
    }
    if Path::new(ROOT).exists() {
        entries.push(ROOT.to_owned());
    }
    entries
}

/// A place that is fetched, not read from this machine.
fn is_url(place: &str) -> bool {
    place.starts_with("channel:") || place.starts_with("flake:") || place.contains("://")
}
