//! The files that an evaluation reads.
//!
//! The evaluator never touches the disk itself: it asks a [`FileSystem`]. [`RealFs`] is the machine's own.
//! [`OverlayFs`] lays *mounts* over another one, so that a store path which was only computed (a flake's `outPath`,
//! `builtins.path`, `builtins.toFile`) can be read although nothing was copied to the store, nor need there be one.
//!
//! Paths are absolute and canonical: no `.`, `..`, doubled or trailing slash. As in Nix, none of the reading methods
//! follows a symbolic link in the last component; links on the way there are resolved beforehand, by
//! [`SymlinkResolver`], because a link inside a mounted tree may well point into another mount.

use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// What a path is. Devices, sockets and pipes are all [`FileType::Unknown`], as `builtins.readFileType` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub enum FileType {
    /// A file with contents.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Unknown,
}

impl FileType {
    /// The name that `builtins.readDir` and `builtins.readFileType` give it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FileType::Regular => "regular",
            FileType::Directory => "directory",
            FileType::Symlink => "symlink",
            FileType::Unknown => "unknown",
        }
    }

    fn of(std: std::fs::FileType) -> Self {
        if std.is_symlink() {
            FileType::Symlink
        } else if std.is_file() {
            FileType::Regular
        } else if std.is_dir() {
            FileType::Directory
        } else {
            FileType::Unknown
        }
    }
}

/// What is known of a path without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub file_type: FileType,
    /// For a regular file: whether its owner may execute it. This is all of the mode that a NAR keeps.
    pub executable: bool,
    /// For a regular file: its size in bytes.
    pub size: u64,
    /// When it was last modified, in seconds since the epoch; 0 where the place keeps no times.
    pub modified: i64,
}

impl Metadata {
    pub(crate) fn of(found: &std::fs::Metadata) -> Self {
        let file_type = FileType::of(found.file_type());
        let regular = file_type == FileType::Regular;
        Metadata {
            file_type,
            executable: regular && found.mode() & 0o100 != 0,
            size: if regular { found.len() } else { 0 },
            modified: found.mtime(),
        }
    }
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name, without the directory.
    pub name: OsString,
    /// What it is.
    pub file_type: FileType,
}

/// What was tried when a read failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Asking what a path is.
    Stat,
    /// Opening a file.
    ReadFile,
    /// Reading so many bytes of a file that is open.
    Read(u64),
    /// Listing a directory.
    ReadDir,
    /// Reading where a symbolic link points.
    ReadLink,
    /// Finding out where a path leads through symbolic links.
    Resolve,
}

/// A read that failed. Displays as Nix words it.
#[derive(Debug)]
pub struct FsError {
    /// What was tried.
    pub operation: Operation,
    /// The path as the reader named it, not where a mount leads.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FsError {
    /// An error of `operation` on `path`.
    pub fn new(operation: Operation, path: &Path, source: io::Error) -> Self {
        FsError { operation, path: path.to_owned(), source }
    }

    /// Whether the path simply is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        is_absence(&self.source)
    }

    fn with_path(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.path);
        self
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let reason = io_reason(&self.source);
        if self.source.get_ref().is_some() {
            // the error of a place that is not a plain directory says all there is to say
            return f.write_str(&reason);
        }
        match self.operation {
            _ if self.source.kind() == io::ErrorKind::NotFound => write!(f, "path '{path}' does not exist"),
            Operation::Stat => write!(f, "getting status of \"{path}\": {reason}"),
            Operation::ReadFile => write!(f, "opening file '{path}': {reason}"),
            Operation::Read(bytes) => write!(f, "read of {bytes} bytes: {reason}"),
            Operation::ReadDir => write!(f, "cannot read directory \"{path}\": {reason}"),
            Operation::ReadLink => write!(f, "reading symbolic link \"{path}\": {reason}"),
            Operation::Resolve => write!(f, "infinite symlink recursion in path '{path}'"),
        }
    }
}

impl std::error::Error for FsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// An I/O error's text as C programs print it: without Rust's "(os error 2)".
pub(crate) fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Bytes as a path. The language's paths are bytes; on Unix, so are the system's.
#[must_use]
pub fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// A path as bytes.
#[must_use]
pub fn bytes_of(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Where an evaluation reads from.
///
/// Paths are absolute and canonical; see the module's description for symbolic links.
pub trait FileSystem {
    /// What `path` is, or `None` if nothing is there (or if one of its ancestors is no directory).
    ///
    /// # Errors
    /// When that cannot be found out, for instance for lack of permission.
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError>;

    /// The contents of the regular file `path`.
    ///
    /// # Errors
    /// When it is missing, unreadable, or not a regular file.
    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError>;

    /// The entries of the directory `path`, sorted by the bytes of their names.
    ///
    /// # Errors
    /// When it is missing, unreadable, or not a directory.
    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError>;

    /// Where the symbolic link `path` points, unresolved.
    ///
    /// # Errors
    /// When it is missing, unreadable, or not a symbolic link.
    fn read_link(&self, path: &Path) -> Result<OsString, FsError>;

    /// Takes up that what was read of the file or link `path` is used once more, without being read. False if it was not
    /// read yet, or that is not known, so that it has to be.
    fn read_again(&self, _path: &Path) -> bool {
        false
    }

    /// Whether anything is at `path`, be it a dangling link.
    ///
    /// # Errors
    /// As [`FileSystem::lstat`].
    fn exists(&self, path: &Path) -> Result<bool, FsError> {
        Ok(self.lstat(path)?.is_some())
    }

    /// What `path` is.
    ///
    /// # Errors
    /// As [`FileSystem::lstat`], and when nothing is there.
    fn metadata(&self, path: &Path) -> Result<Metadata, FsError> {
        self.lstat(path)?.ok_or_else(|| not_found(Operation::Stat, path))
    }
}

fn not_found(operation: Operation, path: &Path) -> FsError {
    FsError::new(operation, path, io::Error::from(io::ErrorKind::NotFound))
}

/// The machine's file system.
#[derive(Clone, Copy, Default, Debug)]
pub struct RealFs;

impl RealFs {
    /// The contents of a regular file, and what the system said of it before they were read: so many bytes as it said then, so none
    /// of a file that the system makes up as it is read. C++ Nix 2.34 reads no more.
    pub(crate) fn read(path: &Path) -> Result<(Vec<u8>, std::fs::Metadata), FsError> {
        use io::Read;
        let open = || {
            let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
            let metadata = file.metadata()?;
            Ok((file, metadata))
        };
        let (file, metadata) = open().map_err(|error| failure(Operation::ReadFile, path, error))?;
        let size = metadata.len();
        let mut contents = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let read = file.take(size).read_to_end(&mut contents);
        read.map_err(|error| failure(Operation::Read(size.min(READ_AT_ONCE)), path, error))?;
        Ok((contents, metadata))
    }
}

/// The most bytes that C++ Nix reads at once.
const READ_AT_ONCE: u64 = 64 * 1024;

/// The error of an operation, one of a path that is not there if an ancestor of it is no directory.
fn failure(operation: Operation, path: &Path, source: io::Error) -> FsError {
    let is_below_file = source.kind() == io::ErrorKind::NotADirectory
        && std::fs::symlink_metadata(path).is_err_and(|error| is_absence(&error));
    if is_below_file { not_found(operation, path) } else { FsError::new(operation, path, source) }
}

impl FileSystem for RealFs {
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        match std::fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(Metadata::of(&found))),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(FsError::new(Operation::Stat, path, error)),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        Ok(RealFs::read(path)?.0)
    }

    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        let list = || {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                entries.push(DirEntry { file_type: FileType::of(entry.file_type()?), name: entry.file_name() });
            }
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        };
        list().map_err(|error| failure(Operation::ReadDir, path, error))
    }

    fn read_link(&self, path: &Path) -> Result<OsString, FsError> {
        std::fs::read_link(path).map(PathBuf::into_os_string).map_err(|error| failure(Operation::ReadLink, path, error))
    }

    /// Always: nothing is kept of what was read.
    fn read_again(&self, _: &Path) -> bool {
        true
    }
}

/// A choice among the files of a tree, such as those that Git tracks or those that a filter function let through.
#[derive(Clone, Default, Debug)]
pub struct FileSet {
    /// Paths below the tree's root, without a leading slash.
    nodes: FxHashSet<Box<[u8]>>,
}

impl FileSet {
    /// The set of exactly these nodes, files and directories alike, given as paths below the root.
    pub fn from_nodes<P: AsRef<[u8]>>(nodes: impl IntoIterator<Item = P>) -> Self {
        FileSet { nodes: nodes.into_iter().map(|node| node.as_ref().into()).collect() }
    }

    /// The set of these files, given as paths below the root, and of every directory on the way to them.
    pub fn from_files<P: AsRef<[u8]>>(files: impl IntoIterator<Item = P>) -> Self {
        let mut set = FileSet::default();
        for file in files {
            set.insert(file.as_ref());
        }
        set
    }

    /// Adds a file and every directory on the way to it.
    pub fn insert(&mut self, file: &[u8]) {
        let mut rest = file;
        while !rest.is_empty() && self.nodes.insert(rest.into()) {
            rest = &rest[..memchr::memrchr(b'/', rest).unwrap_or(0)];
        }
    }

    /// Whether a node is in the set. The root, the empty path, always is.
    #[must_use]
    pub fn contains(&self, relative: &[u8]) -> bool {
        relative.is_empty() || self.nodes.contains(relative)
    }
}

/// Where the reads below a mounted store path are served from.
#[derive(Clone)]
pub enum Mount {
    /// From what is at `root` (a directory, a file or a link) of another file system.
    Tree {
        /// The file system.
        fs: Rc<dyn FileSystem>,
        /// The path in there that the store path stands for.
        root: PathBuf,
        /// What is to be seen of it; everything if absent.
        filter: Option<Rc<FileSet>>,
    },
    /// From memory: the store path is a regular file.
    File {
        /// Its contents.
        contents: Rc<[u8]>,
        /// Whether it is executable.
        executable: bool,
    },
    /// From a place that is worked out, and checked, only when the first read happens.
    Lazy(Rc<dyn LazyMount>),
}

impl Mount {
    /// All that is at `root` on the machine's own file system.
    #[must_use]
    pub fn real(root: impl Into<PathBuf>) -> Self {
        Mount::Tree { fs: Rc::new(RealFs), root: root.into(), filter: None }
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mount::Tree { root, filter, .. } => {
                f.debug_struct("Tree").field("root", root).field("filtered", &filter.is_some()).finish_non_exhaustive()
            }
            Mount::File { contents, executable } => {
                f.debug_struct("File").field("size", &contents.len()).field("executable", executable).finish()
            }
            Mount::Lazy(_) => f.write_str("Lazy"),
        }
    }
}

/// A mount that costs something to get, such as a source whose hash has to be verified.
pub trait LazyMount {
    /// The mount itself; not lazy again. It is asked for once, unless it fails.
    ///
    /// # Errors
    /// Whatever keeps it from being had; the text is shown to the user as it is.
    fn realise(&self) -> Result<Mount, Box<dyn std::error::Error + Send + Sync>>;
}

/// A file system with some store paths laid over it.
///
/// A mount hides what the base has at the same path. A read outside of every mount costs one comparison with the store
/// directory's name, and below the store directory one look-up more. Mounts are added while evaluating, hence the
/// interior mutability; it is meant for one thread.
pub struct OverlayFs {
    base: Rc<dyn FileSystem>,
    /// The store directory with a slash at its end.
    prefix: Box<[u8]>,
    /// By the base name of the store path.
    mounts: RefCell<FxHashMap<Box<[u8]>, Mount>>,
}

/// A path found inside a mount.
enum Place {
    Tree {
        fs: Rc<dyn FileSystem>,
        path: PathBuf,
        relative: PathBuf,
        filter: Option<Rc<FileSet>>,
    },
    File {
        contents: Rc<[u8]>,
        executable: bool,
    },
    /// Below a file, or hidden by a filter.
    Nowhere,
}

impl OverlayFs {
    /// An overlay without mounts, for the store directory `store_dir` (`/nix/store`).
    pub fn new(base: Rc<dyn FileSystem>, store_dir: &Path) -> Self {
        let mut prefix = bytes_of(store_dir).to_vec();
        if prefix.last() != Some(&b'/') {
            prefix.push(b'/');
        }
        OverlayFs { base, prefix: prefix.into(), mounts: RefCell::default() }
    }

    /// What the mounts are laid over.
    pub fn base(&self) -> Rc<dyn FileSystem> {
        self.base.clone()
    }

    /// The base name of the store path that `path` is or is below of, and the rest without its leading slash.
    fn split<'p>(&self, path: &'p Path) -> Option<(&'p [u8], &'p [u8])> {
        let rest = bytes_of(path).strip_prefix(&*self.prefix)?;
        if rest.is_empty() {
            return None;
        }
        Some(match memchr::memchr(b'/', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, b""),
        })
    }

    /// Serves reads of `store_path` and below from `mount`. A second mount of the same path replaces the first.
    ///
    /// Gives whether `store_path` is what can be mounted: a path directly in the store directory.
    pub fn mount(&self, store_path: &Path, mount: Mount) -> bool {
        match self.split(store_path) {
            Some((name, b"")) => {
                self.mounts.borrow_mut().insert(name.into(), mount);
                true
            }
            _ => false,
        }
    }

    /// Whether `path` is in a mount.
    #[must_use]
    pub fn is_mounted(&self, path: &Path) -> bool {
        self.split(path).is_some_and(|(name, _)| self.mounts.borrow().contains_key(name))
    }

    /// The file that a path in a mounted, unfiltered or filtered, tree stands for: for messages and for whatever has
    /// to be handed to another program. `None` outside of mounts, for files in memory, and for lazy mounts that
    /// nothing was read from yet.
    #[must_use]
    pub fn origin(&self, path: &Path) -> Option<PathBuf> {
        let (name, rest) = self.split(path)?;
        match self.mounts.borrow().get(name)? {
            Mount::Tree { root, .. } => Some(join(root, rest)),
            Mount::File { .. } | Mount::Lazy(_) => None,
        }
    }

    /// Where `path` leads; `None` if it is in no mount, and so the base's.
    fn place(&self, operation: Operation, path: &Path) -> Result<Option<Place>, FsError> {
        let Some((name, rest)) = self.split(path) else { return Ok(None) };
        let Some(mut mount) = self.mounts.borrow().get(name).cloned() else { return Ok(None) };
        if let Mount::Lazy(lazy) = &mount {
            mount = lazy.realise().map_err(|error| FsError::new(operation, path, io::Error::other(error)))?;
            if matches!(mount, Mount::Lazy(_)) {
                return Err(FsError::new(operation, path, io::Error::other("a lazy mount led to another")));
            }
            self.mounts.borrow_mut().insert(name.into(), mount.clone());
        }
        Ok(Some(match mount {
            Mount::Tree { fs, root, filter } => {
                if filter.as_ref().is_some_and(|filter| !filter.contains(rest)) {
                    Place::Nowhere
                } else {
                    Place::Tree { fs, path: join(&root, rest), relative: path_of(rest).to_owned(), filter }
                }
            }
            Mount::File { contents, executable } if rest.is_empty() => Place::File { contents, executable },
            Mount::File { .. } | Mount::Lazy(_) => Place::Nowhere,
        }))
    }
}

/// `root/rest`, or `root` itself: a slash at its end would not do where it is a file.
fn join(root: &Path, rest: &[u8]) -> PathBuf {
    if rest.is_empty() { root.to_owned() } else { root.join(path_of(rest)) }
}

impl FileSystem for OverlayFs {
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        match self.place(Operation::Stat, path)? {
            None => self.base.lstat(path),
            Some(Place::Tree { fs, path: real, .. }) => fs.lstat(&real).map_err(|error| error.with_path(path)),
            Some(Place::File { contents, executable }) => Ok(Some(Metadata {
                file_type: FileType::Regular,
                executable,
                size: contents.len() as u64,
                modified: 0,
            })),
            Some(Place::Nowhere) => Ok(None),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        match self.place(Operation::ReadFile, path)? {
            None => self.base.read_file(path),
            Some(Place::Tree { fs, path: real, .. }) => fs.read_file(&real).map_err(|error| error.with_path(path)),
            Some(Place::File { contents, .. }) => Ok(contents.to_vec()),
            Some(Place::Nowhere) => Err(not_found(Operation::ReadFile, path)),
        }
    }

    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        match self.place(Operation::ReadDir, path)? {
            None => self.base.read_dir(path),
            Some(Place::Tree { fs, path: real, relative, filter }) => {
                let mut entries = fs.read_dir(&real).map_err(|error| error.with_path(path))?;
                if let Some(filter) = filter {
                    let mut child = bytes_of(&relative).to_vec();
                    if !child.is_empty() {
                        child.push(b'/');
                    }
                    let parent = child.len();
                    entries.retain(|entry| {
                        child.truncate(parent);
                        child.extend_from_slice(entry.name.as_bytes());
                        filter.contains(&child)
                    });
                }
                Ok(entries)
            }
            Some(Place::File { .. }) => {
                Err(FsError::new(Operation::ReadDir, path, io::Error::from_raw_os_error(libc::ENOTDIR)))
            }
            Some(Place::Nowhere) => Err(not_found(Operation::ReadDir, path)),
        }
    }

    fn read_link(&self, path: &Path) -> Result<OsString, FsError> {
        match self.place(Operation::ReadLink, path)? {
            None => self.base.read_link(path),
            Some(Place::Tree { fs, path: real, .. }) => fs.read_link(&real).map_err(|error| error.with_path(path)),
            Some(Place::File { .. }) => {
                Err(FsError::new(Operation::ReadLink, path, io::Error::from_raw_os_error(libc::EINVAL)))
            }
            Some(Place::Nowhere) => Err(not_found(Operation::ReadLink, path)),
        }
    }

    fn read_again(&self, path: &Path) -> bool {
        match self.place(Operation::ReadFile, path) {
            Ok(None) => self.base.read_again(path),
            Ok(Some(Place::Tree { fs, path: real, .. })) => fs.read_again(&real),
            Ok(Some(Place::File { .. })) => true,
            Ok(Some(Place::Nowhere)) | Err(_) => false,
        }
    }
}

/// Which symbolic links to resolve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolve {
    /// Those of the ancestors; the last component of the result may be a link.
    Ancestors,
    /// All of them.
    Full,
}

/// Resolves symbolic links, and remembers which directories are none, so that reading many files of one tree does not
/// look at each of its directories again and again.
#[derive(Default, Debug)]
pub struct SymlinkResolver {
    /// Paths that are known to lead through no link.
    plain: RefCell<FxHashSet<PathBuf>>,
}

/// As many links as Nix follows for one path.
const LINKS_ALLOWED: usize = 1024;

impl SymlinkResolver {
    /// Where `path` (absolute; `.`, `..` and doubled slashes are allowed) leads. What does not exist stays as it is.
    ///
    /// # Errors
    /// When a component cannot be looked at, or when links go round in circles.
    pub fn resolve(&self, fs: &dyn FileSystem, path: &Path, mode: Resolve) -> Result<PathBuf, FsError> {
        // the common case: a canonical path below a directory that was seen before
        let seen = |parent: &Path| self.plain.borrow().contains(parent);
        if path.parent().is_some_and(seen) && is_canonical(bytes_of(path)) {
            let is_link = mode == Resolve::Full
                && fs.lstat(path)?.is_some_and(|metadata| metadata.file_type == FileType::Symlink);
            if !is_link {
                return Ok(path.to_owned());
            }
        }
        let mut resolved = PathBuf::from("/");
        let mut links = 0;
        // what is still to be walked, the next component last
        let mut todo: Vec<OsString> = components(path);
        while let Some(name) = todo.pop() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            resolved.push(&name);
            if (mode == Resolve::Ancestors && todo.is_empty()) || self.plain.borrow().contains(&resolved) {
                continue;
            }
            match fs.lstat(&resolved)? {
                Some(Metadata { file_type: FileType::Symlink, .. }) => {
                    links += 1;
                    if links > LINKS_ALLOWED {
                        let error = io::Error::from_raw_os_error(libc::ELOOP);
                        return Err(FsError::new(Operation::Resolve, path, error));
                    }
                    let target = PathBuf::from(fs.read_link(&resolved)?);
                    if target.is_absolute() {
                        resolved = PathBuf::from("/");
                    } else {
                        resolved.pop();
                    }
                    todo.append(&mut components(&target));
                }
                Some(Metadata { file_type: FileType::Directory, .. }) => {
                    self.plain.borrow_mut().insert(resolved.clone());
                }
                _ => {}
            }
        }
        Ok(resolved)
    }
}

/// The components of a path in reverse, without the root and without `.`.
fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn is_canonical(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && (path.len() == 1 || path[1..].split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b"..")))
}

/// `path` without `.`, `..` and superfluous slashes, by its text alone: what Nix makes of a path in the language.
/// A relative path is taken from the root.
#[must_use]
pub fn canonical(path: &[u8]) -> PathBuf {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    let mut result = Vec::with_capacity(path.len() + 1);
    for name in names {
        result.push(b'/');
        result.extend_from_slice(name);
    }
    if result.is_empty() {
        result.push(b'/');
    }
    PathBuf::from(OsString::from_vec(result))
}
