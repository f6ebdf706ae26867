//! The agent's configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::host::HostName;
use crate::sign::SigningKey;
use crate::ssh::HubAddress;

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
    /// How to make sure that the hub can still be reached.
    #[serde(default)]
    pub confirm: ConfirmConfig,
    /// What is acted on.
    #[serde(default)]
    pub system: SystemConfig,
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
}

/// The table `[confirm]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ConfirmConfig {
    /// How many times the hub is tried before it counts as out of reach.
    pub tries: u32,
    /// Seconds between two tries.
    pub pause: u64,
}

impl Default for ConfirmConfig {
    fn default() -> Self {
        Self { tries: 6, pause: 5 }
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
}

impl AgentConfig {
    /// Reads a configuration file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the agent's configuration {}", file.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| file.display().to_string())?;
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
        Ok(config)
    }
}
