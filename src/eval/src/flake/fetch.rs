//! Sources: from an input to a store path and the files below it.
//!
//! A source of this machine is read where it is (a directory, a working directory with the tracked files alone, the objects
//! of a Git repository, the store); one of another machine is downloaded into a cache. Its NAR is hashed, and the store path
//! that follows from the hash is mounted into the file system that the evaluator reads; the store itself is never written to.
//! When a lock file gives the hash, the store path is known without reading anything; such a source is read, and verified,
//! when the first file of it is.

use super::archive::PackedFs;
use super::cache::{FetchCache, Known};
use super::error::FlakeError;
use super::forge::Repository;
use super::git::{FetchSubmodule, GitRepository};
use super::git_cli;
use super::http::{Contents, HttpClient, Reply, RequestHeader};
use super::reference::{Attr, Input, Scheme, attrs_to_json};
use super::registry::{self, UseRegistries};
use super::settings::{FetchSettings, RegistryEntry};
use super::url::Url;
use crate::fs::{self, FileSet, FileSystem, FileType, FsError, LazyMount, Mount, Operation, OverlayFs};
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::hash::{Hash, HashAlgo};
use bento_store::nar::{self, NarError};
use bento_store::store_path::{StoreDir, StorePath};
use serde_json::json;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tempfile::TempDir;

/// A source, mounted at its store path.
#[derive(Clone, Debug)]
pub struct SourceTree {
    /// Its store path.
    pub store_path: StorePath,
    /// The input that it was fetched from, with all that was found out on the way: `narHash`, `rev`, `lastModified`...
    pub input: Input,
    /// The working directory that it is, if it is one.
    work_tree: Option<PathBuf>,
}

/// The metadata of a source, as a flake's `sourceInfo` and the result of `builtins.fetchTree` have them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SourceInfo {
    /// The hash of the NAR, in SRI form.
    pub nar_hash: Option<String>,
    /// Of Git inputs: whether submodules are included.
    pub submodules: Option<bool>,
    /// The commit.
    pub rev: Option<String>,
    /// The number of commits that lead to it.
    pub rev_count: Option<u64>,
    /// The commit that a dirty working directory is based on, with `-dirty`.
    pub dirty_rev: Option<String>,
    /// The same, its digits cut to seven.
    pub dirty_short_rev: Option<String>,
    /// When it was last modified, in seconds since the epoch.
    pub last_modified: Option<u64>,
}

impl SourceInfo {
    /// What `input` tells.
    ///
    /// # Errors
    /// When an attribute is malformed.
    pub fn of(input: &Input) -> Result<SourceInfo, FlakeError> {
        Ok(SourceInfo {
            nar_hash: input.nar_hash()?.map(|hash| hash.to_sri()),
            submodules: match input.scheme() {
                Some(Scheme::Git) => Some(input.bool("submodules")?),
                _ => None,
            },
            rev: input.rev()?,
            rev_count: input.rev_count()?,
            dirty_rev: input.maybe_string("dirtyRev")?.map(str::to_owned),
            dirty_short_rev: input.maybe_string("dirtyShortRev")?.map(str::to_owned),
            last_modified: input.last_modified()?,
        })
    }

    /// The commit's first seven digits.
    #[must_use]
    pub fn short_rev(&self) -> Option<&str> {
        self.rev.as_ref().map(|rev| rev.get(..7).unwrap_or(rev))
    }

    /// `last_modified` in UTC, as `20251130235959`. `None` also for a time beyond the year 9999.
    #[must_use]
    pub fn last_modified_date(&self) -> Option<String> {
        let time = jiff::Timestamp::from_second(i64::try_from(self.last_modified?).ok()?).ok()?;
        Some(time.strftime("%Y%m%d%H%M%S").to_string())
    }

    /// The metadata of a flake whose lock file was changed in memory: it is no longer that commit.
    #[must_use]
    pub fn forced_dirty(mut self) -> SourceInfo {
        self.rev = None;
        self.rev_count = None;
        self
    }
}

/// A source that was read.
#[derive(Clone)]
struct Reading {
    mount: Mount,
    hash: Hash,
    /// The input with what was found out.
    input: Input,
    work_tree: Option<PathBuf>,
}

/// Where sources are looked for.
struct Places {
    local: Rc<dyn FileSystem>,
    store: StoreDir,
    settings: FetchSettings,
    http: HttpClient,
    /// Where what is fetched is kept, once that is needed; the directory is one that goes with the evaluation.
    cache: OnceCell<(FetchCache, Option<TempDir>)>,
    warn: Rc<dyn Fn(&str)>,
}

/// Fetches inputs and mounts them. One is meant to live as long as an evaluation: it fetches each input once.
pub struct Fetcher {
    overlay: Rc<OverlayFs>,
    places: Rc<Places>,
    fetched: RefCell<HashMap<Input, Rc<SourceTree>>>,
    /// The user's, the machine's and everybody's registry, as far as they were needed.
    registries: [OnceCell<Vec<RegistryEntry>>; 3],
}

impl Fetcher {
    /// A fetcher that reads from `local`, mounts into `overlay` (whose base should be `local` and whose store directory
    /// `store`) and tells `warn` what the user should know.
    pub fn new(
        overlay: Rc<OverlayFs>,
        local: Rc<dyn FileSystem>,
        store: StoreDir,
        settings: FetchSettings,
        warn: Rc<dyn Fn(&str)>,
    ) -> Self {
        let places = Rc::new(Places { local, store, settings, http: HttpClient::new(), cache: OnceCell::new(), warn });
        Fetcher { overlay, places, fetched: RefCell::default(), registries: Default::default() }
    }

    /// How it fetches.
    pub(super) fn settings(&self) -> &FetchSettings {
        &self.places.settings
    }

    /// What `input` stands for according to `use_registries` if it is a name, else itself; and the directory of the flake in
    /// there, if the registry says it.
    ///
    /// # Errors
    /// When it is a name that is not known, or a registry that may know it can't be had.
    pub fn resolve(&self, input: &Input, use_registries: UseRegistries) -> Result<(Input, Option<String>), FlakeError> {
        if input.is_direct() {
            return Ok((input.clone(), None));
        }
        let settings = &self.places.settings.registries;
        let all = match use_registries {
            UseRegistries::No => {
                let message = format!("'{input}' is an indirect flake reference, but registry lookups are not allowed");
                return Err(FlakeError::Reference(message));
            }
            UseRegistries::Limited => false,
            UseRegistries::All => true,
        };
        let [user, system, global] = &self.registries;
        registry::look_up(input, |number, found| {
            Ok(match number {
                0 => Some(settings.overrides.as_slice()),
                1 | 2 if !all => Some(&[]),
                1 => Some(self.local_registry(user, settings.user.as_deref())),
                2 => Some(self.local_registry(system, settings.system.as_deref())),
                3 if settings.global.starts_with('/') => {
                    Some(self.local_registry(global, Some(Path::new(&settings.global))))
                }
                // it gives names a meaning, no more, and need not be asked about anything else
                3 if !settings.global.is_empty() && !found.is_direct() => Some(match global.get() {
                    Some(entries) => entries,
                    None => {
                        let entries = self.download_registry(input)?;
                        global.get_or_init(|| entries)
                    }
                }),
                3 => Some(&[]),
                _ => None,
            })
        })
    }

    fn local_registry<'f>(
        &self,
        registry: &'f OnceCell<Vec<RegistryEntry>>,
        file: Option<&Path>,
    ) -> &'f [RegistryEntry] {
        registry.get_or_init(|| file.map_or_else(Vec::new, |file| self.read_registry(file)))
    }

    /// The entries of a registry. One that can't be read counts as empty, which is said.
    fn read_registry(&self, file: &Path) -> Vec<RegistryEntry> {
        let read = || {
            let resolved = fs::SymlinkResolver::default().resolve(&*self.places.local, file, fs::Resolve::Full)?;
            if !self.places.local.exists(&resolved)? {
                return Ok(Vec::new());
            }
            registry::parse(&self.places.local.read_file(&resolved)?)
        };
        read().unwrap_or_else(|error: FlakeError| {
            self.warn(&format!("cannot read flake registry '{}': {error}", file.display()));
            Vec::new()
        })
    }

    /// The registry that everybody has, in which `input` is to be looked up.
    fn download_registry(&self, input: &Input) -> Result<Vec<RegistryEntry>, FlakeError> {
        let url = &self.places.settings.registries.global;
        let file = self
            .places
            .download(url, &[])
            .map_err(|error| error.while_doing(format!("while looking up '{input}' in the flake registry '{url}'")))?;
        registry::parse(&file).map_err(|error| error.while_doing(format!("while reading the flake registry '{url}'")))
    }

    /// Forgets what was fetched for `input`, because it was changed since.
    pub(super) fn forget(&self, input: &Input) {
        self.fetched.borrow_mut().remove(input);
    }

    /// The file system that everything is mounted into.
    #[must_use]
    pub fn overlay(&self) -> &Rc<OverlayFs> {
        &self.overlay
    }

    /// The store directory.
    #[must_use]
    pub fn store(&self) -> &StoreDir {
        &self.places.store
    }

    pub(super) fn warn(&self, message: &str) {
        (self.places.warn)(message);
    }

    /// Reads the source that `input` stands for right now, and mounts it.
    ///
    /// # Errors
    /// When it is not on this machine, cannot be read, or isn't what `input` says it is.
    pub fn fetch(&self, input: &Input) -> Result<Rc<SourceTree>, FlakeError> {
        if let Some(known) = self.fetched.borrow().get(input) {
            return Ok(known.clone());
        }
        let reading = self
            .places
            .read(input)
            .map_err(|error| error.while_doing(format!("while fetching the input '{input}'")))?;
        let tree = self.mount(reading)?;
        check_attrs(input, &tree.input)?;
        self.fetched.borrow_mut().insert(input.clone(), tree.clone());
        Ok(tree)
    }

    /// Mounts the source of an entry of a lock file. If its NAR hash is known it is read when something in it is.
    ///
    /// # Errors
    /// When the entry is malformed; without a NAR hash, as [`Fetcher::fetch`].
    pub fn fetch_locked(&self, input: &Input) -> Result<Rc<SourceTree>, FlakeError> {
        let Some(hash) = input.nar_hash()? else {
            let tree = self.fetch(input)?;
            let mut input = input.clone();
            input.set("narHash", tree.input.string("narHash")?);
            return Ok(Rc::new(SourceTree { input, ..(*tree).clone() }));
        };
        let store_path = self.places.store_path(input, hash)?;
        let path = self.places.store.print(&store_path);
        if !self.overlay.is_mounted(Path::new(&path)) {
            let places = self.places.clone();
            let lazy = LockedSource { places, input: input.clone(), hash, path: path.clone() };
            self.overlay.mount(Path::new(&path), Mount::Lazy(Rc::new(lazy)));
        }
        // spelled out, as the lock file may leave out the padding
        let mut input = input.clone();
        input.set("narHash", hash.to_sri());
        Ok(Rc::new(SourceTree { store_path, input, work_tree: None }))
    }

    fn mount(&self, reading: Reading) -> Result<Rc<SourceTree>, FlakeError> {
        let Reading { mount, hash, mut input, work_tree } = reading;
        if let Some(expected) = input.nar_hash()?.filter(|expected| *expected != hash) {
            return Err(nar_mismatch(&input, expected, hash));
        }
        let store_path = self.places.store_path(&input, hash)?;
        input.set("narHash", hash.to_sri());
        self.overlay.mount(Path::new(&self.places.store.print(&store_path)), mount);
        Ok(Rc::new(SourceTree { store_path, input, work_tree }))
    }
}

fn nar_mismatch(input: &Input, expected: Hash, got: Hash) -> FlakeError {
    FlakeError::NarHashMismatch { input: input.to_string(), expected: expected.to_sri(), got: got.to_sri() }
}

/// Checks that what was found out agrees with what was asked for.
fn check_attrs(wanted: &Input, found: &Input) -> Result<(), FlakeError> {
    for name in ["lastModified", "rev", "revCount"] {
        let (Some(want), have) = (wanted.attrs().get(name), found.attrs().get(name)) else { continue };
        if have != Some(want) {
            let show = |attr: &Attr| serde_json::Value::from(attr).to_string();
            return Err(FlakeError::Source(format!(
                "'{name}' attribute mismatch in input '{wanted}', expected {}, got {}",
                show(want),
                have.map_or_else(|| "none".to_owned(), show)
            )));
        }
    }
    Ok(())
}

impl SourceTree {
    /// The source with the path `store_path`, known already, as the input that is a directory in there.
    pub(super) fn inside(store_path: StorePath, input: Input) -> Self {
        SourceTree { store_path, input, work_tree: None }
    }

    /// The error for a file, given by its path from the root, that should be in this source but isn't.
    pub(super) fn missing_file(&self, store: &StoreDir, relative: &str) -> FlakeError {
        if let Some(repository) = &self.work_tree {
            let repository_name = repository.display();
            return FlakeError::Source(if repository.join(relative).symlink_metadata().is_ok() {
                format!(
                    "Path '{relative}' in the repository \"{repository_name}\" is not tracked by Git.\n\n\
                     To make it visible to Nix, run:\n\n\
                     git -C \"{repository_name}\" add \"{relative}\""
                )
            } else {
                format!("Path '{relative}' does not exist in Git repository \"{repository_name}\".")
            });
        }
        let path = PathBuf::from(store.print(&self.store_path)).join(relative);
        FsError::new(Operation::Stat, &path, io::ErrorKind::NotFound.into()).into()
    }
}

/// A locked source that nothing was read from yet.
struct LockedSource {
    places: Rc<Places>,
    input: Input,
    hash: Hash,
    path: String,
}

impl LazyMount for LockedSource {
    fn realise(&self) -> Result<Mount, Box<dyn Error + Send + Sync>> {
        let attempt = || {
            // what is in the store was verified when it got there
            if let Some(mount) = self.places.kept(&self.path, self.hash)? {
                return Ok(mount);
            }
            let reading = self.places.read(&self.input)?;
            if reading.hash != self.hash {
                return Err(nar_mismatch(&self.input, self.hash, reading.hash));
            }
            check_attrs(&self.input, &reading.input)?;
            Ok(reading.mount)
        };
        attempt().map_err(|error: FlakeError| {
            // the file system's errors are texts from here on
            error.while_doing(format!("while fetching the input '{}'", self.input)).to_string().into()
        })
    }
}

impl Places {
    fn store_path(&self, input: &Input, hash: Hash) -> Result<StorePath, FlakeError> {
        let address = ContentAddress { method: ContentAddressMethod::NixArchive, hash };
        self.store
            .make_fixed_output_path(input.name()?, &address)
            .map_err(|error| FlakeError::Source(format!("input '{input}': {error}")))
    }

    /// What the store or the cache has of the source with this store path and NAR hash.
    fn kept(&self, path: &str, hash: Hash) -> Result<Option<Mount>, FlakeError> {
        let root = PathBuf::from(path);
        if self.local.exists(&root)? {
            return Ok(Some(Mount::Tree { fs: self.local.clone(), root, filter: None }));
        }
        // not made for this: where nothing was ever kept, nothing is
        let cache = match self.cache.get() {
            Some((cache, _)) => Some(cache.clone()),
            None => self.settings.cache.clone().map(FetchCache::new),
        };
        Ok(cache.and_then(|cache| cache.tree(hash)).map(Mount::real))
    }

    /// Where what is fetched is kept.
    fn cache(&self) -> Result<&FetchCache, FlakeError> {
        if let Some((cache, _)) = self.cache.get() {
            return Ok(cache);
        }
        let (cache, temporary) = match &self.settings.cache {
            Some(directory) => (FetchCache::new(directory.clone()), None),
            None => {
                let failed = |error| FlakeError::Source(format!("cannot make a temporary directory: {error}"));
                let directory = tempfile::tempdir().map_err(failed)?;
                (FetchCache::new(directory.path().to_owned()), Some(directory))
            }
        };
        Ok(&self.cache.get_or_init(|| (cache, temporary)).0)
    }

    /// Reads what `input` is now.
    fn read(&self, input: &Input) -> Result<Reading, FlakeError> {
        let Some(scheme) = input.scheme() else {
            let attrs = attrs_to_json(input.attrs());
            return Err(FlakeError::Source(format!("cannot fetch unsupported input '{attrs}'")));
        };
        if scheme == Scheme::Path {
            return self.read_path(input);
        }
        if scheme == Scheme::Git
            && let Some(repository) = local_repository(input)?
        {
            return self.read_git(input, &repository);
        }
        if matches!(scheme, Scheme::Tarball | Scheme::File)
            && let Some(file) = local_file(input)?
        {
            return self.read_file(input, &file, scheme == Scheme::Tarball);
        }
        // with its hash, and if it is known in full, it doesn't matter where it comes from
        if tells_all(input)?
            && let Some(reading) = self.read_kept(input)?
        {
            return Ok(reading);
        }
        let result = match scheme {
            Scheme::Git => self.read_remote_git(input),
            Scheme::Tarball | Scheme::File => self.read_remote_file(input, scheme == Scheme::Tarball),
            Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut => self.read_forge(input),
            Scheme::Indirect => {
                Err(FlakeError::Reference(format!("indirect input '{input}' cannot be fetched directly")))
            }
            Scheme::Mercurial => self.read_kept(input)?.ok_or_else(|| FlakeError::Unavailable {
                input: input.to_string(),
                reason: "Mercurial repositories are not supported; an archive of it, or a Git repository, is"
                    .to_owned(),
            }),
            Scheme::Path => self.read_path(input),
        };
        match result {
            Err(FlakeError::Download { url, reason }) => {
                if let Some(reading) = self.read_kept(input)? {
                    return Ok(reading);
                }
                let way_out = match input.nar_hash()? {
                    Some(hash) => format!(
                        "where there is no network, a copy in the store, '{}', would do",
                        self.store.print(&self.store_path(input, hash)?)
                    ),
                    None => {
                        "where there is no network, another source can be given: '--override-input', a registry, or, \
                             locked by its NAR hash, a copy in the store"
                            .to_owned()
                    }
                };
                Err(FlakeError::Unavailable {
                    input: input.to_string(),
                    reason: format!("unable to download '{url}': {reason}; {way_out}"),
                })
            }
            other => other,
        }
    }

    /// A source whose hash is known, from the store or the cache.
    fn read_kept(&self, input: &Input) -> Result<Option<Reading>, FlakeError> {
        let Some(hash) = input.nar_hash()? else { return Ok(None) };
        let path = self.store.print(&self.store_path(input, hash)?);
        Ok(self.kept(&path, hash)?.map(|mount| Reading { mount, hash, input: input.clone(), work_tree: None }))
    }

    /// A source that was kept earlier, about which `known` was noted.
    fn read_known(&self, input: &Input, known: &Known) -> Result<Option<Reading>, FlakeError> {
        let Some(hash) = known.nar_hash() else { return Ok(None) };
        let mut plain = input.clone();
        plain.set("narHash", hash.to_sri());
        let Some(Reading { mount, .. }) = self.read_kept(&plain)? else { return Ok(None) };
        Ok(Some(Reading { mount, hash, input: input.clone(), work_tree: None }))
    }

    /// Keeps a source that was just fetched.
    fn keep(&self, tree: &dyn FileSystem) -> Result<(Mount, Hash), FlakeError> {
        let root = Path::new("/");
        let (hash, _) = hash_tree(tree, root, None)?;
        Ok((Mount::real(self.cache()?.add_tree(tree, root, hash)?), hash))
    }

    /// The contents of what is at `url`: a small file, which may change.
    fn download(&self, url: &str, headers: &[RequestHeader]) -> Result<Vec<u8>, FlakeError> {
        if let Some(file) = local_path(url) {
            return Ok(self.local.read_file(&file)?);
        }
        let cache = self.cache()?;
        let key = json!({"type": "text", "url": url});
        let known = cache.look_up(&key).filter(|known| known.text("text").is_some());
        let contents = |known: &Known| known.text("text").unwrap_or_default().as_bytes().to_vec();
        if let Some(known) = known.as_ref().filter(|known| known.is_fresh(self.settings.ttl)) {
            return Ok(contents(known));
        }
        let etag = known.as_ref().and_then(|known| known.text("etag")).unwrap_or_default();
        match (self.http.get(&self.settings, url, headers, etag), known) {
            (Ok(Reply::Contents(Contents { mut file, etag, .. })), _) => {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(|error| FlakeError::Download {
                    url: url.to_owned(),
                    reason: format!("it is no text: {error}"),
                })?;
                let mut attrs = serde_json::Map::new();
                attrs.insert("etag".to_owned(), etag.into());
                attrs.insert("text".to_owned(), text.as_str().into());
                cache.note(&key, &attrs)?;
                Ok(text.into_bytes())
            }
            (Ok(Reply::Unchanged), Some(known)) => {
                cache.note(&key, &known.attrs)?;
                Ok(contents(&known))
            }
            (Ok(Reply::Unchanged), None) => Err(FlakeError::Download {
                url: url.to_owned(),
                reason: "the server says that nothing changed, but it was never asked before".to_owned(),
            }),
            (Err(error), Some(known)) => {
                (self.warn)(&format!("{error}; using cached version"));
                Ok(contents(&known))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// A repository on GitHub, GitLab or SourceHut.
    fn read_forge(&self, input: &Input) -> Result<Reading, FlakeError> {
        let Some(repository) = Repository::of(input)? else {
            return Err(FlakeError::Source(format!("'{input}' is not on a forge")));
        };
        let headers = repository.headers(&self.settings, &*self.warn);
        let rev = match input.rev()? {
            Some(rev) => rev,
            None => {
                let reference = input.reference()?.unwrap_or("HEAD");
                repository.commit(reference, |url| self.download(url, &headers))?
            }
        };
        let mut found = input.clone();
        found.remove("ref");
        found.set("rev", rev.as_str());
        let cache = self.cache()?;
        // a commit is the same with and without a token
        let key = json!({"type": "forge", "url": repository.archive(&rev, false)});
        if let Some(known) = cache.look_up(&key)
            && let (Some(reading), Some(time)) = (self.read_known(&found, &known)?, known.number("lastModified"))
        {
            found.set("lastModified", time);
            return Ok(Reading { input: found, ..reading });
        }
        let url = repository.archive(&rev, !headers.is_empty());
        let Reply::Contents(contents) = self.http.get(&self.settings, &url, &headers, "")? else {
            let reason = "the server says that nothing changed, but it was never asked before".to_owned();
            return Err(FlakeError::Download { url, reason });
        };
        let (tree, newest) = PackedFs::unpack(contents.file, &url)?;
        let (mount, hash) = self.keep(&tree)?;
        found.set("lastModified", newest);
        let mut attrs = serde_json::Map::new();
        attrs.insert("narHash".to_owned(), hash.to_sri().into());
        attrs.insert("lastModified".to_owned(), newest.into());
        cache.note(&key, &attrs)?;
        Ok(Reading { mount, hash, input: found, work_tree: None })
    }

    /// A file of another machine, or what is packed into it.
    fn read_remote_file(&self, input: &Input, unpack: bool) -> Result<Reading, FlakeError> {
        let url = input.string("url")?;
        let cache = self.cache()?;
        let key = json!({"type": if unpack { "tarball" } else { "file" }, "url": url});
        let known = match cache.look_up(&key) {
            None => None,
            Some(known) => self.read_known(input, &known)?.map(|reading| (known, reading)),
        };
        if let Some((known, reading)) = known.as_ref().filter(|(known, _)| known.is_fresh(self.settings.ttl)) {
            return described(reading.clone(), known);
        }
        let etag = known.as_ref().and_then(|(known, _)| known.text("etag")).unwrap_or_default();
        match (self.http.get(&self.settings, url, &[], etag), known) {
            (Ok(Reply::Contents(contents)), _) => {
                let mut attrs = serde_json::Map::new();
                attrs.insert("etag".to_owned(), contents.etag.into());
                let (tree, newest) = if unpack {
                    PackedFs::unpack(contents.file, url)?
                } else {
                    (PackedFs::of_file(contents.file, url)?, 0)
                };
                let (mount, hash) = self.keep(&tree)?;
                attrs.insert("narHash".to_owned(), hash.to_sri().into());
                if unpack {
                    attrs.insert("lastModified".to_owned(), newest.into());
                    attrs.extend(contents.immutable_url.map(|url| ("immutableUrl".to_owned(), url.into())));
                }
                cache.note(&key, &attrs)?;
                let known = Known::now(attrs);
                described(Reading { mount, hash, input: input.clone(), work_tree: None }, &known)
            }
            (Ok(Reply::Unchanged), Some((known, reading))) => {
                cache.note(&key, &known.attrs)?;
                described(reading, &known)
            }
            (Ok(Reply::Unchanged), None) => Err(FlakeError::Download {
                url: url.to_owned(),
                reason: "the server says that nothing changed, but it was never asked before".to_owned(),
            }),
            (Err(error), Some((known, reading))) => {
                (self.warn)(&format!("{error}; using cached version"));
                described(reading, &known)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn read_path(&self, input: &Input) -> Result<Reading, FlakeError> {
        let text = input.string("path")?;
        if !text.starts_with('/') {
            return Err(FlakeError::Source(format!("cannot fetch input '{input}' because it uses a relative path")));
        }
        let root = fs::canonical(text.as_bytes());
        let mount = Mount::Tree { fs: self.local.clone(), root: root.clone(), filter: None };
        if !self.local.exists(&root)? {
            return Err(FsError::new(Operation::Stat, &root, io::ErrorKind::NotFound.into()).into());
        }
        let (hash, modified) = hash_tree(&*self.local, &root, None)?;
        let mut input = input.clone();
        if input.last_modified()?.is_none() {
            // all times in the store are the same
            let in_store = self.store.parse(fs::bytes_of(&root)).is_ok_and(|path| path.name() == "source");
            input.set("lastModified", if in_store { 0 } else { u64::try_from(modified).unwrap_or(0) });
        }
        Ok(Reading { mount, hash, input, work_tree: None })
    }

    /// A local file, or what is packed into it.
    fn read_file(&self, input: &Input, path: &Path, unpack: bool) -> Result<Reading, FlakeError> {
        let mut input = input.clone();
        let name = path.to_string_lossy();
        let open = || {
            let resolved = fs::SymlinkResolver::default().resolve(&*self.local, path, fs::Resolve::Full)?;
            std::fs::File::open(&resolved)
                .map_err(|error| FlakeError::from(FsError::new(Operation::ReadFile, path, error)))
        };
        let (tree, newest) = if unpack {
            refuse_directories(&*self.local, path)?;
            PackedFs::unpack(open()?, &name)?
        } else {
            (PackedFs::of_file(open()?, &name)?, 0)
        };
        let (tree, root): (Rc<dyn FileSystem>, _) = (Rc::new(tree), PathBuf::from("/"));
        let (hash, _) = hash_tree(&*tree, &root, None)?;
        if newest != 0 && input.last_modified()?.is_none() {
            input.set("lastModified", newest);
        }
        Ok(Reading { mount: Mount::Tree { fs: tree, root, filter: None }, hash, input, work_tree: None })
    }

    fn read_git(&self, input: &Input, path: &Path) -> Result<Reading, FlakeError> {
        if !self.local.exists(path)? {
            return Err(FlakeError::Source(format!("Git repository \"{}\" does not exist", path.display())));
        }
        let repository = GitRepository::open(path)?;
        let by_commit = input.reference()?.is_some() || input.rev()?.is_some() || repository.is_bare();
        if by_commit {
            self.read_local_commit(input, path, &repository)
        } else {
            self.read_work_tree(input, path, &repository)
        }
    }

    /// A commit of a repository of this machine.
    fn read_local_commit(&self, input: &Input, path: &Path, repository: &GitRepository) -> Result<Reading, FlakeError> {
        let reference = match input.reference()? {
            Some(reference) => reference.to_owned(),
            None => repository.head_ref()?.unwrap_or_else(|| self.no_head(&path.display().to_string())),
        };
        let commit = match input.rev()? {
            None => repository.resolve(&reference)?,
            Some(rev) => find_commit(repository, &rev, &reference, &path.display().to_string())?,
        };
        self.read_commit(input, repository, reference, commit)
    }

    fn no_head(&self, repository: &str) -> String {
        (self.warn)(&format!("could not read HEAD ref from repo at '{repository}', using 'master'"));
        "master".to_owned()
    }

    /// A commit of a repository of another machine, by way of a clone in the cache.
    fn read_remote_git(&self, input: &Input) -> Result<Reading, FlakeError> {
        let mut url = Url::parse(input.string("url")?, false)?;
        // old lock files have it in the address
        url.query.remove("dir");
        let url = url.to_string();
        let reference = match input.reference()? {
            Some(reference) => reference.to_owned(),
            None => self.remote_head(&url)?.unwrap_or_else(|| self.no_head(&url)),
        };
        let rev = input.rev()?;
        let shallow = input.bool("shallow")?;
        let repository = self.clone_of(&url, &reference, rev.as_deref(), input.bool("allRefs")?, shallow)?;
        let commit = match rev {
            None => repository.resolve(&reference)?,
            Some(rev) => find_commit(&repository, &rev, &reference, &url)?,
        };
        self.read_commit(input, &repository, reference, commit)
    }

    /// The branch that a repository of another machine has checked out.
    fn remote_head(&self, url: &str) -> Result<Option<String>, FlakeError> {
        let cache = self.cache()?;
        let key = json!({"type": "git-head", "url": url});
        let known = cache.look_up(&key);
        let reference = |known: &Known| known.text("ref").map(str::to_owned);
        if let Some(known) = known.as_ref().filter(|known| known.is_fresh(self.settings.ttl)) {
            return Ok(reference(known));
        }
        self.use_network(url)?;
        match (git_cli::remote_head(url), known) {
            (Ok(head), _) => {
                let mut attrs = serde_json::Map::new();
                attrs.extend(head.as_ref().map(|head| ("ref".to_owned(), head.as_str().into())));
                cache.note(&key, &attrs)?;
                Ok(head)
            }
            (Err(_), Some(known)) => Ok(reference(&known)),
            (Err(error), None) => Err(error),
        }
    }

    fn use_network(&self, url: &str) -> Result<(), FlakeError> {
        if self.settings.network {
            return Ok(());
        }
        Err(FlakeError::Download { url: url.to_owned(), reason: "the network is not to be used".to_owned() })
    }

    /// The clone of the repository at `url`, with the commit `rev` in it, or else with what `reference` is now.
    fn clone_of(
        &self,
        url: &str,
        reference: &str,
        rev: Option<&str>,
        all_refs: bool,
        shallow: bool,
    ) -> Result<GitRepository, FlakeError> {
        let cache = self.cache()?;
        let (directory, _lock) = cache.clone_of(url, shallow)?;
        let repository = GitRepository::open_clone(&directory, url)?;
        let full = if reference.starts_with("refs/") || reference == "HEAD" {
            reference.to_owned()
        } else {
            format!("refs/heads/{reference}")
        };
        let key = json!({"type": "git-ref", "url": url, "ref": full, "shallow": shallow});
        let is_current = match rev {
            Some(rev) => repository.find_commit(rev)?.is_some(),
            None => {
                let fresh = cache.look_up(&key).is_some_and(|known| known.is_fresh(self.settings.ttl));
                !all_refs && fresh && repository.has_ref(&full)
            }
        };
        if is_current {
            return Ok(repository);
        }
        let refspec = match rev {
            _ if all_refs => "refs/*:refs/*".to_owned(),
            Some(rev) => rev.to_owned(),
            None => format!("{full}:{full}"),
        };
        let fetched = self.use_network(url).and_then(|()| git_cli::fetch(&directory, url, &refspec, shallow));
        match fetched {
            Ok(()) if rev.is_none() => cache.note(&key, &serde_json::Map::new())?,
            Ok(()) => {}
            Err(error) if !repository.has_ref(&full) => return Err(error),
            Err(error) => (self.warn)(&format!(
                "could not update local clone of Git repository '{url}'; continuing with the most recent version: {error}"
            )),
        }
        // what was fetched is seen by who opens it anew
        GitRepository::open_clone(&directory, url)
    }

    fn read_commit(
        &self,
        input: &Input,
        repository: &GitRepository,
        reference: String,
        commit: git2::Oid,
    ) -> Result<Reading, FlakeError> {
        let mut input = input.clone();
        let shallow = input.bool("shallow")?;
        if repository.is_shallow() && !shallow {
            return Err(FlakeError::Source(format!(
                "'{}' is a shallow Git repository, but shallow repositories are only allowed when `shallow = true;` is \
                 specified",
                repository.path().display()
            )));
        }
        input.set("ref", reference.as_str());
        input.set("rev", commit.to_string());
        input.set("lastModified", repository.last_modified(commit)?);
        if !shallow {
            input.set("revCount", repository.rev_count(commit)?);
        }
        let submodule = |url: &str, branch: Option<&str>, commit: git2::Oid| {
            // `.`: the branch of the same name
            let branch = branch.map_or("HEAD", |branch| if branch == "." { &reference } else { branch });
            match local_path(url).or_else(|| url.starts_with('/').then(|| PathBuf::from(url))) {
                Some(path) => GitRepository::open(&path),
                None => self.clone_of(url, branch, Some(&commit.to_string()), true, false),
            }
        };
        let submodules: Option<FetchSubmodule<'_>> = if input.bool("submodules")? { Some(&submodule) } else { None };
        let tree: Rc<dyn FileSystem> = Rc::new(repository.tree(commit, submodules)?);
        let root = PathBuf::from("/");
        refuse_lfs(&input, &*tree, &root, None)?;
        let filter = without_export_ignored(&input, &*tree, &root, None, repository.path(), Some(commit))?.map(Rc::new);
        let (hash, _) = hash_tree(&*tree, &root, filter.as_deref())?;
        Ok(Reading { mount: Mount::Tree { fs: tree, root, filter }, hash, input, work_tree: None })
    }

    fn read_work_tree(&self, input: &Input, path: &Path, repository: &GitRepository) -> Result<Reading, FlakeError> {
        let mut input = input.clone();
        let mut files = FileSet::default();
        let submodules = input.bool("submodules")?;
        let work_tree = collect_work_tree(repository, path, b"", submodules, &mut files)?;
        let (head, dirty) = (work_tree.head, work_tree.dirty);
        if dirty {
            let message = format!("Git tree '{}' is dirty", path.display());
            if self.settings.refuse_dirty {
                return Err(FlakeError::Source(message));
            }
            if !self.settings.quiet_about_dirty {
                (self.warn)(&message);
            }
            if let Some(head) = head {
                let rev = head.to_string();
                input.set("dirtyShortRev", format!("{}-dirty", &rev[..7]));
                input.set("dirtyRev", format!("{rev}-dirty"));
            }
        } else {
            if let Some(reference) = repository.head_ref()? {
                input.set("ref", reference);
            }
            let rev = head.map_or_else(|| "0".repeat(40), |head| head.to_string());
            input.set("rev", rev);
            if !input.bool("shallow")? {
                input.set("revCount", head.map_or(Ok(0), |head| repository.rev_count(head))?);
            }
        }
        input.set("lastModified", head.map_or(Ok(0), |head| repository.last_modified(head))?);
        refuse_lfs(&input, &*self.local, path, Some(&files))?;
        let files = match without_export_ignored(&input, &*self.local, path, Some(&files), path, None)? {
            Some(kept) => kept,
            None => files,
        };
        let filter = Some(Rc::new(files));
        let (hash, _) = hash_tree(&*self.local, path, filter.as_deref())?;
        let mount = Mount::Tree { fs: self.local.clone(), root: path.to_owned(), filter };
        Ok(Reading { mount, hash, input, work_tree: Some(path.to_owned()) })
    }
}

/// Whether an input says all that fetching it would find out.
fn tells_all(input: &Input) -> Result<bool, FlakeError> {
    Ok(input.nar_hash()?.is_some()
        && match input.scheme() {
            Some(Scheme::File) => true,
            Some(Scheme::Tarball) => input.last_modified()?.is_some(),
            Some(Scheme::GitHub | Scheme::GitLab | Scheme::SourceHut) => {
                input.rev()?.is_some() && input.last_modified()?.is_some()
            }
            Some(Scheme::Git) => {
                let counted = input.rev_count()?.is_some() || input.bool("shallow")?;
                input.rev()?.is_some() && input.reference()?.is_some() && input.last_modified()?.is_some() && counted
            }
            _ => false,
        })
}

/// A file or archive of another machine with what is known of it: an address that will always lead to this version counts
/// for more than the one that was asked for.
fn described(mut reading: Reading, known: &Known) -> Result<Reading, FlakeError> {
    if let Some(url) = known.text("immutableUrl") {
        let name = reading.input.maybe_string("name")?.map(str::to_owned);
        reading.input = Input::parse_url(url)?;
        if let Some(name) = name {
            reading.input.set("name", name);
        }
        if reading.input.scheme() != Some(Scheme::Tarball) {
            return Err(FlakeError::Source(
                "tarball 'Link' headers that redirect to non-tarball URLs are not supported".to_owned(),
            ));
        }
    }
    if let (Some(time), None) = (known.number("lastModified").filter(|time| *time != 0), reading.input.last_modified()?)
    {
        reading.input.set("lastModified", time);
    }
    Ok(reading)
}

/// Adds the tracked files of a working directory, which is at `prefix` in the outermost one, to `files`.
fn collect_work_tree(
    repository: &GitRepository,
    path: &Path,
    prefix: &[u8],
    submodules: bool,
    files: &mut FileSet,
) -> Result<super::git::WorkTree, FlakeError> {
    let mut work_tree = repository.work_tree()?;
    let prefixed = |relative: &[u8]| {
        let mut full = prefix.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(relative);
        full
    };
    for file in &work_tree.files {
        files.insert(&prefixed(file));
    }
    if submodules {
        for module in &work_tree.submodules {
            let inner_path = path.join(module);
            let inner = GitRepository::open(&inner_path).map_err(|error| {
                error.while_doing(format!("while reading the submodule '{module}' (is it checked out?)"))
            })?;
            let inner_prefix = prefixed(module.as_bytes());
            files.insert(&inner_prefix);
            let state = collect_work_tree(&inner, &inner_path, &inner_prefix, true, files)?;
            work_tree.dirty |= state.dirty;
        }
    }
    Ok(work_tree)
}

/// The repository of a Git input that is on this machine.
fn local_repository(input: &Input) -> Result<Option<PathBuf>, FlakeError> {
    let url = Url::parse(input.string("url")?, false)?;
    if url.scheme != "file" {
        return Ok(None);
    }
    let path = url.file_path()?;
    if !path.starts_with('/') {
        return Err(FlakeError::Source(format!("input '{input}' uses a path relative to the current directory")));
    }
    Ok(Some(fs::canonical(path.as_bytes())))
}

/// The path of a `file:` URL, canonical; `None` if it is no such URL.
pub(crate) fn local_path(url: &str) -> Option<PathBuf> {
    let url = Url::parse(url, false).ok().filter(|url| url.scheme == "file")?;
    Some(fs::canonical(url.file_path().ok()?.as_bytes()))
}

/// The file of this machine that an archive or file input is.
fn local_file(input: &Input) -> Result<Option<PathBuf>, FlakeError> {
    let url = Url::parse(input.string("url")?, false)?;
    if url.scheme != "file" {
        return Ok(None);
    }
    let path = url.file_path()?;
    if !path.starts_with('/') {
        return Err(FlakeError::Source(format!(
            "tarball '{url}' must use an absolute path. The 'file' scheme does not support relative paths."
        )));
    }
    Ok(Some(fs::canonical(path.as_bytes())))
}

/// Says what is wrong where there is no archive.
fn refuse_directories(files: &dyn FileSystem, file: &Path) -> Result<(), FlakeError> {
    let shown = file.display();
    let resolved = fs::SymlinkResolver::default().resolve(files, file, fs::Resolve::Full)?;
    Err(FlakeError::Source(match files.lstat(&resolved)?.map(|metadata| metadata.file_type) {
        None => format!("tarball \"{shown}\" does not exist."),
        Some(FileType::Directory) if files.exists(&resolved.join(".git"))? => {
            format!("tarball \"{shown}\" is a git repository, not a tarball. Please use `git+file` as the scheme.")
        }
        Some(FileType::Directory) => format!("tarball \"{shown}\" is a directory, not a file."),
        Some(_) => return Ok(()),
    }))
}

/// A commit of a repository.
fn find_commit(
    repository: &GitRepository,
    rev: &str,
    reference: &str,
    location: &str,
) -> Result<git2::Oid, FlakeError> {
    repository.find_commit(rev)?.ok_or_else(|| {
        FlakeError::Source(format!(
            "Cannot find Git revision '{rev}' in ref '{reference}' of repository '{location}'! Please make sure that the \
             rev exists on the ref you've specified or add allRefs = true; to fetchGit."
        ))
    })
}

/// Refuses sources with files that are kept in LFS, if they are wanted: a wrong source is worse than none.
fn refuse_lfs(input: &Input, files: &dyn FileSystem, root: &Path, filter: Option<&FileSet>) -> Result<(), FlakeError> {
    let found = if input.bool("lfs")? { find_attribute(files, root, b"", filter, "filter=lfs")? } else { None };
    match found {
        None => Ok(()),
        Some(path) => Err(FlakeError::Source(format!(
            "input '{input}' wants files that are kept in Git LFS, according to '{}'; that is not supported. Without 'lfs' \
             it has the pointers to them",
            path.display()
        ))),
    }
}

/// What is left of a tree, of which `filter` is seen, without the files that an export leaves out; `None` if the input wants
/// everything or there are none. `repository` has the tree as `commit`, or in its index.
fn without_export_ignored(
    input: &Input,
    files: &dyn FileSystem,
    root: &Path,
    filter: Option<&FileSet>,
    repository: &Path,
    commit: Option<git2::Oid>,
) -> Result<Option<FileSet>, FlakeError> {
    if !input.bool("exportIgnore")? {
        return Ok(None);
    }
    if input.bool("submodules")? {
        let message = "exportIgnore and submodules are not supported together yet";
        return Err(FlakeError::Source(message.to_owned()));
    }
    if find_attribute(files, root, b"", filter, "export-ignore")?.is_none() {
        return Ok(None);
    }
    let mut nodes = Vec::new();
    list_nodes(files, root, b"", filter, &mut nodes)?;
    // what is a directory is told by the working directory, as with Nix: a pattern for directories has no effect without one
    let work_tree = if repository.join(".git").exists() { Some(repository) } else { None };
    let asked: Vec<Vec<u8>> = nodes
        .iter()
        .map(|node| match work_tree {
            Some(work_tree) if work_tree.join(fs::path_of(node)).is_dir() => [node, &b"/"[..]].concat(),
            _ => node.clone(),
        })
        .collect();
    let commit = commit.map(|commit| commit.to_string());
    let mut ignored = HashSet::new();
    for mut path in git_cli::export_ignored(repository, commit.as_deref(), &asked)? {
        if path.last() == Some(&b'/') {
            path.pop();
        }
        ignored.insert(path);
    }
    let is_ignored = |node: &[u8]| {
        let ends = memchr::memchr_iter(b'/', node).chain([node.len()]);
        ends.into_iter().any(|end| ignored.contains(&node[..end]))
    };
    Ok(Some(FileSet::from_nodes(nodes.iter().filter(|node| !is_ignored(node)))))
}

/// The paths of all nodes below a directory.
fn list_nodes(
    files: &dyn FileSystem,
    directory: &Path,
    relative: &[u8],
    filter: Option<&FileSet>,
    nodes: &mut Vec<Vec<u8>>,
) -> Result<(), FlakeError> {
    for entry in files.read_dir(directory)? {
        let inner = below(relative, &entry.name);
        if filter.is_some_and(|filter| !filter.contains(&inner)) {
            continue;
        }
        nodes.push(inner.clone());
        if entry.file_type == FileType::Directory {
            list_nodes(files, &directory.join(&entry.name), &inner, filter, nodes)?;
        }
    }
    Ok(())
}

/// `relative/name`.
fn below(relative: &[u8], name: &OsStr) -> Vec<u8> {
    let mut inner = relative.to_vec();
    if !inner.is_empty() {
        inner.push(b'/');
    }
    inner.extend_from_slice(fs::bytes_of(Path::new(name)));
    inner
}

/// The first `.gitattributes` that `word` is in.
fn find_attribute(
    files: &dyn FileSystem,
    directory: &Path,
    relative: &[u8],
    filter: Option<&FileSet>,
    word: &str,
) -> Result<Option<PathBuf>, FlakeError> {
    for entry in files.read_dir(directory)? {
        let path = directory.join(&entry.name);
        let inner = below(relative, &entry.name);
        if filter.is_some_and(|filter| !filter.contains(&inner)) {
            continue;
        }
        match entry.file_type {
            FileType::Directory => {
                if let Some(found) = find_attribute(files, &path, &inner, filter, word)? {
                    return Ok(Some(found));
                }
            }
            FileType::Regular
                if entry.name == ".gitattributes"
                    && memchr::memmem::find(&files.read_file(&path)?, word.as_bytes()).is_some() =>
            {
                return Ok(Some(path));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The hash of the NAR of the tree at `root`, and the newest time of modification of a node in it.
fn hash_tree(files: &dyn FileSystem, root: &Path, filter: Option<&FileSet>) -> Result<(Hash, i64), FlakeError> {
    let source = NarSource { files, newest: Cell::new(0) };
    let keep =
        |path: &Path, _| {
            Ok::<_, NarError>(filter.is_none_or(|filter| {
                path.strip_prefix(root).is_ok_and(|relative| filter.contains(fs::bytes_of(relative)))
            }))
        };
    let (hash, _) = nar::hash_tree(&source, root, keep, HashAlgo::Sha256)?;
    Ok((hash, source.newest.get()))
}

/// A file system as the NAR writer wants it.
struct NarSource<'f> {
    files: &'f dyn FileSystem,
    newest: Cell<i64>,
}

fn to_io(error: FsError) -> io::Error {
    error.source
}

impl nar::Files for NarSource<'_> {
    fn metadata(&self, path: &Path) -> io::Result<nar::Metadata> {
        let metadata = self.files.metadata(path).map_err(to_io)?;
        self.newest.set(self.newest.get().max(metadata.modified));
        Ok(match metadata.file_type {
            FileType::Regular => nar::Metadata::Regular { executable: metadata.executable, size: metadata.size },
            FileType::Directory => nar::Metadata::Directory,
            FileType::Symlink => nar::Metadata::Symlink,
            FileType::Unknown => nar::Metadata::Unknown,
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<Vec<u8>>> {
        let entries = self.files.read_dir(directory).map_err(to_io)?;
        Ok(entries.into_iter().map(|entry| fs::bytes_of(Path::new(&entry.name)).to_vec()).collect())
    }

    fn contents(&self, file: &Path, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(&self.files.read_file(file).map_err(to_io)?)
    }

    fn target(&self, link: &Path) -> io::Result<Vec<u8>> {
        Ok(fs::bytes_of(Path::new(&self.files.read_link(link).map_err(to_io)?)).to_vec())
    }
}
