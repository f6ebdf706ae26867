//! The fleet's settings: `bento.toml`, the full form, or `config.sh`, the original bento's shell assignments, which are
//! read without being executed. A setting that is not known is an error in both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::host::HostName;
use crate::hub::Hub;
use crate::manifest::ReleaseMode;
use crate::push::settings::PushConfig;
use crate::push::target::Target;
use crate::rollout::RolloutConfig;
use crate::sign;

/// The full form's file.
pub const TOML: &str = "bento.toml";
/// The original bento's file.
pub const SHELL: &str = "config.sh";

/// The settings of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Where releases are published; a fleet that only pushes need have no such place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubConfig>,
    /// What is built before it is published.
    #[serde(default)]
    pub build: BuildConfig,
    /// What releases are like.
    #[serde(default)]
    pub release: ReleaseConfig,
    /// What `bento status` expects.
    #[serde(default)]
    pub status: StatusConfig,
    /// How systems are pushed.
    #[serde(default)]
    pub push: PushConfig,
    /// How changes are rolled out.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// What is special about some hosts, by name.
    #[serde(default)]
    pub hosts: BTreeMap<HostName, HostConfig>,
}

/// The table `[hub]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HubConfig {
    /// The directory that holds a directory per host, served by SFTP (`CHROOT_DIR`).
    pub directory: PathBuf,
    /// The hub's name or address as the hosts see it (`REMOTE_IP`).
    pub address: Option<String>,
    /// Its port (`REMOTE_PORT`).
    #[serde(default = "default_port")]
    pub port: u16,
    /// Seconds that a connection to it may take (`TIMEOUT`).
    #[serde(default = "default_timeout")]
    pub timeout: u64,
    /// A directory with a file `NAME.pub` for each host, which has its public keys, one on a line (`HOST_KEYS`).
    pub keys: Option<PathBuf>,
}

impl HubConfig {
    /// The hub itself.
    pub fn hub(&self) -> Hub {
        Hub::new(&self.directory)
    }
}

fn default_port() -> u16 {
    22
}

fn default_timeout() -> u64 {
    20
}

/// The table `[build]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct BuildConfig {
    /// Whether `bento deploy` builds a system before it publishes it (not so with `NOLOCALBUILD`).
    pub local: bool,
    /// More options for Nix.
    pub options: Vec<String>,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self { local: true, options: Vec::new() }
    }
}

/// The table `[release]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ReleaseConfig {
    /// The administrator's key: a private key's file, or the public key's of one that the ssh agent holds
    /// (`SIGNING_KEY`).
    pub signing_key: Option<PathBuf>,
    /// How hosts get their systems.
    pub mode: ReleaseMode,
    /// Days for which hosts accept a release.
    pub valid_for_days: Option<u16>,
    /// URLs of binary caches that hosts use besides their own.
    pub substituters: Vec<String>,
    /// The keys that these caches sign with.
    pub trusted_public_keys: Vec<String>,
}

/// The table `[status]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct StatusConfig {
    /// Minutes between two polls of a host that does not say how often it polls.
    pub interval_minutes: u32,
}

impl Default for StatusConfig {
    fn default() -> Self {
        Self { interval_minutes: 15 }
    }
}

impl StatusConfig {
    /// Seconds between two polls of a host that does not say how often it polls.
    pub fn interval_seconds(&self) -> u64 {
        u64::from(self.interval_minutes) * 60
    }
}

/// A table `[hosts.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct HostConfig {
    /// Words by which several hosts are selected, as `@TAG`.
    pub tags: BTreeSet<String>,
    /// The host's public SSH keys, as in `ssh_host_ed25519_key.pub`.
    pub keys: Vec<String>,
    /// How this host gets its system, if not as the others.
    pub mode: Option<ReleaseMode>,
    /// Whether this host's system is built before it is published, if not as the others'.
    pub build: Option<bool>,
    /// Where this host is pushed to; if nothing is said, it pulls.
    pub push: Option<Target>,
}

impl Config {
    /// Reads the settings of the fleet in a directory, from whichever file it has, with the hosts' keys that lie in files. A fleet
    /// with no such file has no hub, and everything else as it is if nothing is said.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut config = Self::read_file(dir)?;
        let Some(keys) = config.key_dir() else { return Ok(config) };
        let context = || format!("cannot read the directory of the hosts' keys {}", keys.display());
        for entry in std::fs::read_dir(&keys).with_context(context)? {
            let file = entry.with_context(context)?.path();
            if file.extension().is_some_and(|extension| extension == "pub") {
                let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                let host = HostName::new(name).with_context(|| file.display().to_string())?;
                config.add_keys(&host, &file)?;
            }
        }
        Ok(config)
    }

    /// The same, with only this host's keys of those that lie in files: for who asks often.
    pub fn read_for(dir: &Path, host: &HostName) -> Result<Self> {
        let mut config = Self::read_file(dir)?;
        if let Some(keys) = config.key_dir() {
            config.add_keys(host, &key_file(&keys, host))?;
        }
        Ok(config)
    }

    /// The directory that the hosts' keys lie in.
    fn key_dir(&self) -> Option<PathBuf> {
        self.hub.as_ref()?.keys.clone()
    }

    /// The hub of the fleet in a directory, which these are the settings of; an error that says how to name one, if they name none.
    pub fn hub(&self, dir: &Path) -> Result<Hub> {
        const NONE: &str = "this needs a hub, and the fleet's settings name none";
        let named = || {
            Self::file(dir).map(|file| {
            anyhow!(
                "add a table [hub] to {}, in which directory = \"/home/chroot\", or another absolute path, says where releases are published",
                file.display()
            )
        })
        };
        self.hub.as_ref().map(HubConfig::hub).ok_or_else(|| named().unwrap_or_else(|error| error).context(NONE))
    }

    /// Adds the keys in a file, which need not be there, to a host's.
    fn add_keys(&mut self, host: &HostName, file: &Path) -> Result<()> {
        let found = read_keys(file)?;
        if !found.is_empty() {
            let keys = &mut self.hosts.entry(host.clone()).or_default().keys;
            let new: Vec<String> = found.into_iter().filter(|key| !keys.contains(key)).collect();
            keys.extend(new);
        }
        Ok(())
    }

    fn read_file(dir: &Path) -> Result<Self> {
        if !dir.join(TOML).exists() && !dir.join(SHELL).exists() {
            return Ok(Self::default());
        }
        let file = Self::file(dir)?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let config = if file.ends_with(TOML) { Self::parse_toml(&text) } else { Self::parse_shell(&text) };
        let mut config = config.with_context(|| file.display().to_string())?;
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let place = |path: PathBuf| sign::key_path(&path.to_string_lossy(), dir, home.as_deref());
        config.release.signing_key = config.release.signing_key.map(place);
        if let Some(hub) = &mut config.hub {
            hub.keys = hub.keys.take().map(place);
        }
        Ok(config)
    }

    /// The file that holds the settings of the fleet in a directory.
    pub fn file(dir: &Path) -> Result<PathBuf> {
        let (toml, shell) = (dir.join(TOML), dir.join(SHELL));
        match (toml.exists(), shell.exists()) {
            (true, true) => bail!(
                "both {} and {} are there: `bento config check` shows what the latter comes to; keep one of them",
                toml.display(),
                shell.display()
            ),
            (true, false) => Ok(toml),
            (false, true) => Ok(shell),
            (false, false) => bail!(
                "{} has neither a {TOML} nor a {SHELL}: `bento init` makes one (BENTO_DIR tells where the fleet is)",
                dir.display()
            ),
        }
    }

    /// Reads the text of a `bento.toml`. Errors show the line.
    pub fn parse_toml(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        config.check().map_err(|(setting, error)| error.context(setting))?;
        Ok(config)
    }

    /// Reads the text of a `config.sh`. Errors name the line.
    pub fn parse_shell(text: &str) -> Result<Self> {
        const KNOWN: [&str; 7] =
            ["CHROOT_DIR", "REMOTE_IP", "REMOTE_PORT", "TIMEOUT", "NOLOCALBUILD", "SIGNING_KEY", "HOST_KEYS"];
        let variables = assignments(text)?;
        if let Some((name, (line, _))) = variables.iter().find(|(name, _)| !KNOWN.contains(&name.as_str())) {
            bail!("line {line}: there is no setting {name}; known are {}", KNOWN.join(", "));
        }
        let get = |name: &str| variables.get(name).filter(|(_, value)| !value.is_empty());
        let (line, directory) = get("CHROOT_DIR").context(
            "CHROOT_DIR is not set: it names the directory to publish in (only a bento.toml can do without)",
        )?;
        let port = match get("REMOTE_PORT") {
            None => default_port(),
            Some((line, port)) => port
                .parse()
                .map_err(|_| anyhow!("line {line}: REMOTE_PORT must be a port from 1 to 65535, not {port:?}"))?,
        };
        let timeout = match get("TIMEOUT") {
            None => default_timeout(),
            Some((line, seconds)) => seconds
                .parse()
                .map_err(|_| anyhow!("line {line}: TIMEOUT must be a whole number of seconds, not {seconds:?}"))?,
        };
        let config = Self {
            hub: Some(HubConfig {
                directory: PathBuf::from(directory),
                address: get("REMOTE_IP").map(|(_, address)| address.clone()),
                port,
                timeout,
                keys: get("HOST_KEYS").map(|(_, keys)| PathBuf::from(keys)),
            }),
            // as in the original: set to anything at all
            build: BuildConfig { local: get("NOLOCALBUILD").is_none(), ..BuildConfig::default() },
            release: ReleaseConfig {
                signing_key: get("SIGNING_KEY").map(|(_, key)| PathBuf::from(key)),
                ..ReleaseConfig::default()
            },
            ..Self::default()
        };
        config.check().map_err(|(setting, error)| match setting {
            "hub.directory" => anyhow!("line {line}: CHROOT_DIR: {error:#}"),
            setting => error.context(setting),
        })?;
        Ok(config)
    }

    /// Refuses values that no setting can have; an error comes with the setting's name.
    fn check(&self) -> Result<(), (&'static str, anyhow::Error)> {
        if let Some(HubConfig { directory, port, .. }) = &self.hub {
            if !directory.is_absolute() {
                let text = directory.display().to_string();
                return Err(("hub.directory", anyhow!("it must be an absolute path, not {text:?}")));
            }
            if *port == 0 {
                return Err(("hub.port", anyhow!("it must be a port from 1 to 65535")));
            }
        }
        if self.release.valid_for_days == Some(0) {
            return Err(("release.valid-for-days", anyhow!("it must be at least 1")));
        }
        if self.status.interval_minutes == 0 {
            return Err(("status.interval-minutes", anyhow!("it must be at least 1")));
        }
        for (name, host) in &self.hosts {
            let wrong = host.tags.iter().find(|tag| HostName::new(tag.as_str()).is_err());
            if let Some(tag) = wrong {
                return Err(("hosts", anyhow!("{name} has the tag {tag:?}: a tag is written like a host's name")));
            }
            for key in &host.keys {
                if let Err(error) = sign::SigningKey::try_from(key.clone()) {
                    return Err(("hosts", error.context(format!("the keys of {name}"))));
                }
            }
        }
        Ok(())
    }

    /// How a host gets its system.
    pub fn mode(&self, host: &HostName) -> ReleaseMode {
        self.hosts.get(host).and_then(|host| host.mode).unwrap_or(self.release.mode)
    }

    /// Whether a host's system is built before it is published.
    pub fn builds(&self, host: &HostName) -> bool {
        self.hosts.get(host).and_then(|host| host.build).unwrap_or(self.build.local)
    }

    /// The keys that hosts sign their reports with, as far as the settings have any. A host that is pushed to signs nothing: who
    /// pushes reports in its place.
    pub fn host_keys(&self) -> Result<BTreeMap<HostName, Vec<sign::SigningKey>>> {
        let with_keys = self.hosts.iter().filter(|(_, host)| !host.keys.is_empty() && host.push.is_none());
        let keys = |keys: &[String]| keys.iter().cloned().map(sign::SigningKey::try_from).collect::<Result<Vec<_>>>();
        with_keys.map(|(name, host)| Ok((name.clone(), keys(&host.keys)?))).collect()
    }

    /// The hosts with a tag; nothing if no host has it.
    pub fn tagged(&self, tag: &str) -> Option<BTreeSet<HostName>> {
        let hosts = self.hosts.iter().filter(|(_, host)| host.tags.contains(tag));
        Some(hosts.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>()).filter(|hosts| !hosts.is_empty())
    }
}

/// A host's file in a directory of keys.
pub fn key_file(keys: &Path, host: &HostName) -> PathBuf {
    keys.join(format!("{host}.pub"))
}

/// The public keys in a file, one on a line, as `authorized_keys` has them; none if it isn't there. Errors name the line.
pub fn read_keys(file: &Path) -> Result<Vec<String>> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let mut keys = Vec::new();
    for (index, line) in
        text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
    {
        let key = sign::SigningKey::try_from(line.to_owned());
        key.with_context(|| format!("{}: line {}", file.display(), index + 1))?;
        keys.push(line.to_owned());
    }
    Ok(keys)
}

/// The assignments of a shell file that has nothing else in it: each variable's line and value.
fn assignments(text: &str) -> Result<BTreeMap<String, (usize, String)>> {
    let mut variables = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let statement = line.trim();
        let statement = statement.strip_prefix("export ").map_or(statement, str::trim_start);
        if statement.is_empty() || statement.starts_with('#') {
            continue;
        }
        let assignment = statement.split_once('=').filter(|(name, _)| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        let (name, value) = assignment
            .ok_or_else(|| anyhow!("line {number}: {line:?} is not VARIABLE=value; this file is read, not executed"))?;
        let value = unquote(value).with_context(|| format!("line {number}: {line:?}"))?;
        variables.insert(name.to_owned(), (number, value));
    }
    Ok(variables)
}

/// The value of a shell word without expansions, with an optional comment after it.
fn unquote(word: &str) -> Result<String> {
    const NOT_EXECUTED: &str = "this file is read, not executed: write the value itself (in single quotes if need be)";
    let mut value = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => loop {
                match chars.next().context("a single quote is not closed")? {
                    '\'' => break,
                    c => value.push(c),
                }
            },
            '"' => loop {
                match chars.next().context("a double quote is not closed")? {
                    '"' => break,
                    '\\' => match chars.next().context("a double quote is not closed")? {
                        c @ ('"' | '\\' | '$' | '`') => value.push(c),
                        c => value.extend(['\\', c]),
                    },
                    '$' | '`' => bail!("{NOT_EXECUTED}"),
                    c => value.push(c),
                }
            },
            '\\' => value.push(chars.next().context("nothing follows the backslash")?),
            c if c.is_whitespace() => {
                let rest = chars.as_str().trim_start();
                if !rest.is_empty() && !rest.starts_with('#') {
                    bail!("{rest:?} follows the value: {NOT_EXECUTED}");
                }
                break;
            }
            '$' | '`' | ';' | '&' | '|' | '<' | '>' | '(' | ')' | '*' | '?' | '[' => bail!("{c:?}: {NOT_EXECUTED}"),
            c => value.push(c),
        }
    }
    Ok(value)
}
