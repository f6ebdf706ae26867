//! Flake references: where a flake, or any other input, comes from.
//!
//! A reference has two forms, a URL (`github:NixOS/nixpkgs/nixos-25.11?dir=lib`) and attributes
//! (`{ type = "github"; owner = "NixOS"; ... }`); lock files hold attributes. Parsing and printing follow Nix 2.34.

use super::error::FlakeError;
use super::url::{self, Url};
use crate::fs;
use bento_store::hash::{Hash, HashAlgo};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The value of one attribute of a reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Attr {
    /// A text.
    String(String),
    /// A number.
    Int(u64),
    /// A truth value.
    Bool(bool),
}

impl From<&str> for Attr {
    fn from(text: &str) -> Self {
        Attr::String(text.to_owned())
    }
}

impl From<String> for Attr {
    fn from(text: String) -> Self {
        Attr::String(text)
    }
}

impl From<u64> for Attr {
    fn from(number: u64) -> Self {
        Attr::Int(number)
    }
}

impl From<bool> for Attr {
    fn from(truth: bool) -> Self {
        Attr::Bool(truth)
    }
}

impl From<&Attr> for serde_json::Value {
    fn from(attr: &Attr) -> Self {
        match attr {
            Attr::String(text) => text.as_str().into(),
            Attr::Int(number) => (*number).into(),
            Attr::Bool(truth) => (*truth).into(),
        }
    }
}

/// The attributes of a reference, by name.
pub type Attrs = BTreeMap<String, Attr>;

/// Attributes as JSON, keys sorted.
#[must_use]
pub fn attrs_to_json(attrs: &Attrs) -> serde_json::Value {
    serde_json::Value::Object(attrs.iter().map(|(name, attr)| (name.clone(), attr.into())).collect())
}

/// Attributes from JSON, as lock files and registries hold them.
///
/// # Errors
/// When it is no object, or a member is neither a string, a natural number nor a Boolean.
pub fn attrs_from_json(json: &serde_json::Value) -> Result<Attrs, FlakeError> {
    let unsupported = || FlakeError::Reference("unsupported input attribute type in lock file".to_owned());
    let object = json.as_object().ok_or_else(unsupported)?;
    object
        .iter()
        .map(|(name, value)| {
            let attr = match value {
                serde_json::Value::String(text) => Attr::String(text.clone()),
                serde_json::Value::Bool(truth) => Attr::Bool(*truth),
                serde_json::Value::Number(number) => Attr::Int(number.as_u64().ok_or_else(unsupported)?),
                _ => return Err(unsupported()),
            };
            Ok((name.clone(), attr))
        })
        .collect()
}

/// How an input is fetched: the `type` of its attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// One file.
    File,
    /// A Git repository.
    Git,
    /// A repository on GitHub, as an archive.
    GitHub,
    /// A repository on GitLab, as an archive.
    GitLab,
    /// A Mercurial repository.
    Mercurial,
    /// A name to be looked up in a registry.
    Indirect,
    /// A directory of this machine.
    Path,
    /// A repository on SourceHut, as an archive.
    SourceHut,
    /// An archive that is unpacked.
    Tarball,
}

const GIT_ARCHIVE_ATTRS: &[&str] = &["host", "lastModified", "narHash", "owner", "ref", "repo", "rev", "treeHash"];
const DOWNLOAD_ATTRS: &[&str] = &["lastModified", "name", "narHash", "rev", "revCount", "unpack", "url"];
const GIT_ATTRS: &[&str] = &[
    "allRefs",
    "dirtyRev",
    "dirtyShortRev",
    "exportIgnore",
    "keytype",
    "lastModified",
    "lfs",
    "name",
    "narHash",
    "publicKey",
    "publicKeys",
    "ref",
    "rev",
    "revCount",
    "shallow",
    "submodules",
    "url",
    "verifyCommit",
];

impl Scheme {
    /// All of them, in the order in which a URL is offered to them.
    const ALL: [Scheme; 9] = [
        Scheme::File,
        Scheme::Git,
        Scheme::GitHub,
        Scheme::GitLab,
        Scheme::Mercurial,
        Scheme::Indirect,
        Scheme::Path,
        Scheme::SourceHut,
        Scheme::Tarball,
    ];

    /// Its name in the attribute `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scheme::File => "file",
            Scheme::Git => "git",
            Scheme::GitHub => "github",
            Scheme::GitLab => "gitlab",
            Scheme::Mercurial => "hg",
            Scheme::Indirect => "indirect",
            Scheme::Path => "path",
            Scheme::SourceHut => "sourcehut",
            Scheme::Tarball => "tarball",
        }
    }

    fn from_name(name: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|scheme| scheme.name() == name)
    }

    fn allowed_attrs(self) -> &'static [&'static str] {
        match self {
            Scheme::File | Scheme::Tarball => DOWNLOAD_ATTRS,
            Scheme::Git => GIT_ATTRS,
            Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut => GIT_ARCHIVE_ATTRS,
            Scheme::Mercurial => &["name", "narHash", "ref", "rev", "revCount", "url"],
            Scheme::Indirect => &["id", "narHash", "ref", "rev"],
            Scheme::Path => &["lastModified", "narHash", "path", "rev", "revCount"],
        }
    }
}

/// Where a source comes from, without a subdirectory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Input {
    attrs: Attrs,
}

impl Input {
    /// An input from its attributes, which are checked for their names and types as the scheme wants.
    ///
    /// # Errors
    /// When `type` is missing, or an attribute is missing, not known, or malformed. An unknown `type` is accepted, so
    /// that a lock file with such an input can still be handled as long as that input isn't used.
    pub fn from_attrs(attrs: Attrs) -> Result<Input, FlakeError> {
        if !attrs.contains_key("type") {
            return Err(FlakeError::Reference(
                "'type' attribute to specify input scheme is required but not provided".to_owned(),
            ));
        }
        let mut input = Input { attrs };
        let name = input.string("type")?.to_owned();
        if let Some(scheme) = Scheme::from_name(&name) {
            for attr in input.attrs.keys() {
                if attr != "type" && attr != "__final" && !scheme.allowed_attrs().contains(&attr.as_str()) {
                    return Err(FlakeError::Reference(format!(
                        "input attribute '{attr}' not supported by scheme '{name}'"
                    )));
                }
            }
            input.check(scheme)?;
        }
        input.reference()?;
        input.rev_count()?;
        input.last_modified()?;
        Ok(input)
    }

    /// What the scheme wants of the attributes; normalises the URL of Git.
    fn check(&mut self, scheme: Scheme) -> Result<(), FlakeError> {
        match scheme {
            Scheme::File | Scheme::Tarball => {}
            Scheme::Path => {
                self.string("path")?;
            }
            Scheme::Indirect => {
                let id = self.string("id")?;
                if !is_flake_id(id) {
                    return Err(FlakeError::BadUrl(format!("'{id}' is not a valid flake ID")));
                }
            }
            Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut => {
                self.string("owner")?;
                self.string("repo")?;
                let (reference, rev) = (self.maybe_string("ref")?, self.maybe_string("rev")?);
                let bad = |what: String| {
                    Err(FlakeError::BadUrl(format!("input {} contains {what}", attrs_to_json(&self.attrs))))
                };
                if let (Some(reference), Some(rev)) = (reference, rev) {
                    return bad(format!("both a commit hash ('{rev}') and a branch/tag name ('{reference}')"));
                }
                if rev.is_some() {
                    self.rev()?;
                }
                if reference.is_some_and(|reference| !is_legal_ref_name(reference)) {
                    return bad("an invalid branch/tag name".to_owned());
                }
                let in_host = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
                if self.maybe_string("host")?.is_some_and(|host| !host.bytes().all(in_host)) {
                    return bad("an invalid instance host".to_owned());
                }
            }
            Scheme::Mercurial => {
                Url::parse(self.string("url")?, false)?;
                if let Some(reference) = self.maybe_string("ref")?.filter(|reference| !matches_ref(reference)) {
                    return Err(FlakeError::BadUrl(format!("invalid Mercurial branch/tag name '{reference}'")));
                }
            }
            Scheme::Git => {
                for name in ["verifyCommit", "keytype", "publicKey", "publicKeys"] {
                    if self.attrs.contains_key(name) {
                        return Err(FlakeError::Reference(
                            "experimental Nix feature 'verified-fetches' is disabled; add '--extra-experimental-features \
                             verified-fetches' to enable it"
                                .to_owned(),
                        ));
                    }
                }
                if let Some(reference) = self.maybe_string("ref")?.filter(|reference| !is_legal_ref_name(reference)) {
                    return Err(FlakeError::BadUrl(format!("invalid Git branch/tag name '{reference}'")));
                }
                let fixed = url::fix_git_url(self.string("url")?)?.to_string();
                self.attrs.insert("url".to_owned(), fixed.into());
                for name in ["shallow", "submodules", "allRefs"] {
                    self.bool(name)?;
                }
            }
        }
        Ok(())
    }

    /// An input from a URL, as `builtins.fetchTree` takes one: what could be a file or an archive is an archive.
    ///
    /// # Errors
    /// When it is no URL, or its scheme or an attribute is not known or malformed.
    pub fn parse_url(text: &str) -> Result<Input, FlakeError> {
        Input::from_url(&Url::parse(text, false)?, true)
    }

    /// An input from a URL. Of URLs that could name a file or an archive, `want_tree` decides.
    fn from_url(url: &Url, want_tree: bool) -> Result<Input, FlakeError> {
        for scheme in Scheme::ALL {
            if let Some(attrs) = scheme.attrs_of_url(url, want_tree)? {
                return Input::from_attrs(attrs);
            }
        }
        let hint = if url.scheme == "file+git" { "; did you mean 'git+file' instead of 'file+git'?" } else { "" };
        Err(FlakeError::Reference(format!("input '{url}' is unsupported{hint}")))
    }

    /// Its attributes.
    #[must_use]
    pub fn attrs(&self) -> &Attrs {
        &self.attrs
    }

    /// Sets an attribute that was found while fetching.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Attr>) {
        self.attrs.insert(name.to_owned(), value.into());
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.attrs.remove(name);
    }

    /// How it is fetched; `None` if nobody knows.
    #[must_use]
    pub fn scheme(&self) -> Option<Scheme> {
        match self.attrs.get("type") {
            Some(Attr::String(name)) => Scheme::from_name(name),
            _ => None,
        }
    }

    pub(super) fn maybe_string(&self, name: &str) -> Result<Option<&str>, FlakeError> {
        match self.attrs.get(name) {
            None => Ok(None),
            Some(Attr::String(text)) => Ok(Some(text)),
            Some(_) => Err(FlakeError::Reference(format!(
                "input attribute '{name}' is not a string {}",
                attrs_to_json(&self.attrs)
            ))),
        }
    }

    pub(super) fn string(&self, name: &str) -> Result<&str, FlakeError> {
        self.maybe_string(name)?.ok_or_else(|| FlakeError::Reference(format!("input attribute '{name}' is missing")))
    }

    fn int(&self, name: &str) -> Result<Option<u64>, FlakeError> {
        match self.attrs.get(name) {
            None => Ok(None),
            Some(Attr::Int(number)) => Ok(Some(*number)),
            Some(_) => Err(FlakeError::Reference(format!("input attribute '{name}' is not an integer"))),
        }
    }

    /// An attribute that is false where it is missing.
    pub(super) fn bool(&self, name: &str) -> Result<bool, FlakeError> {
        match self.attrs.get(name) {
            None => Ok(false),
            Some(Attr::Bool(truth)) => Ok(*truth),
            Some(_) => Err(FlakeError::Reference(format!("input attribute '{name}' is not a Boolean"))),
        }
    }

    /// The hash of the source's NAR, if it is locked to one.
    ///
    /// # Errors
    /// When it is no SHA-256 hash in SRI form.
    pub fn nar_hash(&self) -> Result<Option<Hash>, FlakeError> {
        let Some(text) = self.maybe_string("narHash")? else { return Ok(None) };
        if text.is_empty() {
            return Ok(Some(Hash::zero(HashAlgo::Sha256)));
        }
        let hash = Hash::parse_sri(text).map_err(|error| FlakeError::Reference(error.to_string()))?;
        if hash.algo() != HashAlgo::Sha256 {
            return Err(FlakeError::Reference("narHash must use SHA-256".to_owned()));
        }
        Ok(Some(hash))
    }

    /// The branch or tag.
    ///
    /// # Errors
    /// When it is no string.
    pub fn reference(&self) -> Result<Option<&str>, FlakeError> {
        self.maybe_string("ref")
    }

    /// The commit, in lower-case hexadecimal digits.
    ///
    /// # Errors
    /// When it is no hash.
    pub fn rev(&self) -> Result<Option<String>, FlakeError> {
        let Some(text) = self.maybe_string("rev")? else { return Ok(None) };
        let hash = Hash::parse_any_prefixed(text)
            .or_else(|_| Hash::parse_any(text, Some(HashAlgo::Sha1)))
            .map_err(|error| FlakeError::Reference(error.to_string()))?;
        Ok(Some(hash.to_base16()))
    }

    /// How many commits the history of the commit has.
    ///
    /// # Errors
    /// When it is no integer.
    pub fn rev_count(&self) -> Result<Option<u64>, FlakeError> {
        self.int("revCount")
    }

    /// When the source was last modified, in seconds since the epoch.
    ///
    /// # Errors
    /// When it is no integer.
    pub fn last_modified(&self) -> Result<Option<u64>, FlakeError> {
        self.int("lastModified")
    }

    /// The name of the source's store path.
    ///
    /// # Errors
    /// When it is no string.
    pub fn name(&self) -> Result<&str, FlakeError> {
        Ok(self.maybe_string("name")?.unwrap_or("source"))
    }

    /// Whether it says where the source is, rather than a name to look up.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.scheme() != Some(Scheme::Indirect)
    }

    /// The same input at another branch or tag, or commit.
    ///
    /// # Errors
    /// When its scheme has none.
    pub(super) fn with_overrides(&self, reference: Option<&str>, rev: Option<&str>) -> Result<Input, FlakeError> {
        let mut result = self.clone();
        match self.scheme() {
            Some(Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut) => {
                if let (Some(reference), Some(rev)) = (reference, rev) {
                    return Err(FlakeError::BadUrl(format!(
                        "cannot apply both a commit hash ({rev}) and a branch/tag name ('{reference}') to input '{self}'"
                    )));
                }
                if reference.is_some() || rev.is_some() {
                    result.remove("ref");
                    result.remove("rev");
                }
            }
            Some(Scheme::Git | Scheme::Indirect | Scheme::Mercurial) => {}
            _ => {
                if let Some(reference) = reference {
                    let message = format!("don't know how to set branch/tag name of input '{self}' to '{reference}'");
                    return Err(FlakeError::Reference(message));
                }
                if let Some(rev) = rev {
                    let message = format!("don't know how to set revision of input '{self}' to '{rev}'");
                    return Err(FlakeError::Reference(message));
                }
            }
        }
        if let Some(reference) = reference {
            result.set("ref", reference);
        }
        if let Some(rev) = rev {
            result.set("rev", rev);
        }
        if self.scheme() == Some(Scheme::Git) && result.reference()?.is_none() && result.rev()?.is_some() {
            let message = format!("Git input '{result}' has a commit hash but no branch/tag name");
            return Err(FlakeError::Reference(message));
        }
        Ok(result)
    }

    /// The path of a `path:` input that is relative to the flake that declares it.
    #[must_use]
    pub fn relative_path(&self) -> Option<&str> {
        match self.attrs.get("path") {
            Some(Attr::String(path)) if self.scheme() == Some(Scheme::Path) && !path.starts_with('/') => Some(path),
            _ => None,
        }
    }

    /// Whether it can only ever mean one source.
    ///
    /// # Errors
    /// When an attribute is malformed.
    pub fn is_locked(&self) -> Result<bool, FlakeError> {
        Ok(match self.scheme() {
            Some(Scheme::Path | Scheme::File | Scheme::Tarball) => self.nar_hash()?.is_some(),
            Some(Scheme::Git) => self.rev()?.is_some_and(|rev| rev.bytes().any(|digit| digit != b'0')),
            // tarballs from git forges are trusted by default
            Some(Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut | Scheme::Mercurial) => self.rev()?.is_some(),
            Some(Scheme::Indirect) | None => false,
        })
    }

    /// The directory of this machine that it is, and whether that is the working directory of a Git repository. `None` if it
    /// is no directory that could be written to.
    ///
    /// # Errors
    /// When an attribute is malformed.
    pub(super) fn directory(&self) -> Result<Option<(PathBuf, bool)>, FlakeError> {
        match self.scheme() {
            Some(Scheme::Path) => Ok(Some((PathBuf::from(self.string("path")?), false))),
            Some(Scheme::Git) => {
                let url = Url::parse(self.string("url")?, false)?;
                let path = PathBuf::from(url.file_path()?);
                Ok((url.scheme == "file" && path.join(".git").exists()).then_some((path, true)))
            }
            _ => Ok(None),
        }
    }

    /// Its URL form.
    ///
    /// # Errors
    /// When its type is not known or an attribute is malformed.
    pub fn to_url_string(&self) -> Result<String, FlakeError> {
        Ok(self.to_url()?.to_string())
    }

    fn to_url(&self) -> Result<Url, FlakeError> {
        let Some(scheme) = self.scheme() else {
            return Err(FlakeError::Reference(format!(
                "cannot show unsupported input '{}'",
                attrs_to_json(&self.attrs)
            )));
        };
        let mut result = Url { scheme: scheme.name().to_owned(), ..Url::default() };
        match scheme {
            Scheme::Path => {
                result.path = self.string("path")?.split('/').map(str::to_owned).collect();
                for (name, attr) in &self.attrs {
                    if !matches!(name.as_str(), "path" | "type" | "__final") {
                        let value = match attr {
                            Attr::String(text) => text.clone(),
                            Attr::Int(number) => number.to_string(),
                            Attr::Bool(truth) => u8::from(*truth).to_string(),
                        };
                        result.query.insert(name.clone(), value);
                    }
                }
            }
            Scheme::Indirect => {
                result.scheme = "flake".to_owned();
                result.path.push(self.string("id")?.to_owned());
                result.path.extend(self.reference()?.map(str::to_owned));
                result.path.extend(self.rev()?);
            }
            Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut => {
                result.path = vec![self.string("owner")?.to_owned(), self.string("repo")?.to_owned()];
                result.path.extend(self.reference()?.map(str::to_owned));
                result.path.extend(self.rev()?);
                if let Some(hash) = self.nar_hash()? {
                    result.query.insert("narHash".to_owned(), hash.to_sri());
                }
                if let Some(host) = self.maybe_string("host")? {
                    result.query.insert("host".to_owned(), host.to_owned());
                }
            }
            Scheme::File | Scheme::Tarball => {
                result = Url::parse(self.string("url")?, false)?;
                if let Some(hash) = self.nar_hash()? {
                    result.query.insert("narHash".to_owned(), hash.to_sri());
                }
            }
            Scheme::Git | Scheme::Mercurial => {
                result = Url::parse(self.string("url")?, false)?;
                if scheme == Scheme::Mercurial {
                    result.scheme.insert_str(0, "hg+");
                } else if result.scheme != "git" {
                    result.scheme.insert_str(0, "git+");
                }
                if let Some(rev) = self.rev()? {
                    result.query.insert("rev".to_owned(), rev);
                }
                if let Some(reference) = self.reference()? {
                    result.query.insert("ref".to_owned(), reference.to_owned());
                }
                for name in ["shallow", "lfs", "submodules", "exportIgnore"] {
                    if self.bool(name)? {
                        result.query.insert(name.to_owned(), "1".to_owned());
                    }
                }
            }
        }
        Ok(result)
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_url() {
            Ok(url) => url.fmt(f),
            Err(_) => attrs_to_json(&self.attrs).fmt(f),
        }
    }
}

impl Scheme {
    /// The attributes that `url` stands for, or `None` if it is another scheme's.
    fn attrs_of_url(self, url: &Url, want_tree: bool) -> Result<Option<Attrs>, FlakeError> {
        let mut attrs = Attrs::new();
        attrs.insert("type".to_owned(), self.name().into());
        match self {
            Scheme::Path => {
                if url.scheme != "path" {
                    return Ok(None);
                }
                if let Some(authority) = url.authority.as_ref().filter(|authority| !authority.host.is_empty()) {
                    return Err(FlakeError::Reference(format!(
                        "path URL '{url}' should not have an authority ('{}')",
                        authority.host
                    )));
                }
                attrs.insert("path".to_owned(), url.file_path()?.into());
                for (name, value) in &url.query {
                    let attr = match name.as_str() {
                        "rev" | "narHash" => value.as_str().into(),
                        "revCount" | "lastModified" => Attr::Int(value.parse().map_err(|_| {
                            FlakeError::Reference(format!("path URL '{url}' has invalid parameter '{name}'"))
                        })?),
                        _ => {
                            return Err(FlakeError::Reference(format!(
                                "path URL '{url}' has unsupported parameter '{name}'"
                            )));
                        }
                    };
                    attrs.insert(name.clone(), attr);
                }
            }
            Scheme::Indirect => {
                if url.scheme != "flake" {
                    return Ok(None);
                }
                let bad = |name: &str, what: &str| {
                    Err(FlakeError::BadUrl(format!("in flake URL '{url}', '{name}' is not a {what}")))
                };
                let (id, reference, rev) = match *url.segments() {
                    [id] => (id, None, None),
                    [id, name] if is_rev(name) => (id, None, Some(name)),
                    [id, name] if is_legal_ref_name(name) => (id, Some(name), None),
                    [_, name] => return bad(name, "commit hash or branch/tag name"),
                    [_, name, _] if !is_legal_ref_name(name) => return bad(name, "branch/tag name"),
                    [_, _, name] if !is_rev(name) => return bad(name, "commit hash"),
                    [id, reference, rev] => (id, Some(reference), Some(rev)),
                    _ => return Err(FlakeError::BadUrl(format!("GitHub URL '{url}' is invalid"))),
                };
                attrs.insert("id".to_owned(), id.into());
                if let Some(reference) = reference {
                    attrs.insert("ref".to_owned(), reference.into());
                }
                if let Some(rev) = rev {
                    attrs.insert("rev".to_owned(), rev.to_ascii_lowercase().into());
                }
            }
            Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut => {
                if url.scheme != self.name() {
                    return Ok(None);
                }
                let segments = url.segments();
                let [owner, repo, rest @ ..] = segments.as_slice() else {
                    return Err(FlakeError::BadUrl(format!("URL '{url}' is invalid")));
                };
                attrs.insert("owner".to_owned(), (*owner).into());
                attrs.insert("repo".to_owned(), (*repo).into());
                match rest {
                    [] => {}
                    [rev] if is_rev(rev) => {
                        attrs.insert("rev".to_owned(), (*rev).into());
                    }
                    names => {
                        attrs.insert("ref".to_owned(), names.join("/").into());
                    }
                }
                for (name, value) in &url.query {
                    match name.as_str() {
                        "rev" if attrs.contains_key("rev") => {
                            return Err(FlakeError::BadUrl(format!("URL '{url}' contains multiple commit hashes")));
                        }
                        "ref" if attrs.contains_key("ref") => {
                            return Err(FlakeError::BadUrl(format!("URL '{url}' contains multiple branch/tag names")));
                        }
                        "rev" | "ref" | "host" | "narHash" => {
                            attrs.insert(name.clone(), value.as_str().into());
                        }
                        _ => {}
                    }
                }
            }
            Scheme::Git => {
                if url.scheme != "git" && url::application(&url.scheme) != Some("git") {
                    return Ok(None);
                }
                let mut rest = Url { query: BTreeMap::new(), ..url.clone() };
                for (name, value) in &url.query {
                    let attr = match name.as_str() {
                        "rev" | "ref" | "keytype" | "publicKey" | "publicKeys" => value.as_str().into(),
                        "shallow" | "submodules" | "lfs" | "exportIgnore" | "allRefs" | "verifyCommit" => {
                            Attr::Bool(value == "1")
                        }
                        _ => {
                            rest.query.insert(name.clone(), value.clone());
                            continue;
                        }
                    };
                    attrs.insert(name.clone(), attr);
                }
                attrs.insert("url".to_owned(), rest.to_string().into());
            }
            Scheme::Mercurial => {
                if !matches!(url.scheme.as_str(), "hg+http" | "hg+https" | "hg+ssh" | "hg+file") {
                    return Ok(None);
                }
                let mut rest = Url { query: BTreeMap::new(), ..url.clone() };
                rest.scheme = url::transport(&url.scheme).to_owned();
                for (name, value) in &url.query {
                    if name == "rev" || name == "ref" {
                        attrs.insert(name.clone(), value.as_str().into());
                    } else {
                        rest.query.insert(name.clone(), value.clone());
                    }
                }
                attrs.insert("url".to_owned(), rest.to_string().into());
            }
            Scheme::File | Scheme::Tarball => {
                if !matches!(url::transport(&url.scheme), "file" | "http" | "https") {
                    return Ok(None);
                }
                let is_tree = want_tree || has_archive_extension(url);
                let mine = match url::application(&url.scheme) {
                    Some(application) => application == self.name(),
                    None => is_tree == (self == Scheme::Tarball),
                };
                if !mine {
                    return Ok(None);
                }
                let mut rest = url.clone();
                rest.scheme = url::transport(&url.scheme).to_owned();
                for (name, value) in &url.query {
                    match name.as_str() {
                        "narHash" | "rev" => {
                            attrs.insert(name.clone(), value.as_str().into());
                        }
                        "revCount" | "lastModified" => {
                            if let Ok(number) = value.parse() {
                                attrs.insert(name.clone(), Attr::Int(number));
                            }
                        }
                        _ => {}
                    }
                    if DOWNLOAD_ATTRS.contains(&name.as_str()) {
                        rest.query.remove(name);
                    }
                }
                attrs.insert("url".to_owned(), rest.to_string().into());
            }
        }
        Ok(Some(attrs))
    }
}

fn has_archive_extension(url: &Url) -> bool {
    const EXTENSIONS: [&str; 7] = [".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"];
    url.path.last().is_some_and(|name| EXTENSIONS.iter().any(|extension| name.ends_with(extension)))
}

/// Whether `text` is the name of a flake in a registry or of an input in a `follows`.
#[must_use]
pub fn is_flake_id(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn is_rev(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The characters of branch and tag names in abbreviated references.
fn matches_ref(text: &str) -> bool {
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'@')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./@+-".contains(&byte))
}

/// Whether Git takes `name` as a reference, a branch or a tag.
pub(super) fn is_legal_ref_name(name: &str) -> bool {
    name != "@"
        && !name.contains(['\x7f', '\0'])
        && (git2::Reference::is_valid_name(name)
            || git2::Branch::name_is_valid(name).unwrap_or(false)
            || git2::Tag::is_valid_name(name))
}

/// A reference to a flake: an input, and the directory in there that holds `flake.nix`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FlakeRef {
    /// Where the source comes from.
    pub input: Input,
    /// The directory below the source's root, empty for the root itself.
    pub subdir: String,
}

/// How to read a reference that is not a URL.
#[derive(Clone, Copy, Debug)]
pub struct ParseOptions<'p> {
    /// What relative paths are relative to. With it, paths are looked for: upward for `flake.nix`, then for `.git`.
    /// Without it they are taken as they are and have to be absolute.
    pub base_dir: Option<&'p Path>,
    /// Whether a path may lack a `flake.nix`.
    pub allow_missing: bool,
    /// Whether it stands for a flake rather than for a file or a tree.
    pub is_flake: bool,
    /// Whether relative paths are let through although there is no `base_dir`.
    pub preserve_relative_paths: bool,
}

impl Default for ParseOptions<'_> {
    /// As `builtins.parseFlakeRef` and `builtins.getFlake` have it.
    fn default() -> Self {
        ParseOptions { base_dir: None, allow_missing: true, is_flake: true, preserve_relative_paths: false }
    }
}

/// A reference as a user wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedRef {
    /// The reference.
    pub flake_ref: FlakeRef,
    /// What followed `#`: which output is meant. Percent-decoded.
    pub fragment: String,
    /// What the user should be told, such as that a parent directory's `flake.nix` was taken.
    pub notes: Vec<String>,
}

impl FlakeRef {
    /// Parses a reference that has no fragment.
    ///
    /// # Errors
    /// When it makes no sense, or has a fragment.
    pub fn parse(text: &str, options: ParseOptions<'_>) -> Result<FlakeRef, FlakeError> {
        let parsed = FlakeRef::parse_with_fragment(text, options)?;
        if !parsed.fragment.is_empty() {
            return Err(FlakeError::Reference(format!(
                "unexpected fragment '{}' in flake reference '{text}'",
                parsed.fragment
            )));
        }
        Ok(parsed.flake_ref)
    }

    /// Parses a reference: an abbreviated one (`nixpkgs/nixos-25.11`), a URL, or a path.
    ///
    /// # Errors
    /// When it is none of them, or the path is no flake.
    pub fn parse_with_fragment(text: &str, options: ParseOptions<'_>) -> Result<ParsedRef, FlakeError> {
        if let Some(parsed) = parse_id(text, options)? {
            return Ok(parsed);
        }
        let of_url = || {
            let mut parsed = Url::parse(text, true)?;
            let is_local = matches!(parsed.scheme.as_str(), "path" | "git+file");
            if let Some(base_dir) = options.base_dir.filter(|_| is_local) {
                let path = parsed.file_path()?;
                if !path.starts_with('/') {
                    parsed.path = url::path_segments(&absolute(&path, base_dir)?);
                }
            }
            from_url(parsed, options)
        };
        match of_url() {
            Err(FlakeError::BadUrl(_)) => parse_path(text, options),
            result => result,
        }
    }

    /// A reference from its attributes.
    ///
    /// # Errors
    /// As [`Input::from_attrs`].
    pub fn from_attrs(mut attrs: Attrs) -> Result<FlakeRef, FlakeError> {
        let subdir = match attrs.remove("dir") {
            None => String::new(),
            Some(Attr::String(dir)) => dir,
            Some(_) => {
                return Err(FlakeError::Reference(format!(
                    "input attribute 'dir' is not a string {}",
                    attrs_to_json(&attrs)
                )));
            }
        };
        Ok(FlakeRef { input: Input::from_attrs(attrs)?, subdir })
    }

    /// Its attributes.
    #[must_use]
    pub fn to_attrs(&self) -> Attrs {
        let mut attrs = self.input.attrs.clone();
        if !self.subdir.is_empty() {
            attrs.entry("dir".to_owned()).or_insert_with(|| self.subdir.as_str().into());
        }
        attrs
    }

    /// Its URL form.
    ///
    /// # Errors
    /// When its type is not known or an attribute is malformed.
    pub fn to_url_string(&self) -> Result<String, FlakeError> {
        let mut url = self.input.to_url()?;
        if !self.subdir.is_empty() {
            url.query.entry("dir".to_owned()).or_insert_with(|| self.subdir.clone());
        }
        Ok(url.to_string())
    }

    /// The reference without what old versions of Nix left in its URL: the query parameter `dir`.
    #[must_use]
    pub fn canonical(&self) -> FlakeRef {
        let mut result = self.clone();
        let parsed = match self.input.attrs.get("url") {
            Some(Attr::String(text)) => Url::parse(text, true).ok(),
            _ => None,
        };
        if let Some(mut parsed) = parsed {
            if !self.subdir.is_empty() && parsed.query.get("dir") == Some(&self.subdir) {
                parsed.query.remove("dir");
            }
            result.input.set("url", parsed.to_string());
        }
        result
    }

    /// An indirect reference to `id`, which is what an input without a URL means.
    pub(super) fn indirect(id: &str) -> Result<FlakeRef, FlakeError> {
        FlakeRef::from_attrs(Attrs::from([("type".to_owned(), "indirect".into()), ("id".to_owned(), id.into())]))
    }
}

impl fmt::Display for FlakeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_url_string() {
            Ok(url) => f.write_str(&url),
            Err(_) => attrs_to_json(&self.to_attrs()).fmt(f),
        }
    }
}

fn from_url(mut url: Url, options: ParseOptions<'_>) -> Result<ParsedRef, FlakeError> {
    let subdir = url.query.remove("dir").unwrap_or_default();
    let fragment = std::mem::take(&mut url.fragment);
    let input = Input::from_url(&url, options.is_flake)?;
    Ok(ParsedRef { flake_ref: FlakeRef { input, subdir }, fragment, notes: Vec::new() })
}

/// An abbreviated reference: `id`, `id/ref`, `id/rev` or `id/ref/rev`.
fn parse_id(text: &str, options: ParseOptions<'_>) -> Result<Option<ParsedRef>, FlakeError> {
    let (head, fragment) = text.split_once('#').unwrap_or((text, ""));
    let in_fragment = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'\"()*+,;=:@/? ^%".contains(&byte);
    let (id, rest) = head.split_once('/').map_or((head, None), |(id, rest)| (id, Some(rest)));
    if !is_flake_id(id) || !rest.is_none_or(matches_ref) || !fragment.bytes().all(in_fragment) {
        return Ok(None);
    }
    let Ok(fragment) = url::decode(fragment) else { return Ok(None) };
    let url = Url { scheme: "flake".to_owned(), path: head.split('/').map(str::to_owned).collect(), ..Url::default() };
    let parsed = from_url(url, options)?;
    Ok(Some(ParsedRef { fragment, ..parsed }))
}

/// A path, with a query and a fragment perhaps.
fn parse_path(text: &str, options: ParseOptions<'_>) -> Result<ParsedRef, FlakeError> {
    let (head, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (path, query) = head.split_once('?').unwrap_or((head, ""));
    if fragment.contains(['\n', '\r']) {
        return Err(FlakeError::Reference(format!("invalid flakeref '{text}'")));
    }
    let mut result = Url {
        scheme: "path".to_owned(),
        query: url::parse_query(query)?,
        fragment: url::decode(fragment)?,
        ..Url::default()
    };
    let mut notes = Vec::new();
    let mut path = path.to_owned();
    if let Some(base_dir) = options.base_dir {
        path = absolute(&path, base_dir)?;
        if options.is_flake {
            let found = find_flake(PathBuf::from(path), options.allow_missing, &mut notes)?;
            path = path_text(&found)?;
            if let Some((repository, subdir)) = repository_of(&found) {
                result.scheme = "git+file".to_owned();
                if !subdir.as_os_str().is_empty() {
                    if result.query.contains_key("dir") {
                        return Err(FlakeError::Reference(format!(
                            "flake URL '{text}' has an inconsistent 'dir' parameter"
                        )));
                    }
                    result.query.insert("dir".to_owned(), path_text(&subdir)?);
                }
                if repository.join(".git/shallow").exists() {
                    result.query.insert("shallow".to_owned(), "1".to_owned());
                }
                path = path_text(&repository)?;
            }
        }
    } else if !options.preserve_relative_paths && !path.starts_with('/') {
        return Err(FlakeError::BadUrl(format!("flake reference '{text}' is not an absolute path")));
    }
    if path.starts_with('/') {
        result.authority = Some(url::Authority::default());
    }
    result.path = url::path_segments(&path);
    let parsed = from_url(result, options)?;
    Ok(ParsedRef { notes, ..parsed })
}

/// `path` from `base_dir`, canonical, its links resolved as far as it exists.
fn absolute(path: &str, base_dir: &Path) -> Result<String, FlakeError> {
    let joined = base_dir.join(path);
    let resolved = fs::SymlinkResolver::default().resolve(&fs::RealFs, &joined, fs::Resolve::Full)?;
    path_text(&resolved)
}

fn path_text(path: &Path) -> Result<String, FlakeError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| FlakeError::BadUrl(format!("path \"{}\" is not valid UTF-8", path.display())))
}

/// The directory with `flake.nix` that `path` is in.
fn find_flake(path: PathBuf, allow_missing: bool, notes: &mut Vec<String>) -> Result<PathBuf, FlakeError> {
    let device = |path: &Path| {
        std::fs::symlink_metadata(path)
            .map_err(|error| FlakeError::Fs(fs::FsError::new(fs::Operation::Stat, path, error)))
    };
    let mut path = path;
    let metadata = device(&path)?;
    if !metadata.is_dir() {
        match path.parent() {
            Some(parent) if path.file_name().is_some_and(|name| name == "flake.nix") => {
                notes.push(format!(
                    "Path \"{}\" should point at the directory containing the 'flake.nix' file, not the file itself. \
                     Pretending that you meant \"{}\"",
                    path.display(),
                    parent.display()
                ));
                path = parent.to_owned();
            }
            _ => {
                return Err(FlakeError::BadUrl(format!(
                    "path \"{}\" is not a flake (because it's not a directory)",
                    path.display()
                )));
            }
        }
    }
    let holds = |path: &Path, name: &str| path.join(name).symlink_metadata().is_ok();
    if allow_missing || holds(&path, "flake.nix") {
        return Ok(path);
    }
    notes.push(format!("path \"{}\" does not contain a 'flake.nix', searching up", path.display()));
    let start = device(&path)?.dev();
    while path != Path::new("/") {
        if holds(&path, "flake.nix") {
            return Ok(path);
        }
        if holds(&path, ".git") {
            return Err(FlakeError::Reference(format!(
                "path \"{}\" is not part of a flake (neither it nor its parent directories contain a 'flake.nix' file)",
                path.display()
            )));
        }
        if device(&path)?.dev() != start {
            return Err(FlakeError::Reference(format!(
                "unable to find a flake before encountering filesystem boundary at \"{}\"",
                path.display()
            )));
        }
        path.pop();
    }
    Err(FlakeError::BadUrl("could not find a flake.nix file".to_owned()))
}

/// The Git repository that `path` is in, and the path from its root.
fn repository_of(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let root = path
        .ancestors()
        .filter(|ancestor| *ancestor != Path::new("/"))
        .find(|ancestor| ancestor.join(".git").symlink_metadata().is_ok())?;
    Some((root.to_owned(), path.strip_prefix(root).ok()?.to_owned()))
}
