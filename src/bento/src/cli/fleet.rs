//! The options of commands that evaluate hosts of the fleet.

use anyhow::{Context, Result};
use clap::Args;

use crate::evaluation::{Evaluator, EvaluatorChoice, SearchPath};
use crate::fleet::config::Config;
use crate::fleet::{Selection, Shard};

/// Which hosts, and how they are evaluated.
#[derive(Args)]
pub(super) struct FleetOptions {
    /// Only the hosts of the Kth of N parts of the fleet; each host is in one of them, always the same
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    /// Who evaluates
    #[arg(long, value_enum, default_value_t = EvaluatorChoice::Builtin)]
    evaluator: EvaluatorChoice,
    /// Look up <NAME> there, before the entries of NIX_PATH
    #[arg(short = 'I', value_name = "NAME=PATH")]
    include: Vec<String>,
}

impl FleetOptions {
    /// Which hosts are meant: those that the command's arguments name, or else the environment.
    pub(super) fn selection(&self, hosts: &[String], config: &Config) -> Result<Selection> {
        let name = std::env::var("NAME").ok();
        Ok(Selection::new(hosts, name.as_deref(), config)?.in_shard(self.shard))
    }

    /// Where `<name>` is looked up.
    pub(super) fn search_path(&self) -> Result<SearchPath> {
        let here = std::env::current_dir().context("cannot tell the working directory")?;
        SearchPath::new(&self.include, std::env::var("NIX_PATH").ok().as_deref(), &here)
    }

    /// Who evaluates.
    pub(super) fn evaluator(&self) -> Box<dyn Evaluator> {
        self.evaluator.open()
    }
}
