//! `bento check`: what is wrong with hosts' configurations and with the layouts of their disks, before anything is deployed or installed.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::Serialize;

use super::fleet::FleetOptions;
use super::progress::Display;
use crate::build::{Builder, Job};
use crate::evaluation::{Evaluation, Evaluator, SearchPath, Subject};
use crate::fleet::{Fleet, FleetHost};
use crate::host::HostName;
use crate::nix::Programs;
use crate::provision::outline::{self, Layout, Outline};

/// Say what is wrong with hosts: conditions that don't hold, warnings, the layout of the disks
///
/// Of hosts whose disks disko lays out, the script that does it is built, and tried out in a virtual machine. The exit status
/// is 1 if a host needs a person: what only can't be built on this machine is said, and is no failure.
#[derive(Args)]
pub(super) struct Check {
    /// The hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]
    hosts: Vec<String>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Build nothing
    #[arg(long)]
    no_build: bool,
    /// Build the script that lays out the disks, but don't try it out
    #[arg(long, conflicts_with = "no_build")]
    no_vm_test: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What is known of one host.
#[derive(Default, Serialize)]
struct Finding {
    /// The host; a directory that is no sound host has its path instead.
    host: String,
    /// The system that it comes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    toplevel: Option<String>,
    /// Why it can't be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What the assertions say that do not hold.
    assertions: Vec<String>,
    /// What the configuration warns of.
    warnings: Vec<String>,
    /// The disks that are erased when the host is installed; nothing if disko lays out none.
    #[serde(skip_serializing_if = "Option::is_none")]
    disks: Option<Vec<Disk>>,
    /// What is wrong with the layout of the disks.
    layout: Vec<String>,
    /// What could be better about it.
    advice: Vec<String>,
    /// The script that lays out the disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    disko_script: Option<Outcome>,
    /// What tries that out in a virtual machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm_test: Option<Outcome>,
}

/// A disk that is erased.
#[derive(Serialize)]
struct Disk {
    name: String,
    device: String,
}

/// What became of something that was to be built.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// It was built.
    Built(String),
    /// This machine can't build it, and why.
    NotHere(String),
    /// It can't be built, and why.
    Failed(String),
}

impl Outcome {
    fn text(&self) -> String {
        match self {
            Self::Built(path) => format!("built: {path}"),
            Self::NotHere(reason) => format!("can't be built here: {reason}"),
            Self::Failed(reason) => format!("failed: {reason}"),
        }
    }
}

impl Finding {
    /// Whether somebody has to do something about the host.
    fn needs_a_person(&self) -> bool {
        let failed = |built: &Option<Outcome>| matches!(built, Some(Outcome::Failed(_)));
        self.error.is_some()
            || !self.assertions.is_empty()
            || !self.layout.is_empty()
            || failed(&self.disko_script)
            || failed(&self.vm_test)
    }

    /// For people.
    fn text(&self) -> String {
        let verdict = if self.needs_a_person() { "not in order" } else { "in order" };
        let toplevel = self.toplevel.as_ref().map_or_else(String::new, |toplevel| format!(", {toplevel}"));
        let mut text = format!("{}: {verdict}{toplevel}\n", self.host);
        let indented = |text: &str| text.trim_end().replace('\n', "\n      ");
        if let Some(error) = &self.error {
            text += &format!("    error: {}\n", indented(error.trim_start()));
        }
        for (kind, said) in [
            ("assertion", &self.assertions),
            ("disks", &self.layout),
            ("warning", &self.warnings),
            ("advice", &self.advice),
        ] {
            for line in said {
                text += &format!("    {kind}: {}\n", indented(line));
            }
        }
        for Disk { name, device } in self.disks.iter().flatten() {
            text += &format!("    disk {name}: {device}, which is erased when the host is installed\n");
        }
        for (what, built) in [("disko script", &self.disko_script), ("test of the disko script", &self.vm_test)] {
            if let Some(built) = built {
                text += &format!("    {what}: {}\n", indented(&built.text()));
            }
        }
        text
    }
}

impl Check {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let selection = self.fleet.selection(&self.hosts, &config)?;
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator()?;
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        let mut findings = Vec::new();
        for broken in fleet.concerned(&selection) {
            findings.push(Finding {
                host: broken.name.as_ref().map_or_else(|| broken.dir.display().to_string(), HostName::to_string),
                error: Some(format!("{:#}", broken.error)),
                ..Finding::default()
            });
        }
        let hosts: Vec<&FleetHost> = fleet.selected(&selection).collect();
        let looked = look(evaluator.as_ref(), &hosts, &search_path);
        let mut sound = Vec::new();
        for (host, (evaluation, outline)) in hosts.iter().zip(looked) {
            let finding = found(&host.host.name, evaluation, &outline);
            if let Ok(outline) = outline
                && finding.error.is_none()
                && finding.assertions.is_empty()
                && finding.layout.is_empty()
            {
                sound.push((findings.len(), *host, outline));
            }
            findings.push(finding);
        }
        if !self.no_build {
            let builder = Builder::new(&config.build.options);
            for (attribute, wanted) in [("diskoScript", true), ("installTest", !self.no_vm_test)] {
                let with: Vec<&(usize, &FleetHost, Outline)> = sound
                    .iter()
                    .filter(|(_, _, outline)| wanted && outline.layout.is_some() && outline.has_output(attribute))
                    .collect();
                let hosts: Vec<&FleetHost> = with.iter().map(|(_, host, _)| *host).collect();
                let built = build(evaluator.as_ref(), &builder, &hosts, &search_path, attribute);
                for ((index, _, _), built) in with.into_iter().zip(built) {
                    let place = &mut findings[*index];
                    let place = if attribute == "diskoScript" { &mut place.disko_script } else { &mut place.vm_test };
                    *place = Some(built);
                }
            }
        }
        findings.sort_by(|one, other| one.host.cmp(&other.host));
        if self.json {
            super::print_json(&findings)?;
        } else {
            super::print(&findings.iter().map(Finding::text).collect::<String>())?;
        }
        let failed = findings.iter().any(Finding::needs_a_person);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// What each host comes to, and what it says of itself.
pub(super) fn look(
    evaluator: &dyn Evaluator,
    hosts: &[&FleetHost],
    search_path: &SearchPath,
) -> Vec<(Result<Evaluation>, Result<Outline>)> {
    let subjects: Vec<Subject<'_>> = hosts.iter().map(|host| host.subject()).collect();
    let named = |index: usize, error: anyhow::Error| {
        let host: &FleetHost = hosts[index];
        anyhow!(host.tree.original_names(&format!("{error:#}")))
    };
    let lost = || anyhow!("the evaluation did not end");
    let mut outlines: Vec<Result<Outline>> = hosts.iter().map(|_| Err(lost())).collect();
    evaluator.inspect_fleet(&subjects, search_path, outline::FUNCTION, &mut |index, json| {
        outlines[index] = json.map_err(|error| named(index, error)).and_then(|json| Outline::parse(&json));
    });
    let mut evaluations: Vec<Result<Evaluation>> = hosts.iter().map(|_| Err(lost())).collect();
    evaluator.evaluate_fleet(&subjects, search_path, &mut |index, evaluation| {
        evaluations[index] = evaluation.map_err(|error| named(index, error));
    });
    evaluations.into_iter().zip(outlines).collect()
}

/// What is known of a host before anything is built.
fn found(name: &HostName, evaluation: Result<Evaluation>, outline: &Result<Outline>) -> Finding {
    let mut finding = Finding { host: name.to_string(), ..Finding::default() };
    match outline {
        Ok(outline) => {
            finding.assertions.clone_from(&outline.failed);
            finding.warnings.clone_from(&outline.warnings);
            finding.layout = outline.objections();
            finding.advice = outline.advice();
            let disks = outline.layout.as_ref().map(Layout::erased);
            finding.disks = disks.map(|disks| disks.into_iter().map(|(name, device)| Disk { name, device }).collect());
        }
        Err(error) => finding.error = Some(format!("{error:#}")),
    }
    match evaluation {
        Ok(evaluation) => finding.toplevel = Some(evaluation.toplevel.to_string()),
        // it repeats which assertions do not hold, or what was wrong already
        Err(_) if finding.error.is_some() || !finding.assertions.is_empty() => {}
        Err(error) => finding.error = Some(format!("{error:#}")),
    }
    finding
}

/// Builds one of disko's outputs for each of these hosts.
fn build(
    evaluator: &dyn Evaluator,
    builder: &Builder,
    hosts: &[&FleetHost],
    search_path: &SearchPath,
    attribute: &str,
) -> Vec<Outcome> {
    if let Some(reason) = unable(attribute) {
        return hosts.iter().map(|_| Outcome::NotHere(reason.to_owned())).collect();
    }
    hosts
        .iter()
        .map(|host| match build_one(evaluator, builder, host, search_path, attribute) {
            Ok(path) => Outcome::Built(path),
            Err(error) => {
                let reason = format!("{error:#}");
                // in Nix's words, of a builder for another kind of machine, or with features that this one does not have
                let elsewhere = ["is required to build", "required system or feature not available"];
                let elsewhere = elsewhere.iter().any(|words| reason.contains(words));
                if elsewhere { Outcome::NotHere(reason) } else { Outcome::Failed(reason) }
            }
        })
        .collect()
}

/// Builds one of disko's outputs for a host; gives its path.
pub(super) fn build_one(
    evaluator: &dyn Evaluator,
    builder: &Builder,
    host: &FleetHost,
    search_path: &SearchPath,
    attribute: &str,
) -> Result<String> {
    let evaluation = instantiate(evaluator, host, search_path, &format!("config.system.build.{attribute}"))?;
    let job = Job { host: &host.host, evaluation: &evaluation };
    let built = builder.build(&[job], &Display::new()).pop().context("the build was lost")?;
    Ok(built?.to_string())
}

/// Has a derivation of a host in the store.
pub(super) fn instantiate(
    evaluator: &dyn Evaluator,
    host: &FleetHost,
    search_path: &SearchPath,
    attribute: &str,
) -> Result<Evaluation> {
    let mut evaluated = Err(anyhow!("the evaluation did not end"));
    evaluator
        .instantiate_attribute(&[host.subject()], search_path, attribute, &mut |_, evaluation| evaluated = evaluation);
    evaluated.map_err(|error| anyhow!(host.tree.original_names(&format!("{error:#}"))))
}

/// Why this machine can't build one of disko's outputs at all.
fn unable(attribute: &str) -> Option<&'static str> {
    if !Programs::default().are_installed() {
        Some("there is no Nix on this machine")
    } else if attribute == "installTest" && !Path::new("/dev/kvm").exists() {
        Some("the test starts a virtual machine, which needs KVM, and this machine has no /dev/kvm")
    } else {
        None
    }
}
