//! `bento diff`: what deploying would change on each host, without building anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tempfile::TempDir;

use super::fleet::FleetOptions;
use crate::builtin::BuiltinEvaluator;
use crate::diff::derivations::{Changes, Graph, Units};
use crate::diff::{PackageChange, closures};
use crate::evaluation::{Evaluation, Resources, SearchPath, Subject};
use crate::fleet::config::HubConfig;
use crate::fleet::{Fleet, FleetHost};
use crate::host::HostName;
use crate::hub::{HostDir, Hub};
use crate::manifest::{Manifest, release_dir};
use crate::source::SourceTree;
use crate::status;
use crate::store_path::StorePath;

/// Show what deploying would change on each host, without building
///
/// What the fleet's files come to is compared with what each host says that it runs, or, where that is not known, with its
/// current release. Where both systems are built, so are their closures, as `nix store diff-closures` does it.
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
    /// The system that the host runs, or that of the current release; nothing if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<StorePath>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<StorePath>,
    /// Why `old` is not both.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
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
        let evaluator = self.fleet.evaluator()?;
        let hub = config.hub.as_ref().map(HubConfig::hub);
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        let mut failed = false;
        for broken in fleet.concerned(&selection) {
            failed = true;
            eprintln!("{}: failed: {:#}", broken.dir.display(), broken.error);
        }
        let hosts: Vec<&FleetHost> = fleet.selected(&selection).collect();
        // what can't be read of what hosts said, `bento status` tells; then it is not known what they run
        let said = match &hub {
            Some(hub) => status::overview(hub, &super::status::expected(&config)?, Timestamp::now()).hosts,
            None => Vec::new(),
        };
        let running = |name: &HostName| said.iter().find(|host| &host.machine == name)?.remote_version.as_deref();
        let mut comparisons: Vec<Comparison<'_>> =
            hosts.iter().map(|host| Comparison::new(host, hub.as_ref(), running(&host.host.name))).collect();
        let subjects: Vec<Subject<'_>> = hosts.iter().map(|host| host.subject()).collect();
        evaluator.evaluate_fleet(&subjects, &search_path, &mut |index, evaluation| {
            let tree = &hosts[index].tree;
            comparisons[index].new = evaluation.map_err(|error| anyhow!(tree.original_names(&format!("{error:#}"))));
        });
        let graphs = Graphs::of(&comparisons, self.fleet.resources(), &search_path)?;
        let mut lines = Vec::new();
        for comparison in &comparisons {
            let line = comparison.line(&graphs).unwrap_or_else(|error| Line {
                host: comparison.host.host.name.clone(),
                old: None,
                new: None,
                note: None,
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

/// A host's two systems.
struct Comparison<'f> {
    host: &'f FleetHost,
    /// Where its releases are, if there is a hub.
    dir: Option<PathBuf>,
    /// The release that the host runs, or the current one; nothing if there is none.
    old: Result<Option<Manifest>>,
    /// Why that is not both.
    note: Option<String>,
    /// What the fleet's files come to.
    new: Result<Evaluation>,
}

impl<'f> Comparison<'f> {
    /// Of a host that says that it runs the system of this name.
    fn new(host: &'f FleetHost, hub: Option<&Hub>, running: Option<&str>) -> Self {
        let new = Err(anyhow!("the evaluation did not end"));
        let Some(dir) = hub.map(|hub| hub.host(&host.host.name)) else {
            let note =
                "what it runs is not known: the fleet's settings name no hub (hub.directory), where that is recorded"
                    .to_owned();
            return Self { host, dir: None, old: Ok(None), note: Some(note), new };
        };
        let (mut old, mut note) = (dir.manifest(), None);
        if let (Ok(Some(current)), Some(running)) = (&old, running)
            && current.toplevel.base_name() != running
        {
            let (serial, toplevel) = (current.serial, &current.toplevel);
            match release_of(&dir, running) {
                Some(release) => {
                    note = Some(format!(
                        "it runs release {}; release {serial}, {toplevel}, is there for it",
                        release.serial
                    ));
                    old = Ok(Some(release));
                }
                None => {
                    note = Some(format!(
                        "it runs {running}, which is of no release that is kept: this is about release {serial}"
                    ));
                }
            }
        }
        Self { host, dir: Some(dir.path().to_owned()), old, note, new }
    }

    /// The release and the evaluation, if they are there and name different systems.
    fn changed(&self) -> Option<(&Manifest, &Evaluation)> {
        let (Ok(Some(old)), Ok(new)) = (&self.old, &self.new) else { return None };
        (old.toplevel != new.toplevel).then_some((old, new))
    }

    /// The files of the release.
    fn old_tree(&self, old: &Manifest) -> Result<SourceTree> {
        if old.files.is_empty() {
            bail!("{} is not in this machine's store, and its files were not published", old.drv_path);
        }
        SourceTree::restore(&self.dir.as_ref().context("there is no hub")?.join(release_dir(old.serial)), &old.files)
    }

    /// What would change.
    fn line(&self, graphs: &Graphs) -> Result<Line> {
        let new = self.new.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let old = self.old.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let mut line = Line {
            host: self.host.host.name.clone(),
            old: old.as_ref().map(|old| old.toplevel.clone()),
            new: Some(new.toplevel.clone()),
            note: self.note.clone(),
            changes: None,
            closures: None,
            error: None,
        };
        let Some((old, new)) = self.changed() else { return Ok(line) };
        let to = graphs.graph(&new.drv_path)?;
        let from = graphs.graph(&old.drv_path).context("cannot tell what the release was built from")?;
        line.changes = Some(from.changes(&to));
        if old.toplevel.as_path().exists() && new.toplevel.as_path().exists() {
            let (old, new) = (closures::closure(&old.toplevel)?, closures::closure(&new.toplevel)?);
            line.closures = Some(closures::changes(&old, &new));
        }
        Ok(line)
    }
}

/// The newest release of this system, of those that are kept with what it was made from.
fn release_of(dir: &HostDir, system: &str) -> Option<Manifest> {
    let kept = dir.serials().ok()?.into_iter().rev().filter_map(|serial| dir.kept_manifest(serial).ok().flatten());
    let can_be_read = |release: &Manifest| release.drv_path.as_path().exists() || !release.files.is_empty();
    kept.filter(can_be_read).find(|release| release.toplevel.base_name() == system)
}

/// Derivations of systems, by where they are.
struct Graphs {
    /// By derivation: the directory, or why there is none.
    places: BTreeMap<StorePath, Result<PathBuf>>,
    /// Those that are in no store are here.
    _dir: TempDir,
}

impl Graphs {
    /// Makes sure of the derivations of all systems that changed: what is not in this machine's store comes from evaluating
    /// the files once more, with bento's own evaluator.
    fn of(comparisons: &[Comparison<'_>], resources: Resources, search_path: &SearchPath) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bento-").tempdir().context("cannot make a directory")?;
        let mut places = BTreeMap::new();
        let mut missing = Vec::new();
        let old_trees: Vec<Option<Result<SourceTree>>> = comparisons
            .iter()
            .map(|comparison| {
                let (old, _) = comparison.changed()?;
                (!old.drv_path.as_path().exists()).then(|| comparison.old_tree(old))
            })
            .collect();
        for (comparison, old_tree) in comparisons.iter().zip(&old_trees) {
            let Some((old, new)) = comparison.changed() else { continue };
            let host = &comparison.host.host;
            if !new.drv_path.as_path().exists() {
                missing.push((&new.drv_path, Subject { tree: &comparison.host.tree, host }));
            }
            match old_tree {
                None => {}
                Some(Ok(tree)) => missing.push((&old.drv_path, Subject { tree, host })),
                Some(Err(error)) => {
                    places.insert(old.drv_path.clone(), Err(anyhow!("{error:#}")));
                }
            }
        }
        let subjects: Vec<Subject<'_>> = missing.iter().map(|(_, subject)| *subject).collect();
        let directories: Vec<PathBuf> = (0..missing.len()).map(|index| dir.path().join(index.to_string())).collect();
        for directory in &directories {
            std::fs::create_dir(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        BuiltinEvaluator::dump_fleet(resources, &subjects, search_path, &directories, &mut |index, evaluation| {
            let (wanted, Subject { tree, .. }) = &missing[index];
            let place = match evaluation {
                Ok(found) if found.drv_path == **wanted => Ok(directories[index].clone()),
                Ok(found) => Err(anyhow!(
                    "it comes to {} now, and not to {wanted}: the search path or the channels changed",
                    found.drv_path
                )),
                Err(error) => Err(anyhow!(tree.original_names(&format!("{error:#}")))),
            };
            places.insert((*wanted).clone(), place);
        });
        Ok(Self { places, _dir: dir })
    }

    /// The graph of a derivation.
    fn graph(&self, drv_path: &StorePath) -> Result<Graph> {
        match self.places.get(drv_path) {
            None => Graph::read(Path::new("/nix/store"), drv_path),
            Some(Ok(directory)) => Graph::read(directory, drv_path),
            Some(Err(error)) => Err(anyhow!("{error:#}")),
        }
    }
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
            let why = line.note.as_deref().unwrap_or("nothing was published yet");
            return format!("{}: {why}; new is {new}\n", line.host);
        }
        (None, old, new) if old == new => format!("{}: no change\n", line.host),
        (None, Some(old), Some(new)) => format!("{}: {old} → {new}\n", line.host),
        (None, Some(_), None) => String::new(),
    };
    if let Some(note) = &line.note {
        text += &format!("  {note}\n");
    }
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
        return match &line.note {
            Some(note) => format!("{text}_{note}_\n\n"),
            None => format!("{text}Nothing was published yet.\n\n"),
        };
    }
    if let Some(note) = &line.note {
        text += &format!("_{note}_\n\n");
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
