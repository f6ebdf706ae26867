//! A host: one machine of the fleet, by name.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of a host.
///
/// It is the hub's system user and a path component of the hub, so it is `[a-zA-Z0-9][a-zA-Z0-9._-]*`, at most 64
/// characters: it can be neither `..` nor hidden nor an option of a command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// A name that no host can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidHostName(String);

impl fmt::Display for InvalidHostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no host name: a name begins with a letter or digit, goes on with letters, digits, '.', '_' or \
             '-', and has at most 64 characters, because it is also a system user and a directory on the hub",
            self.0
        )
    }
}

impl std::error::Error for InvalidHostName {}

impl HostName {
    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidHostName> {
        let name = name.into();
        let sound = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if sound { Ok(Self(name)) } else { Err(InvalidHostName(name)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for HostName {
    type Error = InvalidHostName;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl std::str::FromStr for HostName {
    type Err = InvalidHostName;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

/// How a host's system is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// `nixosConfigurations.NAME` of a `flake.nix`: every machine that evaluates it arrives at the same system.
    Flake,
    /// A `configuration.nix` on whatever `<nixpkgs>` is: what the hub works out need not be what the host builds.
    NonFlake,
}

/// A host and how its system is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The directory's name for a non-flake, the key in `nixosConfigurations` for a flake.
    pub name: HostName,
    /// Flake or not.
    pub kind: HostKind,
}
