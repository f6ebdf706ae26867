//! Secrets: files that one host alone can read, from the administrator's directory to `/run/bento/secrets`.
//!
//! A host's directory may have a folder `secrets`. What is in it takes no part in the configuration: it is encrypted to the
//! host's SSH key with age, and only that reaches the hub. The host keeps it encrypted, too, and decrypts it into memory
//! before a system is activated that may need it. Files that are encrypted already, for agenix or sops-nix, are no secrets
//! in this sense: they belong to the configuration like any other file.

pub mod draft;
pub mod folder;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::package::place;

/// No secret is larger, in bytes: they lie in the host's memory.
pub const LIMIT: u64 = 1 << 20;
/// What encrypting adds to a secret at most, in bytes: a header with a stanza for each of the host's keys, and a tag for
/// each 64 KiB.
const OVERHEAD: u64 = 64 << 10;
/// The names of bento's own units on a host begin with this.
pub const OWN_UNITS: &str = "bento-";
/// What units that read secrets can be: those that start something, by their names' ends.
const UNITS: [&str; 3] = [".service", ".socket", ".target"];
/// The owner and the group of a secret for which nothing else is said.
const ROOT: &str = "root";

/// One secret of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Relative to `/run/bento/secrets`, with `/` between its components.
    pub path: String,
    /// To whom it belongs there.
    pub access: Access,
    /// Bytes of the encrypted file.
    pub size: u64,
    /// BLAKE3 of the encrypted file, in hexadecimal.
    pub blake3: String,
    /// By which the administrator knows the same secret again: a keyed hash, with [`draft::DigestKey`].
    pub digest: String,
}

/// Who may use a secret on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// A user's name or number.
    pub owner: String,
    /// A group's name or number.
    pub group: String,
    /// Permission bits, in octal.
    pub mode: SecretMode,
    /// systemd's units that read it when they start: those that run are restarted when it has changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
}

impl Default for Access {
    fn default() -> Self {
        Self { owner: ROOT.to_owned(), group: ROOT.to_owned(), mode: SecretMode(0o400), units: Vec::new() }
    }
}

/// The permission bits of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct SecretMode(u32);

impl SecretMode {
    /// The permission bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl TryFrom<String> for SecretMode {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        match u32::from_str_radix(&text, 8) {
            Ok(bits) if bits <= 0o777 && bits & 0o002 == 0 && text.len() <= 4 => Ok(Self(bits)),
            _ => bail!("{text:?} is no mode of a secret: write it in octal, as \"0440\", and let not everybody write"),
        }
    }
}

impl From<SecretMode> for String {
    fn from(mode: SecretMode) -> Self {
        format!("{:04o}", mode.0)
    }
}

impl Access {
    /// Refuses names that no user, group or unit can have, and units of the agent's own.
    fn check(&self) -> Result<()> {
        for (what, name) in [("owner", &self.owner), ("group", &self.group)] {
            let sound = !name.is_empty()
                && name.len() <= 64
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-$".contains(c))
                && !name.starts_with('-');
            if !sound {
                bail!("{name:?} can't be the {what} of a secret: it is neither a name nor a number");
            }
        }
        for unit in &self.units {
            let sound = unit.len() <= 255
                && UNITS.iter().any(|end| unit.strip_suffix(end).is_some_and(|name| !name.is_empty()))
                && unit.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c))
                && !unit.starts_with(['-', '.']);
            if !sound {
                bail!(
                    "{unit:?} can't be a unit that reads a secret: write its whole name, which ends with {}",
                    UNITS.join(", ")
                );
            }
            if unit.starts_with(OWN_UNITS) {
                bail!("{unit:?} is bento's own: it puts secrets in place, and reads none");
            }
        }
        Ok(())
    }
}

/// Refuses secrets of a manifest that lead out of their directory, can't be files at the same time or are too large.
pub fn check(secrets: &[Secret]) -> Result<()> {
    check_paths(secrets.iter().map(|secret| secret.path.as_str()))?;
    for secret in secrets {
        secret.access.check().with_context(|| format!("the secret {}", secret.path))?;
        if secret.size > LIMIT + OVERHEAD {
            bail!("the secret {} is larger than any can be: {} bytes", secret.path, secret.size);
        }
    }
    Ok(())
}

/// Refuses paths of which two are the same, one is not plain and relative, or one is a directory of another.
pub fn check_paths<'a>(paths: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for path in paths {
        place(Path::new(""), path)?;
        if !seen.insert(path) {
            bail!("{path:?} is listed twice");
        }
    }
    for path in &seen {
        let mut dir = *path;
        while let Some((above, _)) = dir.rsplit_once('/') {
            if seen.contains(above) {
                bail!("{above:?} is listed both as a file and as a directory");
            }
            dir = above;
        }
    }
    Ok(())
}

/// Where the encrypted secrets of a release are, relative to the host's directory on the hub.
pub fn secrets_dir(serial: u64) -> String {
    format!("{}.secrets", crate::manifest::release_dir(serial))
}
