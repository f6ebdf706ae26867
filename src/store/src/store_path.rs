//! Store paths: what is a valid one, and how each kind is computed.

use std::{borrow::Borrow, collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use thiserror::Error;

use crate::{
    base32,
    content_address::{ContentAddress, ContentAddressMethod},
    hash::{Hash, HashAlgo, HashFormat, compress_hash, sha256},
};

/// The number of base-32 digits at the start of a store path's base name.
pub const HASH_LEN: usize = 32;
/// The longest name, in bytes: a base name is at most 244, and a lock file's name 255.
pub const MAX_NAME_LEN: usize = 211;
/// What the name of a store derivation ends in.
pub const DRV_EXTENSION: &str = ".drv";

/// Why a name can't be part of a store path. The texts are Nix's own.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing.
    #[error("name must not be empty")]
    Empty,
    /// More than [`MAX_NAME_LEN`] bytes.
    #[error("name '{0}' must be no longer than {MAX_NAME_LEN} characters")]
    TooLong(String),
    /// `.` or `..`.
    #[error("name '{0}' is not valid")]
    Dots(String),
    /// `.-…` or `..-…`.
    #[error("name '{name}' is not valid: first dash-separated component must not be '{component}'")]
    DotsComponent {
        /// The whole name.
        name: String,
        /// `.` or `..`.
        component: &'static str,
    },
    /// Something else than ASCII letters, digits and `+-._?=`.
    #[error("name '{name}' contains illegal character '{character}'")]
    Character {
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

/// Why something is not a store path, or why none can be made. The texts are Nix's own where Nix has one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StorePathError {
    /// Not even a hash part.
    #[error("'{0}' is too short to be a valid store path")]
    TooShort(String),
    /// The hash part has a character outside Nix's base-32.
    #[error("store path '{path}' contains illegal base-32 character '{character}'")]
    HashCharacter {
        /// The base name.
        path: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// No dash between hash part and name. (Nix doesn't look, and takes anything there.)
    #[error("path '{0}' is not a valid store path: no dash after the hash part")]
    NoDash(String),
    /// The name is wrong.
    #[error("path '{path}' is not a valid store path: {error}")]
    Name {
        /// The base name.
        path: String,
        /// What is wrong.
        error: NameError,
    },
    /// Not an entry of the store directory.
    #[error("path \"{0}\" is not in the Nix store")]
    NotInStore(String),
    /// A relative path where an absolute one is needed.
    #[error("not an absolute path: \"{0}\"")]
    NotAbsolute(String),
    /// Not the path of a store derivation.
    #[error("store path '{0}' is not a valid derivation path")]
    NotADerivation(String),
    /// Only SHA-256 NARs and text may have references.
    #[error(
        "fixed output derivation '{0}' is not allowed to refer to other store paths.\n\
         You may need to use the 'unsafeDiscardReferences' derivation attribute, see the manual for more details."
    )]
    References(String),
    /// Text can't contain its own path.
    #[error("self-reference not allowed with text hashing")]
    TextSelfReference,
    /// Text is only ever hashed with SHA-256.
    #[error("text hashing must use a SHA-256 hash, but instead using: {0}")]
    TextAlgo(HashAlgo),
    /// git has no objects with such hashes.
    #[error("Git file ingestion must use SHA-1 or SHA-256 hash, but instead using: {0}")]
    GitAlgo(HashAlgo),
}

/// Checks that `name` can be the name of a store path: at most [`MAX_NAME_LEN`] ASCII letters, digits and `+-._?=`, not
/// `.` or `..`, alone or before the first dash.
///
/// # Errors
/// The first rule that is broken.
pub fn check_name(name: impl AsRef<[u8]>) -> Result<(), NameError> {
    let name = name.as_ref();
    let text = || String::from_utf8_lossy(name).into_owned();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_LEN {
        return Err(NameError::TooLong(text()));
    }
    match name {
        b"." | b".." => return Err(NameError::Dots(text())),
        [b'.', b'-', ..] => return Err(NameError::DotsComponent { name: text(), component: "." }),
        [b'.', b'.', b'-', ..] => return Err(NameError::DotsComponent { name: text(), component: ".." }),
        _ => {}
    }
    let allowed = |c: &u8| c.is_ascii_alphanumeric() || b"+-._?=".contains(c);
    match name.iter().find(|c| !allowed(c)) {
        Some(c) => Err(NameError::Character { name: text(), character: printable(*c) }),
        None => Ok(()),
    }
}

/// A byte as a character, if it is one by itself.
fn printable(byte: u8) -> char {
    if byte.is_ascii() { char::from(byte) } else { char::REPLACEMENT_CHARACTER }
}

/// The base name of an entry of a store directory: 32 base-32 digits, a dash, a name.
///
/// Cheap to clone (one reference count), ordered by base name, valid by construction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    /// Reads a base name: `1b9p07z77phvv2hf6gm9f28syp39f1ag-hello-2.12`.
    ///
    /// # Errors
    /// Too short, a wrong hash part, or a wrong name.
    pub fn from_base_name(base_name: impl AsRef<[u8]>) -> Result<Self, StorePathError> {
        let base_name = base_name.as_ref();
        let text = || String::from_utf8_lossy(base_name).into_owned();
        if base_name.len() < HASH_LEN + 1 {
            return Err(StorePathError::TooShort(text()));
        }
        let (hash_part, rest) = base_name.split_at(HASH_LEN);
        if let Some(c) = hash_part.iter().find(|c| !base32::is_digit(**c)) {
            return Err(StorePathError::HashCharacter { path: text(), character: printable(*c) });
        }
        let name = rest.strip_prefix(b"-").ok_or_else(|| StorePathError::NoDash(text()))?;
        check_name(name).map_err(|error| StorePathError::Name { path: text(), error })?;
        // ASCII, as it was checked
        Ok(Self(std::str::from_utf8(base_name).map_or_else(|_| text().into(), Arc::from)))
    }

    /// The path with this hash part and name.
    ///
    /// # Errors
    /// A name that is not valid.
    pub fn from_parts(hash_part: [u8; 20], name: &str) -> Result<Self, StorePathError> {
        let mut base_name = String::with_capacity(HASH_LEN + 1 + name.len());
        base32::encode_to(&hash_part, &mut base_name);
        base_name.push('-');
        base_name.push_str(name);
        match check_name(name) {
            Ok(()) => Ok(Self(base_name.into())),
            Err(error) => Err(StorePathError::Name { path: base_name, error }),
        }
    }

    /// The base name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 base-32 digits.
    #[must_use]
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LEN]
    }

    /// What follows the dash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0[HASH_LEN + 1..]
    }

    /// Whether the name ends in [`DRV_EXTENSION`].
    #[must_use]
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(DRV_EXTENSION)
    }

    /// The name of the derivation that a derivation's path is of: the name without [`DRV_EXTENSION`].
    ///
    /// # Errors
    /// The path is not one of a derivation.
    pub fn derivation_name(&self) -> Result<&str, StorePathError> {
        self.name()
            .strip_suffix(DRV_EXTENSION)
            .ok_or_else(|| StorePathError::NotADerivation(self.0.as_ref().to_owned()))
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    /// As [`StorePath::from_base_name`].
    fn from_str(base_name: &str) -> Result<Self, StorePathError> {
        Self::from_base_name(base_name)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for StorePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// So that maps and sets of paths can be asked with a base name.
impl Borrow<str> for StorePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The store paths that a store object refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Other objects.
    pub others: BTreeSet<StorePath>,
    /// The object itself.
    pub itself: bool,
}

impl References {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && !self.itself
    }
}

/// The directory that a store's paths are in. It is part of what every path's hash is made of.
///
/// ```
/// use bento_store::{hash::{Hash, HashAlgo}, store_path::StoreDir};
///
/// let store = StoreDir::default();
/// let path = store.make_text_path("greeting", &Hash::digest(HashAlgo::Sha256, "hello"), [])?;
/// assert_eq!(store.print(&path), "/nix/store/5akl8zsmda0yrr63v4khwgskih2g2hsh-greeting");
/// # Ok::<(), bento_store::store_path::StorePathError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreDir(Arc<str>);

impl Default for StoreDir {
    /// `/nix/store`.
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StoreDir {
    /// The store directory at `path`, which is made canonical without looking at the file system.
    ///
    /// # Errors
    /// A relative path.
    pub fn new(path: &str) -> Result<Self, StorePathError> {
        Ok(Self(String::from_utf8_lossy(&canonical(path.as_bytes())?).into()))
    }

    /// The directory's path, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full path.
    #[must_use]
    pub fn print(&self, path: &StorePath) -> String {
        let mut out = String::with_capacity(self.0.len() + 1 + path.0.len());
        self.print_to(path, &mut out);
        out
    }

    /// As [`StoreDir::print`], appended to `out`.
    pub fn print_to(&self, path: &StorePath, out: &mut String) {
        out.push_str(&self.0);
        out.push('/');
        out.push_str(&path.0);
    }

    /// Reads the full path of a store path. `.`, `..` and superfluous slashes are taken out first, as Nix does.
    ///
    /// # Errors
    /// A relative path, a path that is not directly in the store directory, or an invalid base name.
    pub fn parse(&self, path: impl AsRef<[u8]>) -> Result<StorePath, StorePathError> {
        let path = path.as_ref();
        // Nearly every path is canonical already; no base name of one is `.` or `..`, as both are too short.
        match self.strip(path) {
            Some(base_name) if base_name.len() > HASH_LEN && !base_name.contains(&b'/') => {
                return StorePath::from_base_name(base_name);
            }
            _ => {}
        }
        let path = canonical(path)?;
        match self.strip(&path) {
            Some(base_name) if !base_name.contains(&b'/') => StorePath::from_base_name(base_name),
            _ => Err(StorePathError::NotInStore(String::from_utf8_lossy(&path).into_owned())),
        }
    }

    /// Splits a path to or below a store path: `/nix/store/…-hello/bin/hello` into the store path and `/bin/hello`
    /// (empty for the store path itself). The rest is not made canonical.
    ///
    /// # Errors
    /// A path that is not in the store directory, or an invalid base name.
    pub fn split<'p>(&self, path: &'p [u8]) -> Result<(StorePath, &'p [u8]), StorePathError> {
        let Some(inner) = self.strip(path) else {
            return Err(StorePathError::NotInStore(String::from_utf8_lossy(path).into_owned()));
        };
        let (base_name, rest) = inner.split_at(inner.iter().position(|c| *c == b'/').unwrap_or(inner.len()));
        Ok((StorePath::from_base_name(base_name)?, rest))
    }

    /// Whether `path` is textually below the store directory.
    #[must_use]
    pub fn contains(&self, path: impl AsRef<[u8]>) -> bool {
        self.strip(path.as_ref()).is_some_and(|rest| !rest.is_empty())
    }

    fn strip<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        path.strip_prefix(self.0.as_bytes())?.strip_prefix(b"/")
    }

    /// The path of a text (`builtins.toFile`, a store derivation): `hash` is the SHA-256 of its contents, `references`
    /// the store paths in it, in any order.
    ///
    /// # Errors
    /// A name that is not valid, or a hash that is not SHA-256.
    pub fn make_text_path<'r>(
        &self,
        name: &str,
        hash: &Hash,
        references: impl IntoIterator<Item = &'r StorePath>,
    ) -> Result<StorePath, StorePathError> {
        if hash.algo() != HashAlgo::Sha256 {
            return Err(StorePathError::TextAlgo(hash.algo()));
        }
        self.make("text", references, false, &hash.format(HashFormat::Base16, true), name)
    }

    /// The path of an object with this content address and these references.
    ///
    /// # Errors
    /// A name that is not valid, references that this method and algorithm can't have, or an algorithm that this method
    /// can't have.
    pub fn make_content_addressed_path(
        &self,
        name: &str,
        address: &ContentAddress,
        references: &References,
    ) -> Result<StorePath, StorePathError> {
        let ContentAddress { method, hash } = address;
        match method {
            ContentAddressMethod::Text if references.itself => Err(StorePathError::TextSelfReference),
            ContentAddressMethod::Text => self.make_text_path(name, hash, &references.others),
            ContentAddressMethod::Git if !matches!(hash.algo(), HashAlgo::Sha1 | HashAlgo::Sha256) => {
                Err(StorePathError::GitAlgo(hash.algo()))
            }
            ContentAddressMethod::NixArchive if hash.algo() == HashAlgo::Sha256 => {
                let hash = hash.format(HashFormat::Base16, true);
                self.make("source", &references.others, references.itself, &hash, name)
            }
            ContentAddressMethod::Flat | ContentAddressMethod::NixArchive | ContentAddressMethod::Git => {
                if !references.is_empty() {
                    return Err(StorePathError::References(name.to_owned()));
                }
                let hash = hash.format(HashFormat::Base16, true);
                let inner = Hash::from_sha256(sha256(format!("fixed:out:{}{hash}:", method.prefix()).as_bytes()));
                self.make("output:out", [], false, &inner.format(HashFormat::Base16, true), name)
            }
        }
    }

    /// As [`StoreDir::make_content_addressed_path`], for an object that refers to nothing: the output of a fixed-output
    /// derivation, or a source.
    ///
    /// # Errors
    /// A name that is not valid, or an algorithm that this method can't have.
    pub fn make_fixed_output_path(&self, name: &str, address: &ContentAddress) -> Result<StorePath, StorePathError> {
        self.make_content_addressed_path(name, address, &References::default())
    }

    /// The path of an output of an input-addressed derivation, whose masked hash modulo is `hash`.
    ///
    /// # Errors
    /// The derivation's name and the output's don't make a valid name.
    pub fn make_output_path(
        &self,
        hash: &[u8; 32],
        output: &str,
        derivation_name: &str,
    ) -> Result<StorePath, StorePathError> {
        let hash = Hash::from_sha256(*hash).format(HashFormat::Base16, true);
        self.make(&format!("output:{output}"), [], false, &hash, &output_path_name(derivation_name, output))
    }

    /// The rule that all paths have in common: `<type>[:<references>][:self]:<hash>:<store directory>:<name>`, hashed and
    /// folded.
    fn make<'r>(
        &self,
        kind: &str,
        references: impl IntoIterator<Item = &'r StorePath>,
        self_reference: bool,
        hash: &str,
        name: &str,
    ) -> Result<StorePath, StorePathError> {
        let mut references: Vec<&StorePath> = references.into_iter().collect();
        references.sort_unstable();
        references.dedup();
        let mut text = String::with_capacity(
            256 + name.len() + references.iter().map(|r| self.0.len() + 2 + r.0.len()).sum::<usize>(),
        );
        text.push_str(kind);
        for reference in references {
            text.push(':');
            self.print_to(reference, &mut text);
        }
        if self_reference {
            text.push_str(":self");
        }
        for part in [hash, &self.0, name] {
            text.push(':');
            text.push_str(part);
        }
        StorePath::from_parts(compress_hash(&sha256(text.as_bytes())), name)
    }
}

/// The name part of an output's store path: the derivation's name, with `-<output>` for all but `out`.
#[must_use]
pub fn output_path_name(derivation_name: &str, output: &str) -> String {
    if output == "out" { derivation_name.to_owned() } else { format!("{derivation_name}-{output}") }
}

/// Takes `.`, `..` and superfluous slashes out of an absolute path, without looking at the file system.
fn canonical(path: &[u8]) -> Result<Vec<u8>, StorePathError> {
    if !path.starts_with(b"/") {
        return Err(StorePathError::NotAbsolute(String::from_utf8_lossy(path).into_owned()));
    }
    let mut out: Vec<&[u8]> = Vec::new();
    for component in path.split(|c| *c == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                out.pop();
            }
            _ => out.push(component),
        }
    }
    Ok([b"/", out.join(&b'/').as_slice()].concat())
}
