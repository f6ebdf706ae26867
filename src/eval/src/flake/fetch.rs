//! Sources: from an input to a store path and the files below it.
//!
//! Nothing is copied and nothing is downloaded. A source is read where it is (a directory, a working directory with the
//! tracked files alone, the objects of a Git repository, the store), its NAR is hashed, and the store path that follows
//! from the hash is mounted into the file system that the evaluator reads. When a lock file gives the hash, the store
//! path is known without reading anything; such a source is read, and verified, when the first file of it is.

use super::archive::PackedFs;
use super::error::FlakeError;
use super::git::GitRepository;
use super::reference::{Attr, Input, Scheme};
use super::url::Url;
use crate::fs::{self, FileSet, FileSystem, FileType, FsError, LazyMount, Mount, Operation, OverlayFs};
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::hash::{Hash, HashAlgo};
use bento_store::nar::{self, NarError};
use bento_store::store_path::{StoreDir, StorePath};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

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
    warn: Rc<dyn Fn(&str)>,
}

/// Fetches inputs and mounts them. One is meant to live as long as an evaluation: it fetches each input once.
pub struct Fetcher {
    overlay: Rc<OverlayFs>,
    places: Rc<Places>,
    fetched: RefCell<HashMap<Input, Rc<SourceTree>>>,
}

impl Fetcher {
    /// A fetcher that reads from `local`, mounts into `overlay` (whose base should be `local` and whose store directory
    /// `store`) and tells `warn` what the user should know.
    pub fn new(overlay: Rc<OverlayFs>, local: Rc<dyn FileSystem>, store: StoreDir, warn: Rc<dyn Fn(&str)>) -> Self {
        let places = Rc::new(Places { local, store, warn });
        Fetcher { overlay, places, fetched: RefCell::default() }
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
            if let Some(mount) = self.places.in_store(&self.path)? {
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

    fn in_store(&self, path: &str) -> Result<Option<Mount>, FlakeError> {
        let root = PathBuf::from(path);
        Ok(self.local.exists(&root)?.then(|| Mount::Tree { fs: self.local.clone(), root, filter: None }))
    }

    fn read(&self, input: &Input) -> Result<Reading, FlakeError> {
        match input.scheme() {
            Some(Scheme::Path) => self.read_path(input),
            Some(Scheme::Git) => match local_repository(input)? {
                Some(repository) => self.read_git(input, &repository),
                None => self.read_from_store(input),
            },
            Some(scheme @ (Scheme::Tarball | Scheme::File)) => match local_file(input)? {
                Some(file) => self.read_download(input, &file, scheme == Scheme::Tarball),
                None => self.read_from_store(input),
            },
            Some(Scheme::Indirect) => Err(FlakeError::Unavailable {
                input: input.to_string(),
                reason: "it is an indirect reference, and there is no registry to look it up in".to_owned(),
            }),
            _ => self.read_from_store(input),
        }
    }

    /// A source that only the store can have.
    fn read_from_store(&self, input: &Input) -> Result<Reading, FlakeError> {
        let unavailable = |reason| FlakeError::Unavailable { input: input.to_string(), reason };
        let Some(hash) = input.nar_hash()? else {
            return Err(unavailable(
                "it is not on this machine, and no NAR hash tells where in the store it is".into(),
            ));
        };
        let path = self.store.print(&self.store_path(input, hash)?);
        match self.in_store(&path)? {
            Some(mount) => Ok(Reading { mount, hash, input: input.clone(), work_tree: None }),
            None => Err(unavailable(format!("it is not on this machine, and '{path}' is not in the store"))),
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
    fn read_download(&self, input: &Input, file: &Path, unpack: bool) -> Result<Reading, FlakeError> {
        let mut input = input.clone();
        let (tree, newest) = if unpack {
            refuse_directories(&*self.local, file)?;
            PackedFs::unpack(file)?
        } else {
            (PackedFs::of_file(&self.local.read_file(file)?, file)?, 0)
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
            self.read_commit(input, path, &repository)
        } else {
            self.read_work_tree(input, path, &repository)
        }
    }

    fn read_commit(&self, input: &Input, path: &Path, repository: &GitRepository) -> Result<Reading, FlakeError> {
        let mut input = input.clone();
        let shallow = input.bool("shallow")?;
        let reference = match input.reference()? {
            Some(reference) => reference.to_owned(),
            None => repository.head_ref()?.unwrap_or_else(|| {
                let path = path.display();
                (self.warn)(&format!("could not read HEAD ref from repo at '{path}', using 'master'"));
                "master".to_owned()
            }),
        };
        let commit = match input.rev()? {
            None => repository.resolve(&reference)?,
            Some(rev) => repository.find_commit(&rev)?.ok_or_else(|| {
                FlakeError::Source(format!(
                    "Cannot find Git revision '{rev}' in ref '{reference}' of repository '{}'! Please make sure that \
                     the rev exists on the ref you've specified.",
                    path.display()
                ))
            })?,
        };
        if repository.is_shallow() && !shallow {
            return Err(FlakeError::Source(format!(
                "'{}' is a shallow Git repository, but shallow repositories are only allowed when `shallow = true;` is \
                 specified",
                path.display()
            )));
        }
        input.set("ref", reference);
        input.set("rev", commit.to_string());
        input.set("lastModified", repository.last_modified(commit)?);
        if !shallow {
            input.set("revCount", repository.rev_count(commit)?);
        }
        let tree: Rc<dyn FileSystem> = Rc::new(repository.tree(commit, input.bool("submodules")?)?);
        let root = PathBuf::from("/");
        refuse_attributes(&input, &*tree, &root, None)?;
        let (hash, _) = hash_tree(&*tree, &root, None)?;
        Ok(Reading { mount: Mount::Tree { fs: tree, root, filter: None }, hash, input, work_tree: None })
    }

    fn read_work_tree(&self, input: &Input, path: &Path, repository: &GitRepository) -> Result<Reading, FlakeError> {
        let mut input = input.clone();
        let mut files = FileSet::default();
        let submodules = input.bool("submodules")?;
        let work_tree = collect_work_tree(repository, path, b"", submodules, &mut files)?;
        let (head, dirty) = (work_tree.head, work_tree.dirty);
        if dirty {
            (self.warn)(&format!("Git tree '{}' is dirty", path.display()));
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
        let filter = Some(Rc::new(files));
        refuse_attributes(&input, &*self.local, path, filter.as_deref())?;
        let (hash, _) = hash_tree(&*self.local, path, filter.as_deref())?;
        let mount = Mount::Tree { fs: self.local.clone(), root: path.to_owned(), filter };
        Ok(Reading { mount, hash, input, work_tree: Some(path.to_owned()) })
    }
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

/// Refuses sources that Git's attributes would change: files that an export leaves out, files that are kept in LFS.
/// Both are rare enough, and a wrong source is worse than none.
fn refuse_attributes(
    input: &Input,
    files: &dyn FileSystem,
    root: &Path,
    filter: Option<&FileSet>,
) -> Result<(), FlakeError> {
    for (option, word) in [("exportIgnore", "export-ignore"), ("lfs", "filter=lfs")] {
        let found = if input.bool(option)? { find_attribute(files, root, b"", filter, word)? } else { None };
        if let Some(path) = found {
            return Err(FlakeError::Source(format!(
                "input '{input}' wants '{option}', which '{}' makes a difference for; that is not supported",
                path.display()
            )));
        }
    }
    Ok(())
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
        let mut inner = relative.to_vec();
        if !inner.is_empty() {
            inner.push(b'/');
        }
        inner.extend_from_slice(fs::bytes_of(Path::new(&entry.name)));
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
