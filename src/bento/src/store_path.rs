//! Full store paths as they occur in manifests and reports.

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The alphabet of Nix's base-32: no `e`, `o`, `t`, `u`.
const BASE32: &str = "0123456789abcdfghijklmnpqrsvwxyz";
/// Where every store path begins.
const STORE: &str = "/nix/store/";

/// A path directly in the Nix store, `/nix/store/<32 characters of base-32>-<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

/// Text that is no store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidStorePath(String);

impl fmt::Display for InvalidStorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a path directly in /nix/store", self.0)
    }
}

impl std::error::Error for InvalidStorePath {}

impl StorePath {
    /// Checks a path. Names follow Nix's rule: up to 211 of `[a-zA-Z0-9+-._?=]`, not beginning with a dot.
    pub fn new(path: impl Into<String>) -> Result<Self, InvalidStorePath> {
        let path = path.into();
        let sound = path.strip_prefix(STORE).and_then(|base| base.split_once('-')).is_some_and(|(hash, name)| {
            hash.len() == 32
                && hash.chars().all(|c| BASE32.contains(c))
                && (1..=211).contains(&name.len())
                && !name.starts_with('.')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-._?=".contains(c))
        });
        if sound { Ok(Self(path)) } else { Err(InvalidStorePath(path)) }
    }

    /// The store path that a file or link such as a profile resolves to, if it exists and leads into the store.
    pub fn behind(link: &Path) -> Option<Self> {
        let target = std::fs::canonicalize(link).ok()?;
        Self::new(target.to_str()?).ok()
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole path, as a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// What follows `/nix/store/`.
    pub fn base_name(&self) -> &str {
        &self.0[STORE.len()..]
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for StorePath {
    type Error = InvalidStorePath;
    fn try_from(path: String) -> Result<Self, Self::Error> {
        Self::new(path)
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}
