//! `bento diff`: what deploying would change on each host, without building anything.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;

use super::fleet::FleetOptions;
use crate::diff::derivations::{Changes, Graph, Units};
use crate::diff::{PackageChange, closures};
use crate::evaluation::{Evaluation, Evaluator, SearchPath};
use crate::fleet::{Fleet, FleetHost};
use crate::host::{HostKind, HostName};
use crate::hub::Hub;
use crate::manifest::{Manifest, release_dir};
use crate::nix::{TOPLEVEL, flake_url, nix_string, non_flake_expression};
use crate::source::SourceTree;
use crate::store_path::StorePath;

/// Show what deploying would change on each host, without building
///
/// What the fleet's files come to is compared with the current release. Where both systems are built, so are their
/// closures, as `nix store diff-closures` does it.
#[derive(Args)]
pub(super) struct Diff {
    /// The hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]
    hosts: Vec<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Print the result as Markdown, for a merge request
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// What would change on one host.
#[derive(Serialize)]
struct Line {
    host: HostName,
    /// The system of the current release, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<StorePath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<StorePath>,
    /// What differs in what the systems are built from.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Changes>,
    /// What differs in the closures, if both are built.
    #[serde(skip_serializing_if = "Option::is_none")]
    closures: Option<Vec<PackageChange>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Diff {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let selection = self.fleet.selection(&self.hosts, &config)?;
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator();
        let hub = Hub::new(&config.hub.directory);
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        let mut failed = false;
        for broken in &fleet.broken {
            if broken.name.as_ref().map_or(selection.is_all(), |name| selection.includes(name)) {
                failed = true;
                eprintln!("{}: failed: {:#}", broken.dir.display(), broken.error);
            }
        }
        let mut lines = Vec::new();
        for host in fleet.selected(&selection) {
            let line = diff(&hub, host, evaluator.as_ref(), &search_path).unwrap_or_else(|error| Line {
                host: host.host.name.clone(),
                old: None,
                new: None,
                changes: None,
                closures: None,
                error: Some(format!("{error:#}")),
            });
            failed |= line.error.is_some();
            if !self.json {
                super::print(&if self.markdown { markdown(&line) } else { text(&line) })?;
            }
            lines.push(line);
        }
        if self.json {
            super::print_json(&lines)?;
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Works out what would change on a host.
fn diff(hub: &Hub, host: &FleetHost, evaluator: &dyn Evaluator, search_path: &SearchPath) -> Result<Line> {
    let evaluation = evaluator
        .evaluate(&host.tree, &host.host, search_path)
        .map_err(|error| anyhow!(host.tree.original_names(&format!("{error:#}"))))?;
    let dir = hub.host(&host.host.name);
    let current = dir.manifest()?;
    let mut line = Line {
        host: host.host.name.clone(),
        old: current.as_ref().map(|current| current.toplevel.clone()),
        new: Some(evaluation.toplevel.clone()),
        changes: None,
        closures: None,
        error: None,
    };
    let Some(current) = current.filter(|current| current.toplevel != evaluation.toplevel) else { return Ok(line) };
    let new = graph(&host.tree, host, &evaluation, search_path)?;
    let old = old_graph(&dir.path().join(release_dir(current.serial)), host, &current, search_path)
        .context("cannot tell what the current release was built from")?;
    line.changes = Some(old.changes(&new));
    if current.toplevel.as_path().exists() && evaluation.toplevel.as_path().exists() {
        let (old, new) = (closures::closure(&current.toplevel)?, closures::closure(&evaluation.toplevel)?);
        line.closures = Some(closures::changes(&old, &new));
    }
    Ok(line)
}

/// The derivations of the current release: from the store, or from the files that were published.
fn old_graph(files: &Path, host: &FleetHost, current: &Manifest, search_path: &SearchPath) -> Result<Graph> {
    if current.drv_path.as_path().exists() {
        return Graph::read(Path::new("/nix/store"), &current.drv_path);
    }
    if current.files.is_empty() {
        bail!("{} is not in this machine's store, and its files were not published", current.drv_path);
    }
    let tree = SourceTree::restore(files, &current.files)?;
    let evaluation = Evaluation { drv_path: current.drv_path.clone(), toplevel: current.toplevel.clone() };
    graph(&tree, host, &evaluation, search_path)
}

/// The derivations of a host whose files are `tree`, which are evaluated once more by this very program.
fn graph(tree: &SourceTree, host: &FleetHost, evaluation: &Evaluation, search_path: &SearchPath) -> Result<Graph> {
    if evaluation.drv_path.as_path().exists() {
        return Graph::read(Path::new("/nix/store"), &evaluation.drv_path);
    }
    let dir = tempfile::Builder::new().prefix("bento-").tempdir().context("cannot make a directory")?;
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new(&program);
    command.arg("eval").arg("--dump-drvs").arg(dir.path());
    match host.host.kind {
        HostKind::Flake => {
            let attribute = format!("nixosConfigurations.{}.{TOPLEVEL}", nix_string(host.host.name.as_str()));
            command.args(["--pure-eval", "--flake", &flake_url(&tree.path())?, "-A", &attribute]);
        }
        HostKind::NonFlake => {
            command.env("NIX_PATH", "");
            command.args(search_path.entries().iter().flat_map(|entry| ["-I", entry]));
            command.args(["-A", TOPLEVEL, "-E", &non_flake_expression(&tree.path())?]);
        }
    }
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!("{}", tree.original_names(String::from_utf8_lossy(&output.stderr).trim()));
    }
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if found != evaluation.drv_path.as_str() {
        bail!("it comes to {found} now, and not to {}: the search path or the channels changed", evaluation.drv_path);
    }
    Graph::read(dir.path(), &evaluation.drv_path)
}

/// What happens to units, in words.
fn units(units: &Units) -> Vec<(&'static str, &BTreeSet<String>)> {
    let kinds = [("started", &units.added), ("stopped", &units.removed), ("restarted", &units.changed)];
    kinds.into_iter().filter(|(_, units)| !units.is_empty()).collect()
}

/// For people.
fn text(line: &Line) -> String {
    let mut text = match (&line.error, &line.old, &line.new) {
        (Some(error), _, _) => return format!("{}: failed: {error}\n", line.host),
        (None, None, new) => {
            let new = new.as_ref().map_or("nothing", StorePath::as_str);
            return format!("{}: nothing was published yet; new is {new}\n", line.host);
        }
        (None, old, new) if old == new => return format!("{}: no change\n", line.host),
        (None, Some(old), Some(new)) => format!("{}: {old} → {new}\n", line.host),
        (None, Some(_), None) => String::new(),
    };
    if let Some(changes) = &line.changes {
        if !changes.reboot.is_empty() {
            text += &format!("  needs a reboot: {}\n", changes.reboot.join(", "));
        }
        for (what, units) in units(&changes.units) {
            text += &format!("  {what}: {}\n", units.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        }
        for package in &changes.packages {
            text += &format!("  {}: {}\n", package.name, package.text());
        }
    }
    if let Some(closures) = &line.closures {
        text += "  in the closure:\n";
        for package in closures {
            text += &format!("    {}: {}\n", package.name, package.text());
        }
    }
    text
}

/// For a merge request.
fn markdown(line: &Line) -> String {
    let mut text = format!("### {}\n\n", line.host);
    if let Some(error) = &line.error {
        return format!("{text}Failed:\n\n```\n{error}\n```\n\n");
    }
    if line.old.is_none() {
        return format!("{text}Nothing was published yet.\n\n");
    }
    if line.old == line.new {
        return format!("{text}No change.\n\n");
    }
    if let Some(changes) = &line.changes {
        if !changes.reboot.is_empty() {
            text += &format!("**Needs a reboot**: {}\n\n", changes.reboot.join(", "));
        }
        for (what, units) in units(&changes.units) {
            let units: Vec<String> = units.iter().map(|unit| format!("`{unit}`")).collect();
            text += &format!("- {what}: {}\n", units.join(", "));
        }
        text += "\n";
    }
    let packages = line.closures.as_ref().or(line.changes.as_ref().map(|changes| &changes.packages));
    if let Some(packages) = packages.filter(|packages| !packages.is_empty()) {
        text += "| package | change |\n|---|---|\n";
        for package in packages {
            text += &format!("| {} | {} |\n", package.name, package.text());
        }
        text += "\n";
    }
    text
}
