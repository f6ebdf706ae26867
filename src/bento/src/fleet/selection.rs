//! A selection: which hosts a command is about, as people write it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use glob::Pattern;

use crate::fleet::config::Config;
use crate::host::HostName;

/// Which hosts a command is about.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Any of these; all hosts if there are none.
    selectors: Vec<Selector>,
    shard: Option<Shard>,
}

/// One word of a selection.
#[derive(Clone, Debug)]
enum Selector {
    /// Exactly this host.
    Name(HostName),
    /// The hosts whose names match.
    Glob(Pattern),
    /// The hosts with this tag in the settings.
    Tag { tag: String, hosts: BTreeSet<HostName> },
}

impl Selector {
    fn includes(&self, name: &HostName) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Glob(pattern) => pattern.matches(name.as_str()),
            Self::Tag { hosts, .. } => hosts.contains(name),
        }
    }
}

/// One of several parts of a fleet. Which part a host belongs to depends on its name only, so parts are disjoint, and
/// stay the same while other hosts come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1 to `count`.
    number: u32,
    count: u32,
}

impl std::str::FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((number, count)) if (1..=count).contains(&number) => Ok(Self { number, count }),
            _ => bail!("{text:?} is no part of a fleet: 2/5 is the second of five"),
        }
    }
}

impl Shard {
    fn includes(self, name: &HostName) -> bool {
        let hash = blake3::hash(name.as_str().as_bytes());
        let number = hash.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        number % u64::from(self.count) == u64::from(self.number - 1)
    }
}

impl Selection {
    /// From a command's arguments, or else from the environment's `NAME` (words between white space): exact names, globs
    /// (`web*`), and `@TAG` for a tag that the settings give to hosts.
    pub fn new(arguments: &[String], name: Option<&str>, config: &Config) -> Result<Self> {
        let selectors = if arguments.is_empty() {
            let words = name.unwrap_or_default().split_whitespace();
            words.map(|word| selector(word, config)).collect::<Result<_>>().context("the environment variable NAME")?
        } else {
            arguments.iter().map(|word| selector(word, config)).collect::<Result<_>>()?
        };
        Ok(Self { selectors, shard: None })
    }

    /// Exactly these hosts.
    pub fn of_names(names: Vec<HostName>) -> Self {
        Self { selectors: names.into_iter().map(Selector::Name).collect(), shard: None }
    }

    /// The hosts of this selection that belong to one part of the fleet.
    pub fn in_shard(self, shard: Option<Shard>) -> Self {
        Self { shard, ..self }
    }

    /// Whether every host is meant.
    pub fn is_all(&self) -> bool {
        self.selectors.is_empty() && self.shard.is_none()
    }

    /// Whether somebody has said which hosts are meant.
    pub fn is_said(&self) -> bool {
        !self.selectors.is_empty()
    }

    /// Whether a host is meant.
    pub fn includes(&self, name: &HostName) -> bool {
        (self.selectors.is_empty() || self.selectors.iter().any(|selector| selector.includes(name)))
            && self.shard.is_none_or(|shard| shard.includes(name))
    }

    /// The first of what was asked for that is none of `names`, in words; nothing if all of it is there.
    pub fn missing<'a>(&self, names: impl Iterator<Item = &'a HostName> + Clone) -> Option<String> {
        let missing = self.selectors.iter().find(|selector| !names.clone().any(|name| selector.includes(name)));
        missing.map(|selector| match selector {
            Selector::Name(name) => format!("no host {name}"),
            Selector::Glob(pattern) => format!("no host whose name matches {pattern}"),
            Selector::Tag { tag, .. } => format!("none of the hosts that have the tag {tag}"),
        })
    }
}

/// Reads one word of a selection.
fn selector(word: &str, config: &Config) -> Result<Selector> {
    if let Some(tag) = word.strip_prefix('@') {
        let hosts = config
            .tagged(tag)
            .with_context(|| format!("no host has the tag {tag:?}: tags are in bento.toml, as hosts.NAME.tags"))?;
        return Ok(Selector::Tag { tag: tag.to_owned(), hosts });
    }
    if word.contains(['*', '?', '[']) {
        let pattern = Pattern::new(word).with_context(|| format!("{word:?} is no pattern for host names"))?;
        return Ok(Selector::Glob(pattern));
    }
    Ok(Selector::Name(HostName::new(word)?))
}
