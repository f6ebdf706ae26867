//! `bento deploy`: evaluate the fleet and publish what changed.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Args;
use jiff::{Span, Timestamp};
use serde::Serialize;

use crate::evaluation::{Evaluation, EvaluationOptions, SearchPath, Subject};
use crate::fleet::{Fleet, FleetHost, Selection};
use crate::host::{HostKind, HostName};
use crate::hub::Hub;
use crate::package::Package;
use crate::publish::{self, Candidate, Published};
use crate::store_path::StorePath;

/// Evaluate the fleet's hosts and publish those that changed
///
/// A host that can't be evaluated is not published; the others are, and the exit status is 1.
#[derive(Args)]
pub(super) struct Deploy {
    /// The hosts to deploy, by their exact names [default: those in the environment's NAME, or else all]
    hosts: Vec<HostName>,
    /// Say what would be published, and publish nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    evaluation: EvaluationOptions,
    /// Hosts stop accepting the release after so many days
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    valid_for: Option<u16>,
}

/// What became of one host, for `--json`.
#[derive(Serialize)]
struct Line {
    /// The host; a directory that is no sound host has its path instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostName>,
    directory: String,
    /// `published`, `unchanged`, `would-publish` or `failed`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    toplevel: Option<String>,
    /// The digest of the host's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    seconds: f64,
}

/// What became of one host that could be evaluated.
struct Done {
    published: Published,
    toplevel: StorePath,
    package: String,
}

impl Line {
    fn failed(host: Option<&HostName>, directory: &std::path::Path, error: &anyhow::Error, start: Instant) -> Self {
        Self {
            host: host.cloned(),
            directory: directory.display().to_string(),
            outcome: "failed",
            serial: None,
            toplevel: None,
            package: None,
            error: Some(format!("{error:#}")),
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    /// For people.
    fn text(&self) -> String {
        let who = self.host.as_ref().map_or(self.directory.as_str(), HostName::as_str);
        let serial = self.serial.map_or_else(String::new, |serial| format!(" release {serial}"));
        let toplevel = self.toplevel.as_ref().map_or_else(String::new, |toplevel| format!(": {toplevel}"));
        match (&self.error, self.outcome) {
            // the trace of an evaluation begins on a line of its own
            (Some(error), _) if error.starts_with('\n') => format!("{who}: failed:{error}"),
            (Some(error), _) => format!("{who}: failed: {error}"),
            (None, "unchanged") => format!("{who}: unchanged,{serial}{toplevel}"),
            (None, "would-publish") => format!("{who}: would publish{serial}{toplevel}"),
            (None, _) => format!("{who}: published{serial}{toplevel} ({:.1} s)", self.seconds),
        }
    }
}

impl Deploy {
    pub(super) fn run(self) -> Result<ExitCode> {
        let dir = super::fleet_dir()?;
        let config = super::fleet_config(&dir)?;
        let selection = Selection::new(&self.hosts, std::env::var("NAME").ok().as_deref())?;
        let search_path = self.evaluation.search_path()?;
        let evaluator = self.evaluation.open()?;
        let hub = Hub::new(&config.chroot_dir);
        // a plan must not even create the hub's directory
        let _lock = if self.dry_run { None } else { Some(hub.lock()?) };
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        let mut lines = Vec::new();
        let mut say = |line: Line| {
            if !self.json || line.error.is_some() {
                eprintln!("{}", line.text());
            }
            lines.push(line);
        };
        for broken in fleet.concerned(&selection) {
            say(Line::failed(broken.name.as_ref(), &broken.dir, &broken.error, Instant::now()));
        }
        let hosts: Vec<&FleetHost> = fleet.selected(&selection).collect();
        let subjects: Vec<Subject<'_>> =
            hosts.iter().map(|host| Subject { tree: &host.tree, host: &host.host }).collect();
        let start = Instant::now();
        evaluator.evaluate_fleet(&subjects, &search_path, &mut |index, evaluation| {
            let host = hosts[index];
            say(match self.deploy(&hub, host, evaluation, &search_path) {
                Ok(done) => {
                    let (outcome, serial) = match done.published {
                        Published::Unchanged { serial } => ("unchanged", serial),
                        Published::New { serial } if self.dry_run => ("would-publish", serial),
                        Published::New { serial } => ("published", serial),
                    };
                    Line {
                        host: Some(host.host.name.clone()),
                        directory: host.dir.display().to_string(),
                        outcome,
                        serial: Some(serial),
                        toplevel: Some(done.toplevel.to_string()),
                        package: Some(done.package),
                        error: None,
                        seconds: start.elapsed().as_secs_f64(),
                    }
                }
                Err(error) => Line::failed(Some(&host.host.name), &host.dir, &error, start),
            });
        });
        lines.sort_by(|a, b| a.host.cmp(&b.host));
        if !self.dry_run && matches!(selection, Selection::All) {
            record_fleet(&hub, &fleet)?;
        }
        if self.json {
            super::print_json(&lines)?;
        }
        let failed = lines.iter().any(|line| line.error.is_some());
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Publishes one host, if it could be evaluated.
    fn deploy(
        &self,
        hub: &Hub,
        host: &FleetHost,
        evaluation: Result<Evaluation>,
        search_path: &SearchPath,
    ) -> Result<Done> {
        let evaluation = evaluation.map_err(|error| anyhow!(host.tree.original_names(&format!("{error:#}"))))?;
        let package = Package::of(&host.tree.path())?;
        let (toplevel, digest) = (evaluation.toplevel.clone(), package.digest());
        let now = Timestamp::now();
        let expires =
            self.valid_for.map(|days| now.checked_add(Span::new().hours(24 * i64::from(days)))).transpose()?;
        let candidate = Candidate {
            host: &host.host,
            tree: &host.tree,
            package,
            evaluation,
            search_path: match host.host.kind {
                HostKind::Flake => Vec::new(),
                HostKind::NonFlake => search_path.portable(),
            },
            expires,
        };
        let published =
            if self.dry_run { publish::plan(hub, &candidate, now)? } else { publish::publish(hub, &candidate, now)? };
        if !self.dry_run && publish::lacks_user(&host.host)? {
            let name = &host.host.name;
            eprintln!("{name}: this machine has no user {name} yet, so the host can't log in");
        }
        Ok(Done { published, toplevel, package: digest })
    }
}

/// Remembers which hosts there are, so that `status` can tell those that were removed.
fn record_fleet(hub: &Hub, fleet: &Fleet) -> Result<()> {
    let mut hosts: Vec<HostName> = fleet.hosts.iter().map(|host| host.host.name.clone()).collect();
    hosts.extend(fleet.broken.iter().filter_map(|broken| broken.name.clone()));
    // a flake that can't be read hides its hosts: they aren't removed
    if fleet.broken.iter().any(|broken| broken.name.is_none()) {
        hosts.extend(hub.fleet()?.unwrap_or_default());
    }
    hub.record_fleet(hosts)
}
