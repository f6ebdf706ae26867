//! `bento versions`: which system each host should run.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use serde::Serialize;

use super::fleet::FleetOptions;
use crate::evaluation::Subject;
use crate::fleet::{Fleet, FleetHost};
use crate::host::HostName;

/// Evaluate the fleet's hosts and say which system each should run
///
/// Nothing is published. A host that can't be evaluated is reported on standard error, and the exit status is 1.
#[derive(Args)]
pub(super) struct Versions {
    /// The hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]
    hosts: Vec<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Print JSON: for each host its derivation and its system, or what is wrong with it
    #[arg(long)]
    json: bool,
}

/// What became of one host.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case", untagged)]
enum Version {
    Known { drv_path: String, toplevel: String },
    Failed { error: String },
}

impl Versions {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let selection = self.fleet.selection(&self.hosts, &config)?;
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator()?;
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        let mut versions: BTreeMap<String, Version> = BTreeMap::new();
        let failed = |versions: &mut BTreeMap<String, Version>, who: String, error: &anyhow::Error| {
            eprintln!("{who}: failed: {error:#}");
            versions.insert(who, Version::Failed { error: format!("{error:#}") });
        };
        for broken in fleet.concerned(&selection) {
            let who = broken.name.as_ref().map_or_else(|| broken.dir.display().to_string(), HostName::to_string);
            failed(&mut versions, who, &broken.error);
        }
        let hosts: Vec<&FleetHost> = fleet.selected(&selection).collect();
        let subjects: Vec<Subject<'_>> = hosts.iter().map(|host| host.subject()).collect();
        evaluator.evaluate_fleet(&subjects, &search_path, &mut |index, evaluation| {
            let host = hosts[index];
            let name = host.host.name.to_string();
            match evaluation {
                Ok(evaluation) => {
                    let known = Version::Known {
                        drv_path: evaluation.drv_path.to_string(),
                        toplevel: evaluation.toplevel.to_string(),
                    };
                    versions.insert(name, known);
                }
                Err(error) => failed(&mut versions, name, &anyhow!(host.tree.original_names(&format!("{error:#}")))),
            }
        });
        if self.json {
            super::print_json(&versions)?;
        } else {
            let line = |(host, version): (&String, &Version)| match version {
                Version::Known { toplevel, .. } => format!("{host}: {toplevel}\n"),
                Version::Failed { .. } => String::new(),
            };
            super::print(&versions.iter().map(line).collect::<String>())?;
        }
        let failed = versions.values().any(|version| matches!(version, Version::Failed { .. }));
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
