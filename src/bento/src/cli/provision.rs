//! `bento provision`: a machine that runs any Linux becomes a host of the fleet.

use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::check::{instantiate, look};
use super::deploy::{Releases, digest_key};
use super::fleet::FleetOptions;
use super::progress::Display;
use super::push::seconds;
use super::status::expected;
use crate::agent::secrets::Secrets;
use crate::build::{Builder, Job, succeed};
use crate::evaluation::{Evaluator, SearchPath};
use crate::fleet::config::{Config, HubConfig, TOML};
use crate::fleet::{Fleet, FleetHost, Selection};
use crate::host::{HostKind, HostName};
use crate::hub::Hub;
use crate::nix::{TOPLEVEL, flake_url};
use crate::provision::facts::Facts;
use crate::provision::installer::{self, Installer};
use crate::provision::journal::{Held, Phase};
use crate::provision::key::{self, HostKey};
use crate::provision::outline::{Layout, Outline};
use crate::provision::wipe::{self, Wipe};
use crate::push::Ending;
use crate::push::deliver::Delivered;
use crate::push::facts::Facts as Running;
use crate::push::lockout::{self, Access};
use crate::push::remote::{Remote, Unreachable};
use crate::push::target::{Destination, Target};
use crate::secrets::secrets_dir;
use crate::sign::{Signer, read_public_key};
use crate::status::{self, HostState};
use crate::store_path::StorePath;

/// How often is looked whether something has happened that is waited for.
const TICK: Duration = Duration::from_secs(2);
/// Where the agent keeps its state, by default and on every host that is installed here.
const AGENT_STATE: &str = "var/lib/bento";

/// Install a host on a machine that runs any Linux with kexec, or NixOS's installer
///
/// The machine is looked at first, and the host evaluated. The disks that will be erased are named, and have to be typed. The host's
/// key is made before there is a host, so its secrets come with it and the machine is known when it comes back. nixos-anywhere
/// installs. It is done when the machine has come back as the host, and its agent has reported to the hub. What is done is on
/// record: the same command again takes up what was interrupted.
#[derive(Args)]
pub(super) struct Provision {
    /// The host
    host: HostName,
    /// The machine, as ssh reaches it: [USER@]ADDRESS, or nixos://[USER@]ADDRESS:PORT
    #[arg(value_name = "ADDRESS")]
    destination: Target,
    /// Look at the machine, evaluate the host, and say what would be done; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Erase the disk with this serial (or, if it has none, this device) without asking; once for each disk
    #[arg(long, value_name = "SERIAL")]
    erase: Vec<String>,
    /// Forget what an earlier run did that was interrupted
    #[arg(long)]
    start_over: bool,
    /// Put the new key into the place of another one that the settings have for the host
    #[arg(long)]
    new_key: bool,
    /// Where the system is built: here, or on the machine itself, which is only for hosts of flakes
    #[arg(long, value_enum, default_value_t = Place::Here)]
    build_on: Place,
    /// The program nixos-anywhere
    #[arg(long, value_name = "PROGRAM", default_value = "nixos-anywhere")]
    nixos_anywhere: PathBuf,
    /// A directory of files that are put into the new system, as it is below /
    #[arg(long, value_name = "DIR")]
    extra_files: Option<PathBuf>,
    /// Where the machine is when it comes back, if that is elsewhere: [USER@]ADDRESS, or nixos://[USER@]ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    returns_at: Option<Target>,
    /// Within how long a phase has to end: `install=2h`; the phases that wait are kexec, disko, install, reboot, return and report
    #[arg(long, value_name = "PHASE=TIME", value_parser = timeout)]
    timeout: Vec<(Phase, u64)>,
    #[command(flatten)]
    fleet: FleetOptions,
    /// Print an object on a line for each event
    #[arg(long)]
    json: bool,
    /// More options for nixos-anywhere
    #[arg(last = true, value_name = "OPTION")]
    flags: Vec<String>,
}

/// Where systems are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Place {
    Here,
    Target,
}

/// A phase and its limit in seconds.
fn timeout(text: &str) -> Result<(Phase, u64)> {
    let (phase, time) = text.split_once('=').context("a limit is written like install=2h")?;
    let phase = Phase::from_str(phase, false).map_err(|error| anyhow!("there is no phase {phase}: {error}"))?;
    Ok((phase, seconds(time)?))
}

/// Something that happened, for `--json`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Happened<'a> {
    Phase { host: &'a HostName, phase: Phase, time: Timestamp },
    Note { host: &'a HostName, text: &'a str, time: Timestamp },
    Facts { host: &'a HostName, facts: &'a Facts, time: Timestamp },
    Line { host: &'a HostName, line: &'a str, time: Timestamp },
    Ended { host: &'a HostName, phase: Option<Phase>, error: Option<&'a str>, time: Timestamp },
}

/// Tells how far it is.
struct Voice<'a> {
    host: &'a HostName,
    display: Display,
    json: bool,
}

impl Voice<'_> {
    fn tell(&self, happened: &Happened<'_>) {
        if self.json
            && let Ok(line) = serde_json::to_string(happened)
        {
            // if nobody reads it, it is lost
            let _ = super::print(&(line + "\n"));
        }
    }

    fn phase(&self, phase: Phase) {
        self.tell(&Happened::Phase { host: self.host, phase, time: Timestamp::now() });
        self.display.say(&format!("{}: {}", self.host, phase.text()));
    }

    fn note(&self, text: &str) {
        self.tell(&Happened::Note { host: self.host, text, time: Timestamp::now() });
        self.display.say(&format!("{}: {text}", self.host));
    }

    fn line(&self, line: &str) {
        self.tell(&Happened::Line { host: self.host, line, time: Timestamp::now() });
        self.display.say(&format!("{}: | {line}", self.host));
    }

    fn facts(&self, facts: &Facts) {
        self.tell(&Happened::Facts { host: self.host, facts, time: Timestamp::now() });
        let firmware = format!("{:?}", facts.firmware).to_uppercase();
        self.note(&format!("{} runs {}, {}, {} MiB, {firmware}", facts.host, facts.os, facts.machine, facts.memory));
        for disk in &facts.disks {
            self.note(&format!("disk {}", disk.text()));
        }
    }
}

/// A host, as it was evaluated.
struct Plan {
    outline: Outline,
    layout: Layout,
    toplevel: StorePath,
    access: Access,
}

/// What machines are provisioned with.
struct Desk<'a> {
    options: &'a Provision,
    dir: &'a Path,
    evaluator: &'a dyn Evaluator,
    search_path: &'a SearchPath,
    host: &'a FleetHost,
    destination: Destination,
    ssh: Vec<String>,
    /// Whether the settings say that the host is pushed to.
    pushed: bool,
    /// Whether they name a hub.
    has_hub: bool,
    voice: Voice<'a>,
}

impl Provision {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let search_path = self.fleet.search_path()?;
        let evaluator = self.fleet.evaluator()?;
        let selection = Selection::of_names([self.host.clone()].into());
        let fleet = Fleet::discover(&dir, evaluator.as_ref(), &selection)?;
        if let Some(broken) = fleet.concerned(&selection).next() {
            bail!("{}: {:#}", broken.dir.display(), broken.error);
        }
        let host = fleet.selected(&selection).next().with_context(|| format!("the fleet has no host {}", self.host))?;
        if self.build_on == Place::Target && host.host.kind == HostKind::NonFlake {
            bail!(
                "{} is not a flake's host, so it can't be built on the machine: leave out --build-on target",
                self.host
            );
        }
        let mut destination = self.destination.destination.clone();
        destination.user.get_or_insert_with(|| "root".to_owned());
        let desk = Desk {
            options: &self,
            dir: &dir,
            evaluator: evaluator.as_ref(),
            search_path: &search_path,
            host,
            destination,
            ssh: std::env::var("NIX_SSHOPTS").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            pushed: config.hosts.get(&self.host).is_some_and(|host| host.push.is_some()),
            has_hub: config.hub.is_some(),
            voice: Voice { host: &self.host, display: Display::new(), json: self.json },
        };
        if self.dry_run {
            return desk.plan();
        }
        let (held, resumed) = Held::open(&self.host, &desk.destination, self.start_over)?;
        if resumed {
            let done: Vec<&str> = held.journal.done.iter().map(|done| done.phase.word()).collect();
            let done = if done.is_empty() { "nothing".to_owned() } else { done.join(", ") };
            desk.voice.note(&format!("taking up what was begun {}; done is: {done}", held.journal.started));
        }
        let installer =
            Installer::new(&self.nixos_anywhere, &self.flags, &desk.ssh, &held.dir.join("nixos-anywhere.log"))?;
        let key = HostKey::in_dir(&held.dir, &self.host)?;
        let mut journey = Journey { desk: &desk, config, held, installer, key, at: None };
        let gone = journey.go();
        let (at, time) = (journey.at, Timestamp::now());
        match gone {
            Ok(()) => {
                let destination = desk.returns_at(None);
                desk.voice
                    .note(&format!("done; its line in known_hosts: {}", journey.key.known_hosts_line(&destination)));
                journey.held.forget()?;
                desk.voice.tell(&Happened::Ended { host: &self.host, phase: None, error: None, time });
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                let text = format!("{error:#}");
                desk.voice.tell(&Happened::Ended { host: &self.host, phase: at, error: Some(&text), time });
                let phase = at.map_or("before it began", Phase::text);
                bail!("{}: {phase}: {text}\nthe same command again goes on from there", self.host)
            }
        }
    }
}

impl Desk<'_> {
    fn limit(&self, phase: Phase) -> Duration {
        let given = self.options.timeout.iter().rev().find(|(of, _)| *of == phase).map(|(_, seconds)| *seconds);
        Duration::from_secs(given.unwrap_or_else(|| phase.limit()))
    }

    /// Looks at the machine.
    fn look(&self, destination: &Destination) -> Result<(Facts, Option<String>)> {
        let limit = self.limit(Phase::Look);
        let remote = Remote::connect(destination, &self.ssh, limit.min(Duration::from_secs(30)))?;
        Ok((Facts::ask(&remote, limit)?, remote.key.clone()))
    }

    /// Evaluates the host.
    fn evaluate(&self) -> Result<Plan> {
        let (evaluation, outline) = look(self.evaluator, &[self.host], self.search_path).pop().context("no host")?;
        let outline = outline?;
        if !outline.failed.is_empty() {
            bail!("conditions of the configuration do not hold: {}", outline.failed.join("; "));
        }
        for warning in &outline.warnings {
            self.voice.note(&format!("warning: {warning}"));
        }
        let toplevel = evaluation?.toplevel;
        let objections = outline.objections();
        if !objections.is_empty() {
            bail!("{}", objections.join("; "));
        }
        let layout = outline.layout.clone().context(
            "it has no layout of disks: import disko's module, and say in disko.devices.disk what is on them (`bento init --template \
             servers` has one)",
        )?;
        if !outline.has_output("diskoScript") {
            bail!("it has disko.devices, but no system.build.diskoScript: import disko's module");
        }
        let mut access = Err(anyhow!("the evaluation did not end"));
        let subject = self.host.subject();
        self.evaluator.inspect_fleet(&[subject], self.search_path, lockout::FUNCTION, &mut |_, json| {
            access = json.and_then(|json| Access::parse(&json));
        });
        Ok(Plan { outline, layout, toplevel, access: access.context("cannot tell who could log in")? })
    }

    /// Why the host and the machine do not fit; nothing if they do.
    fn objections(&self, plan: &Plan, facts: &Facts, key: Option<&str>) -> Vec<String> {
        let mut objections = facts.objections(true);
        objections.extend(plan.outline.misfit(facts.firmware).map(str::to_owned));
        let back = self.returns_at(Some(plan));
        let after = Running {
            host: self.options.host.to_string(),
            machine: facts.machine.clone(),
            user: back.user.unwrap_or_else(|| "root".to_owned()),
            root: true,
            boot: String::new(),
            running: None,
            booted: None,
            profile: None,
            reboot_needed: false,
            agent: plan.outline.agent,
            state: String::new(),
            failed_units: Vec::new(),
            port: back.port.or(Some(22)),
            interface: None,
            // the disk that they are on is erased
            own_keys: Vec::new(),
            tools: Vec::new(),
            free: None,
        };
        objections.extend(plan.access.objections(&after, key));
        if !plan.outline.agent && !self.pushed {
            objections.push(format!(
                "it has neither bento's agent nor hosts.{}.push in the settings, so nothing would reach it any more: put push = \"{}\" there",
                self.options.host,
                Target { destination: self.returns_at(Some(plan)), config: None }
            ));
        }
        if plan.outline.agent && !self.has_hub {
            objections.push(format!(
                "it has bento's agent, which asks a hub for its system, but the fleet's settings name none: hub.directory does, in a {TOML}"
            ));
        }
        if let Some(identity) =
            plan.outline.identity.as_deref().filter(|identity| *identity != format!("/{}", key::PLACE))
        {
            objections.push(format!(
                "its agent logs in with {identity} (services.bento.agent.identityFile), but the key that is made for it is /{}",
                key::PLACE
            ));
        }
        objections
    }

    /// Where the machine is when it is the host.
    fn returns_at(&self, plan: Option<&Plan>) -> Destination {
        if let Some(target) = &self.options.returns_at {
            let mut destination = target.destination.clone();
            destination.user.get_or_insert_with(|| "root".to_owned());
            return destination;
        }
        let ports = plan.map_or(&[][..], |plan| &plan.outline.ports);
        let before = self.destination.port;
        let port = match ports.first() {
            Some(first) if !ports.contains(&before.unwrap_or(22)) => Some(*first),
            _ => before,
        };
        Destination { user: Some("root".to_owned()), port, ..self.destination.clone() }
    }

    /// What is handed to nixos-anywhere to be installed.
    fn system(&self, toplevel: &StorePath, script: Option<&StorePath>) -> Result<Vec<String>> {
        Ok(match script {
            Some(script) => vec!["--store-paths".to_owned(), script.to_string(), toplevel.to_string()],
            None => {
                let flake = format!("{}#{}", flake_url(&self.host.tree.path())?, self.options.host);
                ["--flake", &flake, "--build-on", "remote"].map(str::to_owned).to_vec()
            }
        })
    }

    /// `--dry-run`: says what would be done.
    fn plan(&self) -> Result<ExitCode> {
        self.voice.phase(Phase::Look);
        let (facts, key) = self.look(&self.destination)?;
        self.voice.facts(&facts);
        self.voice.phase(Phase::Check);
        let plan = self.evaluate()?;
        let mut objections = self.objections(&plan, &facts, key.as_deref());
        let wipes = match wipe::find(&plan.layout, &facts) {
            Ok(wipes) => wipes,
            Err(error) => {
                objections.push(format!("{error:#}"));
                Vec::new()
            }
        };
        for wipe in &wipes {
            self.voice.note(&format!("would erase {}", wipe.text()));
        }
        self.voice.note(&format!("would install {}", plan.toplevel));
        let installer =
            Installer::new(&self.options.nixos_anywhere, &self.options.flags, &self.ssh, Path::new("/dev/null"))?;
        let system = match self.options.build_on {
            Place::Here => ["--store-paths", "DISKO-SCRIPT", plan.toplevel.as_str()].map(str::to_owned).to_vec(),
            Place::Target => self.system(&plan.toplevel, None)?,
        };
        for phase in [Phase::Kexec, Phase::Disko, Phase::Install, Phase::Reboot] {
            if phase == Phase::Kexec && facts.installer {
                continue;
            }
            let extra = (phase == Phase::Install).then_some(Path::new("EXTRA-FILES"));
            let command = installer.command(phase, &system, extra, &self.destination);
            self.voice.note(&format!("would run, for at most {} s: {}", self.limit(phase).as_secs(), shown(&command)));
        }
        let wait = if plan.outline.agent { "and its agent has reported to the hub" } else { "and runs the system" };
        self.voice.note(&format!("would be done when it has come back as {} {wait}", self.returns_at(Some(&plan))));
        for objection in &objections {
            self.voice.note(&format!("in the way: {objection}"));
        }
        Ok(if objections.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A command, as somebody could type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// A machine on its way to becoming a host.
struct Journey<'a> {
    desk: &'a Desk<'a>,
    config: Config,
    held: Held,
    installer: Installer,
    key: HostKey,
    /// The phase that is at work.
    at: Option<Phase>,
}

impl Journey<'_> {
    fn begin(&mut self, phase: Phase) {
        self.at = Some(phase);
        self.desk.voice.phase(phase);
    }

    /// Does what is not done yet.
    fn go(&mut self) -> Result<()> {
        let desk = self.desk;
        if !self.held.is_done(Phase::Reboot) {
            if self.held.is_done(Phase::Install) && self.has_come_back()? {
                desk.voice.note("it has restarted already");
                self.held.did(Phase::Reboot)?;
            } else {
                self.prepare_and_install()?;
            }
        }
        let plan = desk.evaluate()?;
        let facts = self.wait_for_return(&plan)?;
        self.wait_for_report(&plan, facts)
    }

    /// Everything up to the restart.
    fn prepare_and_install(&mut self) -> Result<()> {
        let desk = self.desk;
        self.begin(Phase::Look);
        let place = self.place();
        // what was begun earlier may have the machine restart just now
        let patience = if self.held.is_done(Phase::Publish) { desk.limit(Phase::Look) } else { Duration::ZERO };
        let (facts, login) = patiently(patience, || {
            desk.look(&place).or_else(|error| match place == desk.destination {
                true => Err(error),
                // it may have been switched off and on since
                false => desk.look(&desk.destination),
            })
        })?;
        desk.voice.facts(&facts);
        if facts.installer && !self.held.is_done(Phase::Kexec) {
            desk.voice.note("NixOS's installer runs there already");
            self.held.journal.installer = Some(Destination { user: Some("root".to_owned()), ..place });
            self.held.did(Phase::Kexec)?;
        } else if !facts.installer && self.held.is_done(Phase::Kexec) {
            desk.voice.note("the installer does not run any more: it is started again");
            self.held.journal.installer = None;
            self.held.undo(&[Phase::Kexec, Phase::Disko, Phase::Install])?;
        }
        if self.held.is_done(Phase::Disko) && !facts.mounted {
            self.held.undo(&[Phase::Disko, Phase::Install])?;
        }
        self.held.did(Phase::Look)?;

        self.begin(Phase::Check);
        let plan = desk.evaluate()?;
        let objections = desk.objections(&plan, &facts, login.as_deref());
        if !objections.is_empty() {
            bail!("{}", objections.join("; "));
        }
        let wipes = wipe::find(&plan.layout, &facts)?;
        if self.held.journal.toplevel.as_ref() != Some(&plan.toplevel) {
            self.held.journal.toplevel = Some(plan.toplevel.clone());
            self.held.undo(&[Phase::Build, Phase::Publish, Phase::Install])?;
        }
        self.held.did(Phase::Check)?;

        self.begin(Phase::Consent);
        self.have_named(&wipes)?;
        if !self.held.is_done(Phase::Key) {
            self.begin(Phase::Key);
            key::record(desk.dir, &desk.options.host, &self.key.public, desk.options.new_key)?;
            self.held.did(Phase::Key)?;
        }
        desk.voice.note(&format!("the host's key is {}", self.key.public));
        // the key is in there now
        self.config = Config::read(desk.dir)?;
        if !self.held.is_done(Phase::Build) {
            self.begin(Phase::Build);
            self.build(&plan)?;
            self.held.did(Phase::Build)?;
        }
        if !self.held.is_done(Phase::Publish) {
            self.begin(Phase::Publish);
            self.publish(&plan)?;
            self.held.did(Phase::Publish)?;
        }
        if !self.held.is_done(Phase::Kexec) {
            self.begin(Phase::Kexec);
            self.start_installer(&plan)?;
            self.held.did(Phase::Kexec)?;
        }
        let place = self.held.journal.installer.clone().context("the installer's place is not known")?;
        if !self.held.is_done(Phase::Disko) {
            self.begin(Phase::Disko);
            let (facts, _) = desk.look(&place)?;
            wipe::still(&self.held.journal.wipes, &plan.layout, &facts)?;
            self.run_alone(Phase::Disko, &plan, None, &place)?;
            if !desk.look(&place)?.0.mounted {
                bail!("the disks are laid out, but nothing is mounted at /mnt");
            }
            self.held.did(Phase::Disko)?;
        }
        if !self.held.is_done(Phase::Install) {
            self.begin(Phase::Install);
            let extra = self.extra_files(&plan)?;
            self.run_alone(Phase::Install, &plan, Some(&extra), &place)?;
            self.held.did(Phase::Install)?;
        }
        self.begin(Phase::Reboot);
        self.held.journal.boot = Some(desk.look(&place)?.0.boot);
        self.held.save()?;
        self.run(Phase::Reboot, &plan, None, &place)?;
        self.held.did(Phase::Reboot)
    }

    /// Has the disks named that are erased, those that were not yet.
    fn have_named(&mut self, wipes: &[Wipe]) -> Result<()> {
        let desk = self.desk;
        let known = |wipe: &Wipe| {
            let named = self.held.journal.wipes.iter().find(|named| named.name == wipe.name);
            named.is_some_and(|named| named.disk.is_same(&wipe.disk))
        };
        let left: Vec<Wipe> = wipes.iter().filter(|wipe| !known(wipe)).cloned().collect();
        for wipe in &left {
            desk.voice.note(&format!("all that is on this disk will be lost: {}", wipe.text()));
        }
        for wipe in wipe::unnamed(&left, &desk.options.erase) {
            if !std::io::stdin().is_terminal() {
                bail!(
                    "nobody has named the disk that will be erased: --erase {:?} does, for {}",
                    wipe.disk.word(),
                    wipe.text()
                );
            }
            let mut out = std::io::stderr().lock();
            write!(out, "Type {} to erase {}: ", wipe.disk.word(), wipe.disk.device)
                .and_then(|()| out.flush())
                .context("cannot ask")?;
            let mut answer = String::new();
            std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
            if answer.trim() != wipe.disk.word() {
                bail!("{:?} is not {}: nothing was erased", answer.trim(), wipe.disk.word());
            }
        }
        self.held.journal.wipes = wipes.to_vec();
        self.held.did(Phase::Consent)
    }

    /// Builds the system, and the script that lays out the disks, if that is done here.
    fn build(&mut self, plan: &Plan) -> Result<()> {
        let desk = self.desk;
        self.held.journal.disko_script = None;
        if desk.options.build_on == Place::Target {
            return Ok(());
        }
        let builder = Builder::new(&self.config.build.options).within(desk.limit(Phase::Build).as_secs());
        builder.check().context("--build-on target builds a flake's host on the machine")?;
        let mut built = Vec::new();
        for (attribute, name) in [(TOPLEVEL, "system"), ("config.system.build.diskoScript", "disko-script")] {
            let evaluation = instantiate(desk.evaluator, desk.host, desk.search_path, attribute)?;
            let job = Job { host: &desk.host.host, evaluation: &evaluation };
            let path = builder.build(&[job], &desk.voice.display).pop().context("the build was lost")??;
            builder.keep(&path, &self.held.dir.join("roots").join(name))?;
            built.push(path);
        }
        let script = built.pop().filter(|_| built.first() == Some(&plan.toplevel));
        self.held.journal.disko_script = Some(script.context("what was built is another system than was evaluated")?);
        Ok(())
    }

    /// The hub, if there is one: a host that is pushed to can do without.
    fn hub(&self) -> Option<Hub> {
        self.config.hub.as_ref().map(HubConfig::hub)
    }

    fn releases<'r>(
        &'r self,
        hub: Hub,
        signer: Option<&'r Signer>,
        key: Option<&'r ssh_key::PublicKey>,
    ) -> Releases<'r> {
        Releases { config: &self.config, hub, key, signer, mode: None, days: None }
    }

    /// Publishes what the host asks for when it is up.
    fn publish(&mut self, plan: &Plan) -> Result<()> {
        let desk = self.desk;
        let Some(hub) = self.hub() else {
            desk.voice.note("nothing is published: the fleet's settings name no hub");
            if desk.host.has_secrets()? {
                desk.voice.note("its secrets do not come along: they come with what is published");
            }
            return Ok(());
        };
        let signing_key = self.config.release.signing_key.clone();
        let signer = signing_key.as_deref().map(|key| Signer::open(key, super::ssh_agent().as_deref())).transpose()?;
        if signer.is_none() && plan.outline.agent {
            desk.voice.note("warning: the release is not signed (release.signing-key)");
        }
        let key = signing_key.as_deref().map(read_public_key).transpose()?.map(|(key, _)| key);
        let releases = self.releases(hub, signer.as_ref(), key.as_ref());
        let digest_key = digest_key([desk.host], true)?;
        let secrets = releases.secrets(desk.host, digest_key.as_ref())?;
        if !secrets.is_empty() && !plan.outline.agent {
            desk.voice.note("its secrets do not come along: it has no agent that could put them in place");
        }
        let evaluation = desk.evaluator.evaluate(&desk.host.tree, &desk.host.host, desk.search_path)?;
        let serial = releases.publish(&desk.host.host, &desk.host.tree, secrets, &evaluation, desk.search_path)?;
        desk.voice.note(&format!("published release {serial}"));
        self.held.journal.serial = Some(serial);
        Ok(())
    }

    /// Runs a phase of nixos-anywhere's.
    fn run(&self, phase: Phase, plan: &Plan, extra: Option<&Path>, destination: &Destination) -> Result<()> {
        let desk = self.desk;
        let system = desk.system(&plan.toplevel, self.held.journal.disko_script.as_ref())?;
        let command = self.installer.command(phase, &system, extra, destination);
        let voice = &desk.voice;
        self.installer.run(command, self.held.leash()?, desk.limit(phase), &|line| voice.line(line))
    }

    /// Runs a phase of nixos-anywhere's that works on the disks: only ever one of them, and nothing goes on there when it is interrupted.
    fn run_alone(&self, phase: Phase, plan: &Plan, extra: Option<&Path>, place: &Destination) -> Result<()> {
        self.end_what_is_left(plan, place)?;
        self.run(phase, plan, extra, place).inspect_err(|_| {
            // a machine that can't be reached now is told when it is
            if let Err(error) = self.end_what_is_left(plan, place) {
                self.desk.voice.note(&format!("warning: it may go on there for a while: {error:#}"));
            }
        })
    }

    /// Ends what an interrupted phase has left at work on the machine.
    fn end_what_is_left(&self, plan: &Plan, place: &Destination) -> Result<()> {
        let desk = self.desk;
        let limit = desk.limit(Phase::Look);
        let remote = Remote::connect(place, &desk.ssh, limit.min(Duration::from_secs(30)))?;
        let paths: Vec<&StorePath> = self.held.journal.disko_script.iter().chain([&plan.toplevel]).collect();
        if installer::end_on(&remote, &paths, limit)? {
            desk.voice.note("what was still at work there was ended");
        }
        Ok(())
    }

    /// Starts the installer, and waits for it.
    fn start_installer(&mut self, plan: &Plan) -> Result<()> {
        let desk = self.desk;
        let begin = Instant::now();
        self.run(Phase::Kexec, plan, None, &desk.destination)?;
        // nixos-anywhere looks for the installer there
        let port = desk
            .destination
            .port
            .map(|_| self.installer.value_of("--post-kexec-ssh-port").and_then(|port| port.parse().ok()).unwrap_or(22));
        let place = Destination { user: Some("root".to_owned()), port, ..desk.destination.clone() };
        let limit = desk.limit(Phase::Kexec);
        let facts = patiently(limit.saturating_sub(begin.elapsed()), || desk.look(&place))?.0;
        if !facts.installer {
            bail!("what runs there now is {}, and not NixOS's installer", facts.os);
        }
        self.held.journal.installer = Some(place);
        Ok(())
    }

    /// Lays out the files that come with the system: the host's key, its secrets, and what else was asked for.
    fn extra_files(&self, plan: &Plan) -> Result<PathBuf> {
        let desk = self.desk;
        let extra = self.held.dir.join("extra");
        crate::files::remove(&extra)?;
        // they get these modes on the host, too
        for (dir, mode) in
            [("", 0o755), ("etc", 0o755), ("etc/ssh", 0o755), ("var", 0o755), ("var/lib", 0o755), (AGENT_STATE, 0o700)]
        {
            let dir = extra.join(dir);
            let made =
                fs::create_dir_all(&dir).and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)));
            made.with_context(|| format!("cannot create {}", dir.display()))?;
        }
        if let Some(more) = &desk.options.extra_files {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg("--").arg(more.join(".")).arg(&extra);
            succeed(copy).with_context(|| format!("cannot copy {}", more.display()))?;
        }
        self.key.lay_out(&extra)?;
        if let Some(serial) = self.held.journal.serial.filter(|_| plan.outline.agent) {
            let dir = self.config.hub(desk.dir)?.host(&desk.options.host);
            let manifest =
                dir.kept_manifest(serial)?.with_context(|| format!("release {serial} is not on the hub any more"))?;
            let sealed = dir.path().join(secrets_dir(serial));
            Secrets::lay_out(&extra.join(AGENT_STATE), &manifest, &sealed, &plan.toplevel)?;
        }
        Ok(extra)
    }

    /// The options for ssh that believe the host's own key and no other.
    fn pinned(&self) -> Result<Vec<String>> {
        let mut options = self.key.pin(&self.held.dir.join("known_hosts"), &self.desk.options.host)?;
        options.extend(self.desk.ssh.iter().cloned());
        Ok(options)
    }

    /// Where the machine is reached before it is the host.
    fn place(&self) -> Destination {
        self.held.journal.installer.clone().unwrap_or_else(|| self.desk.destination.clone())
    }

    /// Whether the machine is the host now, and not the installer any more: it may be about to restart.
    fn has_come_back(&self) -> Result<bool> {
        let desk = self.desk;
        let destination = desk.returns_at(Some(&desk.evaluate()?));
        let (options, place) = (self.pinned()?, self.place());
        patiently(desk.limit(Phase::Look), || match Remote::connect(&destination, &options, Duration::from_secs(20)) {
            Ok(_) => Ok(true),
            Err(_) => desk.look(&place).map(|_| false),
        })
    }

    /// Waits until the machine is up as the host: known by its key, in another boot, with the system that was installed.
    fn wait_for_return(&mut self, plan: &Plan) -> Result<Running> {
        let desk = self.desk;
        self.begin(Phase::Return);
        let wanted = self.held.journal.toplevel.clone().context("it is not known what was installed")?;
        let destination = desk.returns_at(Some(plan));
        let options = self.pinned()?;
        let limit = desk.limit(Phase::Return);
        let facts = patiently(limit, || {
            let remote = Remote::connect(&destination, &options, Duration::from_secs(20).min(limit))?;
            let facts = Running::ask(&remote, limit)?;
            match self.held.journal.boot.as_ref() == Some(&facts.boot) {
                true => Err(Error::from(Unreachable {
                    hop: destination.to_string(),
                    reason: "it has not restarted yet".to_owned(),
                    hint: None,
                })),
                false => Ok((facts, remote)),
            }
        });
        let (facts, remote) = facts.context("it did not come back as the host")?;
        if facts.running.as_ref() != Some(&wanted) {
            let running = facts.running.as_ref().map_or("something else", StorePath::as_str);
            bail!("it has come back, but runs {running} and not {wanted}");
        }
        if !facts.failed_units.is_empty() {
            desk.voice.note(&format!("warning: units have failed: {}", facts.failed_units.join(", ")));
        }
        if plan.outline.agent {
            // it would ask the hub by itself, a while later
            let asked = remote.run("systemctl start --no-block bento-upgrade.service", Duration::from_secs(30));
            if let Err(error) = asked {
                desk.voice.note(&format!("its agent can't be started now ({error:#}), but will start by itself"));
            }
        }
        self.held.did(Phase::Return)?;
        Ok(facts)
    }

    /// Waits until the host has reported to the hub; where there is no agent, whoever provisions does it.
    fn wait_for_report(&mut self, plan: &Plan, facts: Running) -> Result<()> {
        let desk = self.desk;
        self.begin(Phase::Report);
        let name = &desk.options.host;
        let wanted = self.held.journal.toplevel.clone().context("it is not known what was installed")?;
        let Some(hub) = self.hub().filter(|_| plan.outline.agent || self.held.journal.serial.is_some()) else {
            desk.voice.note("this is not recorded, as nothing was published: `bento status` does not know of it");
            return self.held.did(Phase::Report);
        };
        let serial = self.held.journal.serial.context("it is not known what was published")?;
        let since = self.held.time_of(Phase::Reboot).context("it is not known when it was restarted")?;
        let releases = self.releases(hub, None, None);
        if !plan.outline.agent {
            let ending = Ending::Pushed { toplevel: wanted.clone(), reboot_needed: facts.reboot_needed };
            let delivered = Delivered { ending, toplevel: wanted, previous: None, facts: Some(facts) };
            releases.report(&desk.host.host, serial, self.held.journal.started, &delivered)?;
            return self.held.did(Phase::Report);
        }
        let expected = expected(&self.config)?;
        let deadline = Instant::now() + desk.limit(Phase::Report);
        loop {
            let (status, _) = status::one(&releases.hub, name, &expected, Timestamp::now());
            let fresh = status.filter(|status| status.seen.is_some_and(|seen| seen >= since));
            if let Some(status) = &fresh {
                let reason = status.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
                match status.state {
                    HostState::UpToDate | HostState::ExtraLogs | HostState::AutoUpgraded | HostState::RebootNeeded => {
                        return self.held.did(Phase::Report);
                    }
                    HostState::Failing | HostState::Rollbacked | HostState::ForgedReport | HostState::CorruptReport => {
                        bail!("its agent says {}{reason}", status.state.words())
                    }
                    _ => {}
                }
            }
            if Instant::now() >= deadline {
                let state = fresh.map_or("nothing".to_owned(), |status| format!("{:?}", status.state.words()));
                bail!(
                    "the machine is up, but its agent did not report within {} s (it says {state}): `journalctl -u bento-upgrade` there tells \
                     why; does the hub let {name} in with its new key?",
                    desk.limit(Phase::Report).as_secs()
                );
            }
            std::thread::sleep(TICK);
        }
    }
}

/// Tries to reach a machine until it can be, or the time is over.
fn patiently<T>(limit: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Err(error) if error.downcast_ref::<Unreachable>().is_some() => {
                if limit.is_zero() {
                    return Err(error);
                }
                if Instant::now() >= deadline {
                    return Err(error.context(format!("it was not there within {} s", limit.as_secs())));
                }
                std::thread::sleep(TICK);
            }
            done => return done,
        }
    }
}
