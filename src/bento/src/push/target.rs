//! Where a system is pushed to, as people write it: `HOST`, `USER@HOST`, or `nixos://[USER@]HOST[:PORT][/CONFIGURATION]`.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::host::HostName;

/// What a URL of a target begins with.
const SCHEME: &str = "nixos://";

/// A machine, as ssh reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Who logs in, if not whom ssh's own configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its name or address, or a `Host` of ssh's configuration.
    pub host: String,
    /// Its port, if not the one that ssh's own configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A machine, and which of the fleet's configurations it shall run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// The machine.
    pub destination: Destination,
    /// The name of the configuration; if there is none, the one of the name that the machine gives itself.
    pub config: Option<HostName>,
}

impl Target {
    /// The target of that name: the machine is reached under it, and runs the configuration of it.
    pub fn named(name: &HostName) -> Self {
        let destination = Destination { user: None, host: name.as_str().to_owned(), port: None };
        Self { destination, config: Some(name.clone()) }
    }

    /// Whether a word can be nothing but a target: a URL, or `USER@HOST`.
    pub fn is_meant(word: &str) -> bool {
        word.contains("://") || word.find('@').is_some_and(|at| at > 0)
    }

    /// What it is called in messages.
    pub fn label(&self) -> String {
        match &self.config {
            Some(config) if config.as_str() != self.destination.host => format!("{}/{config}", self.destination.host),
            _ => self.destination.host.clone(),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| format!("{text:?} is no target: nixos://[USER@]HOST[:PORT][/CONFIGURATION] is"))
    }
}

impl TryFrom<String> for Target {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.destination)?;
        match &self.config {
            Some(config) => write!(f, "/{config}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        if self.host.contains(':') { write!(f, "[{}]", self.host) } else { write!(f, "{}", self.host) }?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

fn parse(text: &str) -> Result<Target> {
    let (rest, url) = match text.split_once("://") {
        Some(("nixos", rest)) => (rest, true),
        Some((scheme, _)) => bail!("{scheme}:// is not nixos://"),
        None => (text, false),
    };
    let (address, config) = match rest.split_once('/') {
        Some((address, config)) if url => (address, Some(config).filter(|config| !config.is_empty())),
        Some(_) => bail!("a configuration can only follow in a URL"),
        None => (rest, None),
    };
    let (user, place) = match address.rsplit_once('@') {
        Some((user, place)) => (Some(word("user", user)?), place),
        None => (None, address),
    };
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').context("the bracket is not closed")?;
            let (address, zone) = host.split_once('%').map_or((host, None), |(address, zone)| (address, Some(zone)));
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                bail!("{host:?} is no address of IPv6");
            }
            if let Some(zone) = zone {
                word("network interface", zone)?;
            }
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').context("no port follows")?) };
            (host.to_owned(), port)
        }
        None => match place.split_once(':') {
            Some((host, port)) => (word("host", host)?, Some(port)),
            None => (word("host", place)?, None),
        },
    };
    let port = match port {
        Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port > 0).context("a port is from 1 to 65535")?),
        None => None,
    };
    let config = config.map(HostName::new).transpose()?;
    Ok(Target { destination: Destination { user, host, port }, config })
}

/// A word that ssh takes for what it is, and a shell too.
fn word(what: &str, text: &str) -> Result<String> {
    let sound = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-%+".contains(c));
    if sound { Ok(text.to_owned()) } else { bail!("{text:?} is no {what}") }
}
