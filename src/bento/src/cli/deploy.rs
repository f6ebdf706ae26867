//! `bento deploy`: evaluate the fleet and publish what changed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use jiff::{Span, Timestamp};
use serde::Serialize;

use crate::evaluation::{Evaluator, EvaluatorChoice, SearchPath};
use crate::fleet::config::Config;
use crate::fleet::{Fleet, FleetHost, Selection};
use crate::host::{HostKind, HostName};
use crate::hub::Hub;
use crate::manifest::ReleaseMode;
use crate::package::Package;
use crate::publish::{self, Candidate, Published};
use crate::sign::Signer;
use crate::store_path::StorePath;

/// Evaluate the fleet's hosts and publish those that changed
///
/// A host that can't be evaluated is not published; the others are, and the exit status is 1.
#[derive(Args)]
pub(super) struct Deploy {
    /// The hosts to deploy: names, globs, @TAG [default: those in the environment's NAME, or else all]
    hosts: Vec<String>,
    /// Say what would be published, and publish nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Who evaluates
    #[arg(long, value_enum, default_value_t = EvaluatorChoice::Builtin)]
    evaluator: EvaluatorChoice,
    /// Look up <NAME> there, before the entries of NIX_PATH
    #[arg(short = 'I', value_name = "NAME=PATH")]
    include: Vec<String>,
    /// Hosts stop accepting the release after so many days
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    valid_for: Option<u16>,
    /// How hosts get their systems, whatever the settings say
    #[arg(long, value_enum)]
    mode: Option<ReleaseMode>,
    /// Sign with this key: a private key's file, or the public key's of one that the ssh agent holds
    #[arg(long, value_name = "FILE", env = "SIGNING_KEY")]
    signing_key: Option<PathBuf>,
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

/// What all hosts are deployed with.
struct Work<'a> {
    config: &'a Config,
    hub: &'a Hub,
    evaluator: &'a dyn Evaluator,
    search_path: &'a SearchPath,
    signer: Option<&'a Signer>,
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
        let (dir, config) = super::fleet_config()?;
        let selection = Selection::new(&self.hosts, std::env::var("NAME").ok().as_deref(), &config)?;
        let signer = self.signer(&config)?;
        let here = std::env::current_dir().context("cannot tell the working directory")?;
        let search_path = SearchPath::new(&self.include, std::env::var("NIX_PATH").ok().as_deref(), &here)?;
        let evaluator = self.evaluator.open();
        let hub = Hub::new(&config.hub.directory);
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
        for broken in &fleet.broken {
            // with a selection, only what concerns it
            if broken.name.as_ref().map_or(selection.is_all(), |name| selection.includes(name)) {
                say(Line::failed(broken.name.as_ref(), &broken.dir, &broken.error, Instant::now()));
            }
        }
        for host in fleet.selected(&selection) {
            let start = Instant::now();
            let work = Work {
                config: &config,
                hub: &hub,
                evaluator: evaluator.as_ref(),
                search_path: &search_path,
                signer: signer.as_ref(),
            };
            say(match self.deploy(&work, host) {
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
        }
        if !self.dry_run && selection.is_all() {
            record_fleet(&hub, &fleet)?;
        }
        if self.json {
            super::print_json(&lines)?;
        }
        let failed = lines.iter().any(|line| line.error.is_some());
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Who signs, if anybody.
    fn signer(&self, config: &Config) -> Result<Option<Signer>> {
        let key = self.signing_key.as_ref().or(config.release.signing_key.as_ref());
        let agent = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from);
        let signer = key.map(|key| Signer::open(key, agent.as_deref())).transpose()?;
        if signer.is_none() && !self.dry_run {
            eprintln!(
                "warning: the releases are not signed, so only hosts with unsigned-releases = true take them up: set \
                 SIGNING_KEY"
            );
        }
        Ok(signer)
    }

    /// Evaluates one host and publishes it.
    fn deploy(&self, work: &Work<'_>, host: &FleetHost) -> Result<Done> {
        let Work { config, hub, evaluator, search_path, signer } = work;
        let evaluation = evaluator
            .evaluate(&host.tree, &host.host, search_path)
            .map_err(|error| anyhow!(host.tree.original_names(&format!("{error:#}"))))?;
        let package = Package::of(&host.tree.path())?;
        let (toplevel, digest) = (evaluation.toplevel.clone(), package.digest());
        let now = Timestamp::now();
        let expires = self
            .valid_for
            .or(config.release.valid_for_days)
            .map(|days| now.checked_add(Span::new().hours(24 * i64::from(days))))
            .transpose()?;
        let candidate = Candidate {
            host: &host.host,
            tree: &host.tree,
            package,
            evaluation,
            search_path: match host.host.kind {
                HostKind::Flake => Vec::new(),
                HostKind::NonFlake => search_path.portable(),
            },
            mode: self.mode.unwrap_or_else(|| config.mode(&host.host.name)),
            substituters: config.release.substituters.clone(),
            trusted_public_keys: config.release.trusted_public_keys.clone(),
            expires,
        };
        let published = if self.dry_run {
            publish::plan(hub, &candidate, *signer, now)?
        } else {
            publish::publish(hub, &candidate, *signer, now)?
        };
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
