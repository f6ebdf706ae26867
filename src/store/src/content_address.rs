//! How a store object's contents are hashed, and the content address that comes of it.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::hash::{Hash, HashAlgo, HashError, HashFormat};

/// Why a content address can't be read. The texts are Nix's own.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ContentAddressError {
    /// The name of the method is none that Nix knows.
    #[error("Unknown file ingestion method '{0}', expect `flat`, `nar`, or `git`")]
    UnknownMethod(String),
    /// No colon at all.
    #[error("not a content address because it is not in the form '<prefix>:<rest>': {0}")]
    NoPrefix(String),
    /// Something else than `text` and `fixed`.
    #[error("content address prefix '{0}' is unrecognized. Recogonized prefixes are 'text' or 'fixed'")]
    UnknownPrefix(String),
    /// No colon behind the algorithm.
    #[error("content address hash must be in form '<algo>:<hash>', but found: {0}")]
    NoAlgo(String),
    /// The hash in it is wrong.
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// What of a file tree is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContentAddressMethod {
    /// The contents of one file that may refer to store paths (`builtins.toFile`, derivations).
    Text,
    /// The contents of one file that refers to nothing.
    Flat,
    /// The NAR of a tree; Nix's old name for it is "recursive".
    NixArchive,
    /// The git tree or blob (experimental in Nix: `git-hashing`).
    Git,
}

impl ContentAddressMethod {
    /// The name in `outputHashMode`: `text`, `flat`, `nar`, `git`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Flat => "flat",
            Self::NixArchive => "nar",
            Self::Git => "git",
        }
    }

    /// What derivations write before the name of the algorithm: `r:` for [`ContentAddressMethod::NixArchive`].
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Text => "text:",
            Self::Flat => "",
            Self::NixArchive => "r:",
            Self::Git => "git:",
        }
    }

    /// Takes a [`prefix`](Self::prefix) off `text`. No prefix is [`ContentAddressMethod::Flat`].
    #[must_use]
    pub fn split_prefix(text: &str) -> (Self, &str) {
        for method in [Self::NixArchive, Self::Git, Self::Text] {
            if let Some(rest) = text.strip_prefix(method.prefix()) {
                return (method, rest);
            }
        }
        (Self::Flat, text)
    }
}

impl FromStr for ContentAddressMethod {
    type Err = ContentAddressError;

    /// Reads [`ContentAddressMethod::name`]. `recursive` is the language's affair and not accepted, as in Nix.
    fn from_str(name: &str) -> Result<Self, ContentAddressError> {
        [Self::Text, Self::Flat, Self::NixArchive, Self::Git]
            .into_iter()
            .find(|m| m.name() == name)
            .ok_or_else(|| ContentAddressError::UnknownMethod(name.to_owned()))
    }
}

/// The address of a store object that is named by what it contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentAddress {
    /// What was hashed.
    pub method: ContentAddressMethod,
    /// The hash of it.
    pub hash: Hash,
}

impl ContentAddress {
    /// The method and the algorithm as a derivation's output has them: `r:sha256`.
    #[must_use]
    pub fn method_algo(&self) -> String {
        format!("{}{}", self.method.prefix(), self.hash.algo())
    }
}

/// As in a store's database: `fixed:r:sha256:<nix-32>`, `text:sha256:<nix-32>`.
impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = if self.method == ContentAddressMethod::Text { "" } else { "fixed:" };
        write!(f, "{fixed}{}{}", self.method.prefix(), self.hash.format(HashFormat::Nix32, true))
    }
}

impl FromStr for ContentAddress {
    type Err = ContentAddressError;

    fn from_str(text: &str) -> Result<Self, ContentAddressError> {
        let (prefix, rest) = text.split_once(':').ok_or_else(|| ContentAddressError::NoPrefix(text.to_owned()))?;
        let (method, rest) = match prefix {
            "text" => (ContentAddressMethod::Text, rest),
            "fixed" => match ContentAddressMethod::split_prefix(rest) {
                // `fixed:text:…` doesn't exist, so `text` stands where the algorithm has to be.
                (ContentAddressMethod::Text, _) => (ContentAddressMethod::Flat, rest),
                found => found,
            },
            _ => return Err(ContentAddressError::UnknownPrefix(prefix.to_owned())),
        };
        let (algo, rest) = rest.split_once(':').ok_or_else(|| ContentAddressError::NoAlgo(text.to_owned()))?;
        let algo: HashAlgo = algo.parse()?;
        Ok(Self { method, hash: Hash::parse_unprefixed(rest, algo)? })
    }
}
