//! The options of commands that evaluate hosts of the fleet.

use anyhow::Result;
use clap::Args;

use crate::evaluation::{EvaluationOptions, Evaluator, Resources, SearchPath};
use crate::fleet::config::Config;
use crate::fleet::{Selection, Shard};

/// Which hosts, and how they are evaluated.
#[derive(Args)]
pub(super) struct FleetOptions {
    /// Only the hosts of the Kth of N parts of the fleet; each host is in one of them, always the same
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,
    #[command(flatten)]
    evaluation: EvaluationOptions,
}

impl FleetOptions {
    /// Which hosts are meant: those that the command's arguments name, or else the environment.
    pub(super) fn selection(&self, hosts: &[String], config: &Config) -> Result<Selection> {
        let name = std::env::var("NAME").ok();
        Ok(Selection::new(hosts, name.as_deref(), config)?.in_shard(self.shard))
    }

    /// Where `<name>` is looked up.
    pub(super) fn search_path(&self) -> Result<SearchPath> {
        self.evaluation.search_path()
    }

    /// How much of the machine evaluations may take.
    pub(super) fn resources(&self) -> Resources {
        self.evaluation.resources()
    }

    /// Who evaluates.
    pub(super) fn evaluator(&self) -> Result<Box<dyn Evaluator>> {
        self.evaluation.open()
    }
}
