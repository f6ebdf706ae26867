//! The agent's configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::civil::Time;
use serde::Deserialize;

use crate::evaluation::EvaluatorChoice;
use crate::host::HostName;
use crate::sign::SigningKey;
use crate::ssh::HubAddress;
use crate::store_path::StorePath;

/// What `agent.toml` says. Unknown keys are errors.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AgentConfig {
    /// This host's name in the fleet.
    pub host: HostName,
    /// Where the agent keeps its state, fetched releases and reports that are not delivered yet.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// The keys of those who may sign releases.
    #[serde(default)]
    pub signers: Vec<SigningKey>,
    /// Take up releases that nobody signed: whoever has the hub then has this host.
    #[serde(default)]
    pub unsigned_releases: bool,
    /// Seconds within which one poll follows another, so that the hub can tell a host that went silent.
    pub interval: Option<u64>,
    /// The hub.
    pub hub: HubAddress,
    /// How to build.
    #[serde(default)]
    pub nix: NixConfig,
    /// What a machine must have before a system is tried out on it.
    #[serde(default)]
    pub before: BeforeConfig,
    /// What a system on trial has to show.
    #[serde(default)]
    pub confirm: ConfirmConfig,
    /// When to restart the machine for a system with another kernel.
    #[serde(default)]
    pub reboot: RebootConfig,
    /// Who is told on the spot what came of an attempt.
    #[serde(default)]
    pub notify: NotifyConfig,
    /// The page for the user at the machine.
    #[serde(default)]
    pub page: PageConfig,
    /// What is acted on.
    #[serde(default)]
    pub system: SystemConfig,
    /// Where it was read from.
    #[serde(skip)]
    pub file: PathBuf,
    /// The file's text, for runs that must not depend on what the file says later.
    #[serde(skip)]
    pub text: String,
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("/var/lib/bento")
}

/// The table `[nix]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NixConfig {
    /// More options for `nix build` and `nix-build`.
    pub build_options: Vec<String>,
    /// Entries of the search path of non-flakes, after the release's; Nix's own (`NIX_PATH`) if there are none.
    pub search_path: Vec<String>,
    /// The directory of Nix's programs, if they are not in `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// Seconds that evaluating, building and fetching a system may take, each; a day, if not said.
    pub build_timeout: Option<u64>,
    /// Who evaluates what is built from source; Nix, if not said.
    pub evaluator: Option<EvaluatorChoice>,
}

/// The table `[before]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct BeforeConfig {
    /// MiB that must be free where the state, the store and the boot entries are.
    pub free: u64,
    /// A program in the new system, by its path there, that must end with status 0 before it is tried out. Where the system
    /// doesn't have it, nothing is asked.
    pub program: PathBuf,
    /// Seconds that it may take.
    pub timeout: u64,
}

impl Default for BeforeConfig {
    fn default() -> Self {
        Self { free: 16, program: PathBuf::from("pre-activate-safety-checks"), timeout: 300 }
    }
}

impl NixConfig {
    /// How long evaluating, building and fetching a system may take, each: one that never ends would keep all later releases away.
    pub fn limit(&self) -> Duration {
        const DAY: u64 = 24 * 3600;
        Duration::from_secs(self.build_timeout.unwrap_or(DAY))
    }
}

/// What to do with a system on trial of which units fail that did not fail before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailedUnits {
    /// Go back.
    #[default]
    Refuse,
    /// Keep it, and say so.
    Accept,
}

/// Something that a system on trial has to show.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CheckConfig {
    /// What it is called in messages.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub probe: Probe,
    /// How many times it is tried.
    #[serde(default = "default_check_tries")]
    pub tries: u32,
    /// Seconds between two tries.
    #[serde(default = "default_check_pause")]
    pub pause: u64,
    /// Seconds that one try may take.
    #[serde(default = "default_check_timeout")]
    pub timeout: u64,
}

fn default_check_tries() -> u32 {
    3
}

fn default_check_pause() -> u64 {
    5
}

fn default_check_timeout() -> u64 {
    10
}

/// How a check is done.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A program, with its arguments, ends with status 0.
    Command(Vec<String>),
    /// A server answers an HTTP request for this URL (`http://HOST[:PORT]/PATH`) with a status from 200 to 399.
    Http(String),
    /// A server takes connections at `HOST:PORT`.
    Tcp(String),
}

/// The table `[reboot]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RebootConfig {
    /// When; what the release asks for, if not said.
    pub policy: Option<RebootPolicy>,
    /// For the policy `window`: from when to when, as `HH:MM-HH:MM` by the machine's clock; it may go past midnight.
    pub window: Option<Window>,
    /// Start the new kernel from the running one where that is possible.
    pub kexec: bool,
}

/// When a machine restarts for a system with another kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebootPolicy {
    /// When somebody restarts it.
    Never,
    /// At once.
    WhenNeeded,
    /// In the window.
    Window,
}

/// A part of each day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Window {
    from: Time,
    to: Time,
}

impl TryFrom<String> for Window {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let time = |text: &str| Time::strptime("%H:%M", text).ok();
        let (from, to) = text
            .split_once('-')
            .and_then(|(from, to)| Some((time(from)?, time(to)?)))
            .with_context(|| format!("the window {text:?} is not of the form \"22:00-06:00\""))?;
        Ok(Self { from, to })
    }
}

impl Window {
    /// Whether it is open at a time of the day.
    pub fn is_open(self, now: Time) -> bool {
        if self.from <= self.to { (self.from..self.to).contains(&now) } else { now >= self.from || now < self.to }
    }
}

/// The table `[notify]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct NotifyConfig {
    /// A program and its arguments, run when an attempt has ended. Its environment says how: `BENTO_HOST`, `BENTO_RELEASE`,
    /// `BENTO_OUTCOME`, `BENTO_REASON` and `BENTO_REBOOT_NEEDED` (`1` or empty).
    pub command: Vec<String>,
}

/// The table `[page]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PageConfig {
    /// The groups whose members may see the log: those who may read the journal.
    pub log_groups: Vec<String>,
    /// The unit that polls the hub.
    pub service: String,
}

impl Default for PageConfig {
    fn default() -> Self {
        let log_groups = ["wheel", "adm", "systemd-journal"].map(str::to_owned).into();
        Self { log_groups, service: "bento-upgrade.service".to_owned() }
    }
}

/// The table `[confirm]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ConfirmConfig {
    /// How many times the hub is tried before it counts as out of reach.
    pub tries: u32,
    /// Seconds between two tries.
    pub pause: u64,
    /// Seconds in which no unit may fail after the activation.
    pub settle: u64,
    /// What to make of units that fail.
    pub failed_units: FailedUnits,
    /// Further checks.
    pub checks: Vec<CheckConfig>,
    /// How many seconds longer the watchdog waits than all of it may take.
    pub margin: u64,
    /// The unit that starts the agent: if it is active before, it must be so after.
    pub timer: String,
}

impl Default for ConfirmConfig {
    fn default() -> Self {
        Self {
            tries: 6,
            pause: 5,
            settle: 10,
            failed_units: FailedUnits::default(),
            checks: Vec::new(),
            margin: 60,
            timer: "bento-upgrade.timer".to_owned(),
        }
    }
}

impl ConfirmConfig {
    /// The longest that it takes to try the hub out, if each connection may take `timeout` seconds.
    pub fn hub_seconds(&self, timeout: u64) -> u64 {
        // connecting, then asking for a file
        u64::from(self.tries.max(1)) * (self.pause + 4 * timeout)
    }

    /// The longest that the further checks take, in seconds.
    pub fn check_seconds(&self) -> u64 {
        self.checks.iter().map(|check| u64::from(check.tries.max(1)) * (check.pause + check.timeout)).sum()
    }
}

/// The table `[system]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct SystemConfig {
    /// What comes before the paths below where they are not given: for test hosts.
    pub root: PathBuf,
    /// The system profile.
    profile: Option<PathBuf>,
    /// The link to the system that runs.
    current_system: Option<PathBuf>,
    /// The link to the system that was booted.
    booted_system: Option<PathBuf>,
    /// Whether systemd runs activations and the watchdog. If not said, it does where it is the machine's and `root` is `/`.
    systemd: Option<bool>,
    /// Seconds that one activation may take.
    pub activation_timeout: u64,
    /// Environment variables for `switch-to-configuration`.
    pub environment: BTreeMap<String, String>,
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
            profile: None,
            current_system: None,
            booted_system: None,
            systemd: None,
            activation_timeout: 900,
            environment: BTreeMap::new(),
        }
    }
}

impl SystemConfig {
    /// The system profile.
    pub fn profile(&self) -> PathBuf {
        self.profile.clone().unwrap_or_else(|| self.root.join("nix/var/nix/profiles/system"))
    }

    /// The link to the system that runs.
    pub fn current_system(&self) -> PathBuf {
        self.current_system.clone().unwrap_or_else(|| self.root.join("run/current-system"))
    }

    /// The link to the system that was booted.
    pub fn booted_system(&self) -> PathBuf {
        self.booted_system.clone().unwrap_or_else(|| self.root.join("run/booted-system"))
    }

    /// Whether systemd runs activations and the watchdog.
    pub fn has_systemd(&self) -> bool {
        // where sd_booted(3) looks
        self.systemd.unwrap_or_else(|| self.root == Path::new("/") && Path::new("/run/systemd/system").is_dir())
    }
}

impl AgentConfig {
    /// Reads the configuration file that a system brings along, which has this one's place once it is activated.
    pub fn of_system(&self, toplevel: &StorePath) -> Result<Self> {
        Self::read(&toplevel.as_path().join(self.file.strip_prefix("/").unwrap_or(&self.file)))
    }

    /// Reads a configuration file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the agent's configuration {}", file.display()))?;
        let mut config: Self = toml::from_str(&text).with_context(|| file.display().to_string())?;
        if config.hub.host_keys.is_empty() {
            bail!("{}: host-keys is empty: pin at least one key of the hub", file.display());
        }
        match (config.signers.is_empty(), config.unsigned_releases) {
            (true, false) => bail!(
                "{}: signers is empty: pin the public key of whoever signs releases (`bento keys` shows it), or say \
                 unsigned-releases = true to trust whatever the hub serves",
                file.display()
            ),
            (false, true) => bail!("{}: unsigned-releases is set, but so is signers: choose one", file.display()),
            _ => {}
        }
        if !config.state_dir.is_absolute() || !config.system.root.is_absolute() {
            bail!("{}: state-dir and root must be absolute paths", file.display());
        }
        if config.reboot.policy == Some(RebootPolicy::Window) && config.reboot.window.is_none() {
            bail!("{}: the reboot policy is \"window\", but there is no window", file.display());
        }
        config.text = text;
        config.file = file.to_owned();
        Ok(config)
    }
}
