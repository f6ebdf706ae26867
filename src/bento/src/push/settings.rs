//! How systems are pushed: the table `[push]` of the fleet's settings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::push::root::Escalation;
use crate::push::target::Target;

/// The table `[push]`. All times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PushConfig {
    /// Where systems are built.
    pub build_on: BuildOn,
    /// How many machines are pushed to at a time.
    pub parallel: usize,
    /// How root is become there.
    pub escalation: Escalation,
    /// For how long a connection may take.
    pub connect_timeout: u64,
    /// For how long a machine may take to say how it is, its start included.
    pub health_timeout: u64,
    /// For how long a build may take.
    pub build_timeout: u64,
    /// For how long copying may take.
    pub copy_timeout: u64,
    /// For how long a system's own check may take.
    pub check_timeout: u64,
    /// For how long an activation may take.
    pub activation_timeout: u64,
    /// For how long units may take to fail after the activation.
    pub settle: u64,
    /// Within how long a new connection has to confirm.
    pub confirm_timeout: u64,
    /// The program of a system that says whether it may be activated, relative to the system.
    pub pre_activate_script: String,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            build_on: BuildOn::Auto,
            parallel: 10,
            escalation: Escalation::Auto,
            connect_timeout: 20,
            health_timeout: 90,
            build_timeout: 3600,
            copy_timeout: 1800,
            check_timeout: 60,
            activation_timeout: 300,
            settle: 3,
            confirm_timeout: 60,
            pre_activate_script: "pre-activate-safety-checks".to_owned(),
        }
    }
}

impl PushConfig {
    /// For how long a trial may take until it is decided, the way back included.
    pub fn trial(&self) -> Duration {
        Duration::from_secs(3 * self.activation_timeout + self.settle + self.confirm_timeout + 120)
    }
}

/// Where a system is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BuildOn {
    /// Here if this machine has Nix and a processor of the same kind; else on the target.
    #[default]
    Auto,
    /// On this machine, whence it is copied.
    Here,
    /// On the machine that it is for.
    Target,
    /// On another machine, whence it is copied.
    Builder(Target),
}

impl std::str::FromStr for BuildOn {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "here" => Self::Here,
            "target" => Self::Target,
            host => Self::Builder(host.parse()?),
        })
    }
}

impl TryFrom<String> for BuildOn {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
}

impl From<BuildOn> for String {
    fn from(place: BuildOn) -> Self {
        match place {
            BuildOn::Auto => "auto".to_owned(),
            BuildOn::Here => "here".to_owned(),
            BuildOn::Target => "target".to_owned(),
            BuildOn::Builder(target) => target.destination.to_string(),
        }
    }
}
