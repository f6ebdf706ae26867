//! `bento flake-update`: write the lock files of the fleet's flakes anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bento_eval::flake::lock::{InputPath, parse_input_path, show_input_path};
use bento_eval::flake::{LoadOptions, LockPolicy, Update};
use bento_eval::{RenderOptions, Settings};
use clap::Args;
use serde::Serialize;

use super::fetching::FetchArgs;
use super::terminal::Terminal;
use crate::store::NixStore;
use crate::{fleet, nix_conf};

/// Update the lock files of the fleet's flakes
///
/// The flakes are the one at the top of the fleet and those in hosts/*/. Each lock file is replaced as a whole, and left alone
/// if nothing changes. A flake that can't be updated keeps its lock file; the others are updated, and the exit status is 1.
#[derive(Args)]
pub(super) struct FlakeUpdate {
    /// The inputs to update, as PATH of names with slashes between them [default: all]
    inputs: Vec<String>,
    /// Lock only what isn't locked yet, as `nix flake lock` does
    #[arg(long, conflicts_with = "inputs")]
    missing: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fetch: FetchArgs,
}

/// What became of one flake.
#[derive(Serialize)]
struct Line {
    directory: PathBuf,
    /// `updated`, `unchanged`, `no-such-input` or `failed`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What came of locking a flake.
struct Done {
    changed: bool,
    /// The inputs that were to be updated and aren't there.
    unmatched: Vec<InputPath>,
}

impl FlakeUpdate {
    pub(super) fn run(self) -> Result<ExitCode> {
        let root = super::fleet_dir()?;
        let flakes = fleet::flake_dirs(&root)?;
        if flakes.is_empty() {
            bail!("{} holds no flake: neither at its top nor in hosts/* is a flake.nix", root.display());
        }
        let inputs = self.inputs.iter().map(|input| match parse_input_path(input)? {
            path if path.is_empty() => bail!("'{input}' names no input"),
            path => Ok(path),
        });
        let inputs = inputs.collect::<Result<BTreeSet<InputPath>>>()?;
        let update =
            if inputs.is_empty() && !self.missing { Update::Everything } else { Update::Inputs(inputs.clone()) };
        let mut settings = nix_conf::settings();
        self.fetch.apply(&mut settings.fetch)?;
        if settings.fetch.network {
            // what is the newest is asked now
            settings.fetch.ttl = 0;
        }
        let options = LoadOptions { update, policy: LockPolicy::Write { must: true }, ..LoadOptions::default() };
        let mut missed = inputs.clone();
        let mut lines = Vec::new();
        for directory in flakes {
            let (outcome, error) = match lock(&directory, &settings, &options) {
                Ok(done) => {
                    missed.retain(|input| done.unmatched.contains(input));
                    let outcome = match done.changed {
                        true => "updated",
                        false if !inputs.is_empty() && done.unmatched.len() == inputs.len() => "no-such-input",
                        false => "unchanged",
                    };
                    (outcome, None)
                }
                Err(error) => ("failed", Some(format!("{error:#}"))),
            };
            if !self.json {
                let shown = directory.display();
                match &error {
                    Some(error) => eprintln!("{shown}: failed: {error}"),
                    None => super::print(&format!("{shown}: {}\n", outcome.replace('-', " ")))?,
                }
            }
            lines.push(Line { directory, outcome, error });
        }
        if self.json {
            super::print_json(&lines)?;
        }
        let failed = lines.iter().any(|line| line.error.is_some());
        if !failed && !missed.is_empty() {
            let names: Vec<String> = missed.iter().map(|path| format!("'{}'", show_input_path(path))).collect();
            bail!("none of the fleet's flakes has the input {}", names.join(" or "));
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Locks the flake in a directory.
fn lock(directory: &Path, settings: &Settings, options: &LoadOptions) -> Result<Done> {
    let locked =
        bento_eval::evaluate(settings.clone(), Terminal::new(NixStore::new(settings.store.clone())), |evaluator| {
            let locked = evaluator.lock_flake(".", directory, options);
            locked
                .map(|locked| Done { changed: locked.lock_changed, unmatched: locked.unmatched_updates })
                .map_err(|error| evaluator.render_error(&error, &RenderOptions::default()))
        });
    locked.context("cannot start an evaluation")?.map_err(|text| {
        let text = text.strip_prefix("error:").unwrap_or(&text).trim_start_matches(' ').trim_end();
        anyhow!("{text}")
    })
}
