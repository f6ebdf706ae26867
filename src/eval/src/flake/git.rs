//! Git repositories of this machine: what is tracked, what a commit holds.

use super::error::FlakeError;
use crate::fs::{self, DirEntry, FileSystem, FileType, FsError, Metadata, Operation};
use git2::{ErrorCode, ObjectType, Oid, Repository, Status, StatusOptions};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A repository, and where it is for error messages.
pub(super) struct GitRepository {
    repository: Rc<Repository>,
    path: PathBuf,
}

/// Gets the repository with a submodule's commit: from this address, on this branch if one is known.
pub(super) type FetchSubmodule<'f> = &'f dyn Fn(&str, Option<&str>, Oid) -> Result<GitRepository, FlakeError>;

/// What `.gitmodules` says of a submodule.
struct Submodule {
    path: String,
    url: Option<String>,
    branch: Option<String>,
}

/// The state of a working directory.
pub(super) struct WorkTree {
    /// The commit that is checked out; `None` before the first one.
    pub(super) head: Option<Oid>,
    /// Whether a tracked file differs from that commit, be it only in the index.
    pub(super) dirty: bool,
    /// The tracked files that exist, as paths from the root.
    pub(super) files: Vec<Vec<u8>>,
    /// The directories of submodules, as paths from the root.
    pub(super) submodules: Vec<String>,
}

impl GitRepository {
    /// Opens the repository at `path`, a working directory or a bare repository; not one that `path` is merely in.
    pub(super) fn open(path: &Path) -> Result<Self, FlakeError> {
        let repository = Repository::open(path).map_err(|source| FlakeError::Git {
            action: "opening the repository".to_owned(),
            repository: path.to_owned(),
            source,
        })?;
        Ok(GitRepository { repository: Rc::new(repository), path: path.to_owned() })
    }

    /// Opens the bare repository `path`, which is a clone of `url`; makes an empty one if there is none.
    pub(super) fn open_clone(path: &Path, url: &str) -> Result<Self, FlakeError> {
        let open = || {
            let repository = match Repository::open_bare(path) {
                Err(error) if error.code() == ErrorCode::NotFound => Repository::init_bare(path)?,
                other => other?,
            };
            // what the addresses of submodules are relative to
            if repository.find_remote("origin").is_err() {
                repository.remote("origin", url)?;
            }
            Ok(repository)
        };
        let repository = open().map_err(|source| FlakeError::Git {
            action: format!("opening the clone of '{url}'"),
            repository: path.to_owned(),
            source,
        })?;
        Ok(GitRepository { repository: Rc::new(repository), path: path.to_owned() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has the reference with this full name.
    pub(super) fn has_ref(&self, name: &str) -> bool {
        self.repository.refname_to_id(name).is_ok()
    }

    fn fail(&self, action: impl Into<String>) -> impl FnOnce(git2::Error) -> FlakeError + '_ {
        let action = action.into();
        move |source| FlakeError::Git { action, repository: self.path.clone(), source }
    }

    /// Whether there is no working directory.
    pub(super) fn is_bare(&self) -> bool {
        self.repository.is_bare()
    }

    /// Whether parts of the history are missing.
    pub(super) fn is_shallow(&self) -> bool {
        self.repository.is_shallow()
    }

    /// The branch that is checked out, in full (`refs/heads/main`); `None` if a commit is.
    pub(super) fn head_ref(&self) -> Result<Option<String>, FlakeError> {
        let head = self.repository.find_reference("HEAD").map_err(self.fail("looking up HEAD"))?;
        Ok(head.symbolic_target().map(str::to_owned))
    }

    /// The commit that a branch, a tag or a commit's digits stand for.
    pub(super) fn resolve(&self, name: &str) -> Result<Oid, FlakeError> {
        let object = self
            .repository
            .revparse_single(&format!("{name}^{{commit}}"))
            .map_err(self.fail(format!("resolving Git reference '{name}'")))?;
        Ok(object.id())
    }

    /// The commit with these digits, or `None` if the repository lacks it.
    pub(super) fn find_commit(&self, rev: &str) -> Result<Option<Oid>, FlakeError> {
        let oid = Oid::from_str(rev).map_err(self.fail(format!("reading the revision '{rev}'")))?;
        match self.repository.find_object(oid, None) {
            Ok(_) => self.resolve(rev).map(Some),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.fail(format!("looking up the revision '{rev}'"))(error)),
        }
    }

    /// When `commit` was made, in seconds since the epoch.
    pub(super) fn last_modified(&self, commit: Oid) -> Result<u64, FlakeError> {
        let found = self.repository.find_commit(commit).map_err(self.fail(format!("looking up commit '{commit}'")))?;
        Ok(u64::try_from(found.time().seconds()).unwrap_or(0))
    }

    /// How many commits lead to `commit`, itself included.
    pub(super) fn rev_count(&self, commit: Oid) -> Result<u64, FlakeError> {
        let count = || {
            let mut walk = self.repository.revwalk()?;
            walk.push(commit)?;
            let mut count = 0;
            for id in walk {
                id?;
                count += 1;
            }
            Ok(count)
        };
        count().map_err(self.fail(format!(
            "counting the commits up to '{commit}' (its history may be incomplete: '?shallow=1' does without)"
        )))
    }

    /// The state of the working directory.
    pub(super) fn work_tree(&self) -> Result<WorkTree, FlakeError> {
        let head = match self.repository.refname_to_id("HEAD") {
            Ok(head) => Some(head),
            Err(error) if error.code() == ErrorCode::NotFound => None,
            Err(error) => return Err(self.fail("resolving HEAD")(error)),
        };
        let mut options = StatusOptions::new();
        options
            .include_untracked(false)
            .include_ignored(false)
            .include_unmodified(true)
            .exclude_submodules(true)
            .recurse_untracked_dirs(false);
        let statuses =
            self.repository.statuses(Some(&mut options)).map_err(self.fail("getting working directory status"))?;
        let mut result = WorkTree { head, dirty: false, files: Vec::new(), submodules: Vec::new() };
        for entry in statuses.iter() {
            let status = entry.status();
            result.dirty |= status != Status::CURRENT;
            if !status.intersects(Status::INDEX_DELETED | Status::WT_DELETED) {
                result.files.push(entry.path_bytes().to_vec());
            }
        }
        let modules = self.path.join(".gitmodules");
        if modules.exists() {
            result.submodules = self.submodules(&modules)?.into_iter().map(|module| module.path).collect();
        }
        Ok(result)
    }

    /// What a file `.gitmodules` says, sorted by path.
    fn submodules(&self, file: &Path) -> Result<Vec<Submodule>, FlakeError> {
        let read = || {
            let config = git2::Config::open(file)?;
            let mut modules = Vec::new();
            let mut entries = config.entries(Some("^submodule\\..*\\.path$"))?;
            while let Some(entry) = entries.next() {
                let entry = entry?;
                let (Some(name), Some(path)) = (entry.name(), entry.value()) else { continue };
                let section = name.strip_suffix(".path").unwrap_or(name);
                let setting = |name: &str| config.get_string(&format!("{section}.{name}")).ok();
                modules.push(Submodule { path: path.to_owned(), url: setting("url"), branch: setting("branch") });
            }
            modules.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(modules)
        };
        read().map_err(self.fail("parsing .gitmodules file"))
    }

    /// The files of `commit`. With `fetch`, those of submodules too: a submodule's commit is looked for where Git keeps clones
    /// of submodules and in its working directory, and fetched if it is in neither.
    pub(super) fn tree(&self, commit: Oid, fetch: Option<FetchSubmodule<'_>>) -> Result<GitTree, FlakeError> {
        let tree = self
            .repository
            .find_commit(commit)
            .and_then(|commit| commit.tree())
            .map_err(self.fail(format!("reading commit '{commit}'")))?;
        let mut result = GitTree {
            repository: self.repository.clone(),
            root: tree.id(),
            trees: RefCell::default(),
            modules: HashMap::new(),
        };
        if let (Some(modules), Some(fetch)) = (tree.get_name(".gitmodules"), fetch) {
            let blob =
                self.repository.find_blob(modules.id()).map_err(self.fail("reading .gitmodules of the commit"))?;
            // libgit2 reads configurations from files only
            let failed = |error: io::Error| FlakeError::Source(format!("writing a temporary file: {error}"));
            let file = tempfile::NamedTempFile::new().map_err(failed)?;
            std::fs::write(file.path(), blob.content()).map_err(failed)?;
            for module in self.submodules(file.path())? {
                let Ok(entry) = tree.get_path(Path::new(&module.path)) else { continue };
                if entry.kind() == Some(ObjectType::Commit) {
                    let submodule = self.submodule(&module, entry.id(), fetch)?;
                    result.modules.insert(module.path.into_bytes(), submodule);
                }
            }
        }
        Ok(result)
    }

    fn submodule(&self, module: &Submodule, commit: Oid, fetch: FetchSubmodule<'_>) -> Result<GitTree, FlakeError> {
        let path = &module.path;
        let mut places = vec![self.path.join(path), self.repository.path().join("modules").join(path)];
        if let Ok(submodule) = self.repository.find_submodule(path) {
            places.extend(submodule.name().map(|name| self.repository.path().join("modules").join(name)));
        }
        for place in places {
            let Ok(repository) = GitRepository::open(&place) else { continue };
            if let Some(commit) = repository.find_commit(&commit.to_string())? {
                return repository.tree(commit, Some(fetch));
            }
        }
        let what = format!("while fetching commit {commit} of the submodule '{path}'");
        let Some(url) = &module.url else {
            return Err(
                FlakeError::Source("'.gitmodules' doesn't say where it comes from".to_owned()).while_doing(what)
            );
        };
        let fetched = fetch(&self.resolve_url(url), module.branch.as_deref(), commit);
        fetched.and_then(|repository| repository.tree(commit, Some(fetch))).map_err(|error| error.while_doing(what))
    }

    /// The address of a submodule, which may be relative to that of the repository.
    fn resolve_url(&self, url: &str) -> String {
        if !url.starts_with("./") && !url.starts_with("../") {
            return url.to_owned();
        }
        let remote = self.repository.find_remote("origin").ok();
        let origin = remote.as_ref().and_then(|remote| remote.url()).map(str::to_owned);
        let mut base = origin.unwrap_or_else(|| self.path.display().to_string());
        base.truncate(base.trim_end_matches('/').len());
        let mut rest = url;
        loop {
            if let Some(inner) = rest.strip_prefix("./") {
                rest = inner;
            } else if let Some(inner) = rest.strip_prefix("../") {
                rest = inner;
                base.truncate(base.rfind(['/', ':']).unwrap_or(0));
            } else {
                return format!("{base}/{rest}");
            }
        }
    }
}

/// The files of a commit, as a file system with its root at `/`.
pub(super) struct GitTree {
    repository: Rc<Repository>,
    root: Oid,
    /// The trees that were looked up, by their path.
    trees: RefCell<HashMap<Vec<u8>, Option<Oid>>>,
    /// Submodules by their path from the root.
    modules: HashMap<Vec<u8>, GitTree>,
}

/// What a path of a commit is.
enum GitNode {
    Tree(Oid),
    Blob(Oid, i32),
    /// A submodule that was not asked for: an empty directory.
    Submodule,
}

const MODE_TYPE: i32 = 0o170_000;
const MODE_LINK: i32 = 0o120_000;
const MODE_EXECUTABLE: i32 = 0o100;

fn other_error(error: git2::Error) -> io::Error {
    if error.code() == ErrorCode::NotFound { io::ErrorKind::NotFound.into() } else { io::Error::other(error) }
}

impl GitTree {
    /// The submodule that `path` is in and the path in there, or this tree itself.
    fn owner<'t>(&'t self, path: &'t [u8]) -> (&'t GitTree, &'t [u8]) {
        for (module, tree) in &self.modules {
            if let Some(rest) = path.strip_prefix(module.as_slice()) {
                if rest.is_empty() {
                    return (tree, rest);
                }
                if let Some(rest) = rest.strip_prefix(b"/") {
                    return tree.owner(rest);
                }
            }
        }
        (self, path)
    }

    /// The tree at `path`, from the root without a leading slash; `None` if it isn't one.
    fn tree_at(&self, path: &[u8]) -> Result<Option<Oid>, git2::Error> {
        if path.is_empty() {
            return Ok(Some(self.root));
        }
        if let Some(known) = self.trees.borrow().get(path) {
            return Ok(*known);
        }
        let found = match self.node(path)? {
            Some(GitNode::Tree(oid)) => Some(oid),
            _ => None,
        };
        self.trees.borrow_mut().insert(path.to_vec(), found);
        Ok(found)
    }

    fn node(&self, path: &[u8]) -> Result<Option<GitNode>, git2::Error> {
        if path.is_empty() {
            return Ok(Some(GitNode::Tree(self.root)));
        }
        let (parent, name) = match memchr::memrchr(b'/', path) {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let Some(parent) = self.tree_at(parent)? else { return Ok(None) };
        let tree = self.repository.find_tree(parent)?;
        let Some(entry) = tree.get_name_bytes(name) else { return Ok(None) };
        Ok(match entry.kind() {
            Some(ObjectType::Tree) => Some(GitNode::Tree(entry.id())),
            Some(ObjectType::Blob) => Some(GitNode::Blob(entry.id(), entry.filemode())),
            Some(ObjectType::Commit) => Some(GitNode::Submodule),
            _ => None,
        })
    }

    fn read<T>(
        &self,
        operation: Operation,
        path: &Path,
        read: impl FnOnce(&GitTree, &[u8], GitNode) -> io::Result<T>,
    ) -> Result<T, FsError> {
        let bytes = fs::bytes_of(path);
        let (owner, relative) = self.owner(bytes.strip_prefix(b"/").unwrap_or(bytes));
        owner
            .node(relative)
            .map_err(other_error)
            .and_then(|node| read(owner, relative, node.ok_or(io::ErrorKind::NotFound)?))
            .map_err(|error| FsError::new(operation, path, error))
    }

    fn blob(&self, oid: Oid) -> io::Result<Vec<u8>> {
        Ok(self.repository.find_blob(oid).map_err(other_error)?.content().to_vec())
    }
}

impl FileSystem for GitTree {
    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, FsError> {
        let found = self.read(Operation::Stat, path, |owner, _, node| {
            let directory = Metadata { file_type: FileType::Directory, executable: false, size: 0, modified: 0 };
            Ok(match node {
                GitNode::Tree(_) | GitNode::Submodule => directory,
                GitNode::Blob(_, mode) if mode & MODE_TYPE == MODE_LINK => {
                    Metadata { file_type: FileType::Symlink, ..directory }
                }
                GitNode::Blob(oid, mode) => {
                    let database = owner.repository.odb().map_err(other_error)?;
                    let (size, _) = database.read_header(oid).map_err(other_error)?;
                    Metadata {
                        file_type: FileType::Regular,
                        executable: mode & MODE_EXECUTABLE != 0,
                        size: size as u64,
                        modified: 0,
                    }
                }
            })
        });
        match found {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Vec<u8>, FsError> {
        self.read(Operation::ReadFile, path, |owner, _, node| match node {
            GitNode::Blob(oid, mode) if mode & MODE_TYPE != MODE_LINK => owner.blob(oid),
            GitNode::Blob(..) => Err(io::Error::from_raw_os_error(libc::ELOOP)),
            GitNode::Tree(_) | GitNode::Submodule => Err(io::ErrorKind::IsADirectory.into()),
        })
    }

    fn read_dir(&self, path: &Path) -> Result<Vec<DirEntry>, FsError> {
        self.read(Operation::ReadDir, path, |owner, _, node| {
            let oid = match node {
                GitNode::Tree(oid) => oid,
                GitNode::Submodule => return Ok(Vec::new()),
                GitNode::Blob(..) => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            };
            let tree = owner.repository.find_tree(oid).map_err(other_error)?;
            let mut entries: Vec<DirEntry> = tree
                .iter()
                .map(|entry| DirEntry {
                    name: OsStr::from_bytes(entry.name_bytes()).to_owned(),
                    file_type: match entry.kind() {
                        Some(ObjectType::Blob) if entry.filemode() & MODE_TYPE == MODE_LINK => FileType::Symlink,
                        Some(ObjectType::Blob) => FileType::Regular,
                        _ => FileType::Directory,
                    },
                })
                .collect();
            // Git sorts directories as if their names ended in a slash
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        })
    }

    fn read_link(&self, path: &Path) -> Result<OsString, FsError> {
        self.read(Operation::ReadLink, path, |owner, _, node| match node {
            GitNode::Blob(oid, mode) if mode & MODE_TYPE == MODE_LINK => owner.blob(oid).map(OsString::from_vec),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        })
    }
}
