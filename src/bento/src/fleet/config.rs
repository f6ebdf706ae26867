//! `config.sh`: the fleet's settings, written as shell assignments and read without being executed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// The settings of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `CHROOT_DIR`: the directory that holds a directory per host, served by SFTP.
    pub chroot_dir: PathBuf,
    /// `REMOTE_IP`: the hub's name or address as the hosts see it.
    pub remote_ip: Option<String>,
    /// `REMOTE_PORT`, 22 if not set.
    pub remote_port: u16,
    /// `TIMEOUT` of a connection, 20 seconds if not set.
    pub timeout: Duration,
}

impl Config {
    /// Reads a `config.sh`.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| {
            format!("cannot read {}: a fleet needs it, with at least CHROOT_DIR=DIRECTORY in it", file.display())
        })?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    /// Reads the text of a `config.sh`. Errors name the line.
    pub fn parse(text: &str) -> Result<Self> {
        let variables = assignments(text)?;
        let get = |name: &str| variables.get(name).filter(|(_, value)| !value.is_empty());
        let (line, chroot_dir) =
            get("CHROOT_DIR").context("CHROOT_DIR is not set: it names the directory to publish in")?;
        let chroot_dir = PathBuf::from(chroot_dir);
        if !chroot_dir.is_absolute() {
            bail!("line {line}: CHROOT_DIR must be an absolute path, not {:?}", chroot_dir.display().to_string());
        }
        let remote_port = match get("REMOTE_PORT") {
            None => 22,
            Some((line, port)) => port
                .parse()
                .map_err(|_| anyhow!("line {line}: REMOTE_PORT must be a port from 1 to 65535, not {port:?}"))?,
        };
        let timeout = match get("TIMEOUT") {
            None => 20,
            Some((line, seconds)) => seconds
                .parse()
                .map_err(|_| anyhow!("line {line}: TIMEOUT must be a whole number of seconds, not {seconds:?}"))?,
        };
        Ok(Self {
            chroot_dir,
            remote_ip: get("REMOTE_IP").map(|(_, address)| address.clone()),
            remote_port,
            timeout: Duration::from_secs(timeout),
        })
    }
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
