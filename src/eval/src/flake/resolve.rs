//! From a flake's reference to its graph of inputs.

use super::error::FlakeError;
use super::fetch::{Fetcher, SourceInfo, SourceTree};
use super::git_cli;
use super::lock::{Edge, InputPath, Lock, LockFile, LockNode, ROOT, show_input_path};
use super::reference::{FlakeRef, Input};
use super::registry::UseRegistries;
use super::{FlakeDeclaration, FlakeHost, InputDeclaration};
use crate::fs::{self, FileSystem};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// How to load a flake.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Other references for some inputs, as `--override-input` gives them.
    pub overrides: Vec<(InputPath, FlakeRef)>,
    /// Whether an input that isn't in the lock file may be resolved although its reference can mean another source
    /// tomorrow. `builtins.getFlake` does not do that in pure evaluation; the command line does.
    pub allow_unlocked: bool,
    /// Which of the locks that there are to replace by what the references mean now.
    pub update: Update,
    /// What to do about a lock file that doesn't fit what `flake.nix` declares.
    pub policy: LockPolicy,
    /// Whether names are looked up in registries.
    pub registries: bool,
    /// The lock file to start from, instead of the flake's (`--reference-lock-file`).
    pub reference_lock_file: Option<PathBuf>,
    /// Where [`LockPolicy::Write`] writes to, instead of the flake's lock file (`--output-lock-file`).
    pub output_lock_file: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            overrides: Vec::new(),
            allow_unlocked: true,
            update: Update::Inputs(BTreeSet::new()),
            policy: LockPolicy::InMemory,
            registries: true,
            reference_lock_file: None,
            output_lock_file: None,
        }
    }
}

impl LoadOptions {
    /// `registries`, unless none are to be asked.
    fn registries(&self, registries: UseRegistries) -> UseRegistries {
        if self.registries { registries } else { UseRegistries::No }
    }

    /// The inputs that were named to be updated. If everything is, nothing is taken from the flake's lock file to begin with.
    fn named_updates(&self) -> impl Iterator<Item = &InputPath> {
        match &self.update {
            Update::Everything => None,
            Update::Inputs(paths) => Some(paths.iter()),
        }
        .into_iter()
        .flatten()
    }
}

/// Which locks are replaced although they fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Update {
    /// Those of these inputs.
    Inputs(BTreeSet<InputPath>),
    /// All.
    Everything,
}

/// What to do about a lock file that doesn't fit what `flake.nix` declares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockPolicy {
    /// Bring it up to date in memory, and say so: Nix's `--no-write-lock-file`.
    InMemory,
    /// Refuse, before anything is fetched in order to lock it: Nix's `--no-update-lock-file`.
    Refuse,
    /// Write it. If an input can't be locked, that is an error if `must`, and else a warning.
    Write {
        /// Whether the file has to be written.
        must: bool,
    },
}

/// A flake whose inputs, theirs, and so on are all resolved to sources.
#[derive(Debug)]
pub struct LockedFlake {
    /// What the flake itself was resolved to.
    pub flake_ref: FlakeRef,
    /// The attribute `description`.
    pub description: Option<String>,
    /// The lock file that fits the declared inputs.
    pub lock: LockFile,
    /// Whether that is another one than the file `flake.lock` was before.
    pub lock_changed: bool,
    /// Those inputs in [`LoadOptions::update`] that there are not.
    pub unmatched_updates: Vec<InputPath>,
    /// Whether the flake isn't the commit that it was read from, as its lock file is another one in memory.
    is_dirty: bool,
    nodes: Vec<Node>,
}

/// A node of the lock file, ready for use.
#[derive(Debug)]
struct Node {
    key: String,
    inputs: BTreeMap<String, usize>,
    is_flake: bool,
    place: Place,
}

/// Where a node's source comes from.
#[derive(Debug)]
enum Place {
    /// It was fetched in order to be locked.
    Fetched { tree: Rc<SourceTree>, input: Input, subdir: String },
    /// What the lock file says.
    Locked { input: Input, subdir: String },
    /// A directory in the source of another node.
    Relative { parent: usize, path: String },
}

/// The source of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSource {
    /// The store path of the whole source, in full: `sourceInfo.outPath`.
    pub source_path: String,
    /// The directory of the flake in there: `outPath`. It is a text as Nix makes it, not always canonical.
    pub out_path: String,
    /// The source's metadata: the rest of `sourceInfo`.
    pub info: SourceInfo,
}

impl LockedFlake {
    /// How many nodes there are. They are numbered from 0, the flake itself.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always the flake itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The name of a node in the lock file.
    #[must_use]
    pub fn key(&self, node: usize) -> &str {
        &self.nodes[node].key
    }

    /// The inputs of a node by name, `follows` followed.
    #[must_use]
    pub fn inputs(&self, node: usize) -> &BTreeMap<String, usize> {
        &self.nodes[node].inputs
    }

    /// Whether a node is a flake, not just a source.
    #[must_use]
    pub fn is_flake(&self, node: usize) -> bool {
        self.nodes[node].is_flake
    }

    /// The source of a node. Where the lock file has its NAR hash nothing is read for this.
    ///
    /// # Errors
    /// When the source has to be read and cannot be.
    pub fn source(&self, fetcher: &Fetcher, node: usize) -> Result<NodeSource, FlakeError> {
        // relative inputs of relative inputs...; the chain ends, as a lock file has no cycles but through parents
        let mut suffix = String::new();
        let mut index = node;
        for _ in 0..=self.nodes.len() {
            let (tree, input, subdir) = match &self.nodes[index].place {
                Place::Relative { parent, path } => {
                    if !path.is_empty() {
                        suffix.insert_str(0, &format!("/{path}"));
                    }
                    index = *parent;
                    continue;
                }
                Place::Fetched { tree, input, subdir } => (tree.clone(), input.clone(), subdir),
                Place::Locked { input, subdir } => {
                    let tree = fetcher.fetch_locked(input).map_err(|error| {
                        error.while_doing(format!("while fetching the flake input '{}'", self.nodes[index].key))
                    })?;
                    let input = tree.input.clone();
                    (tree, input, subdir)
                }
            };
            let source_path = fetcher.store().print(&tree.store_path);
            let separator = if subdir.is_empty() { "" } else { "/" };
            let out_path = format!("{source_path}{separator}{subdir}{suffix}");
            let mut info = SourceInfo::of(&input)?;
            if index == ROOT && self.is_dirty {
                info = info.forced_dirty();
            }
            return Ok(NodeSource { source_path, out_path, info });
        }
        Err(FlakeError::Follows(format!(
            "lock file node '{}' is relative to itself through its parents",
            self.nodes[node].key
        )))
    }
}

/// Resolves a flake and all its inputs.
///
/// The flake itself is read; an input only if the lock file does not have it, or not as it is declared now.
///
/// # Errors
/// When a source that has to be read cannot be had, a `flake.nix` is wrong, a lock file is malformed, or `follows` lead
/// nowhere or round in circles.
pub fn load<H: FlakeHost>(
    fetcher: &Fetcher,
    host: &H,
    flake_ref: &FlakeRef,
    options: &LoadOptions,
) -> Result<LockedFlake, H::Error> {
    let access = Access::Registries(options.registries(UseRegistries::All));
    let root = read_flake(fetcher, host, flake_ref, &[], access)?;
    let locked_ref = root.locked_ref.clone();
    lock_inputs(fetcher, host, flake_ref, root, options)
        .map_err(|error| host.add_context(error, format!("while updating the lock file of flake '{locked_ref}'")))
}

/// How to get at a flake.
#[derive(Clone, Copy)]
enum Access {
    /// Its reference is an entry of a lock file.
    Locked,
    /// Its reference may be a name, to be looked up in these registries.
    Registries(UseRegistries),
}

/// A flake that was read.
struct Flake {
    declaration: FlakeDeclaration,
    locked_ref: FlakeRef,
    /// The source it is in and the directory in there, or the store path for a relative one.
    tree: Rc<SourceTree>,
    /// Its directory, in the overlay.
    dir: PathBuf,
}

/// Fetches the source of `flake_ref` and reads its `flake.nix`. Its `follows` will start with `prefix`.
fn read_flake<H: FlakeHost>(
    fetcher: &Fetcher,
    host: &H,
    flake_ref: &FlakeRef,
    prefix: &[String],
    access: Access,
) -> Result<Flake, H::Error> {
    let mut flake_ref = flake_ref.clone();
    let mut tree = match access {
        Access::Locked => fetcher.fetch_locked(&flake_ref.input)?,
        Access::Registries(registries) => {
            let (input, dir) = fetcher.resolve(&flake_ref.input, registries)?;
            flake_ref = FlakeRef { input, subdir: dir.unwrap_or(flake_ref.subdir) };
            fetcher.fetch(&flake_ref.input)?
        }
    };
    let flake_ref = &flake_ref;
    let mut declaration = read_declaration(fetcher, host, flake_ref, &tree, prefix)?;
    let mut wanted = tree.input.clone();
    for (name, attr) in &declaration.self_attrs {
        if !matches!(name.as_str(), "submodules" | "lfs") {
            let message = format!("flake 'self' attribute '{name}' is not supported");
            return Err(FlakeError::Declaration(message).into());
        }
        wanted.set(name, attr.clone());
    }
    if wanted != tree.input {
        // fetched otherwise, it is another source
        let mut input = flake_ref.input.clone();
        for (name, attr) in &declaration.self_attrs {
            input.set(name, attr.clone());
        }
        input.remove("narHash");
        tree = fetcher.fetch(&input)?;
        declaration = read_declaration(fetcher, host, flake_ref, &tree, prefix)?;
    }
    let dir = directory_in(&PathBuf::from(fetcher.store().print(&tree.store_path)), &flake_ref.subdir);
    let locked_ref = FlakeRef { input: tree.input.clone(), subdir: flake_ref.subdir.clone() };
    Ok(Flake { declaration, locked_ref, tree, dir })
}

fn read_declaration<H: FlakeHost>(
    fetcher: &Fetcher,
    host: &H,
    flake_ref: &FlakeRef,
    tree: &SourceTree,
    prefix: &[String],
) -> Result<FlakeDeclaration, H::Error> {
    let root = PathBuf::from(fetcher.store().print(&tree.store_path));
    let file = directory_in(&root, &flake_ref.subdir).join("flake.nix");
    if !fetcher.overlay().exists(&file).map_err(FlakeError::from)? {
        let relative = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().into_owned();
        let error = tree.missing_file(fetcher.store(), &relative);
        return Err(error.while_doing(format!("while reading the flake '{flake_ref}'")).into());
    }
    declare(host, &file, flake_ref, prefix)
}

/// Reads a `flake.nix`, adds the inputs that only `outputs` names, and makes `follows` start at the root.
fn declare<H: FlakeHost>(
    host: &H,
    file: &Path,
    flake_ref: &FlakeRef,
    prefix: &[String],
) -> Result<FlakeDeclaration, H::Error> {
    let mut declaration = host.read_flake(file, flake_ref)?;
    for input in declaration.inputs.values_mut() {
        prefix_follows(input, prefix);
    }
    for name in &declaration.output_arguments {
        if name != "self" && !declaration.inputs.contains_key(name) {
            let input = InputDeclaration { flake_ref: Some(FlakeRef::indirect(name)?), ..InputDeclaration::default() };
            declaration.inputs.insert(name.clone(), input);
        }
    }
    Ok(declaration)
}

fn prefix_follows(input: &mut InputDeclaration, prefix: &[String]) {
    if let Some(follows) = &mut input.follows {
        follows.splice(0..0, prefix.iter().cloned());
    }
    for inner in input.overrides.values_mut() {
        prefix_follows(inner, prefix);
    }
}

/// `dir/subdir`, which cannot lead out of `dir` by `..`.
fn directory_in(dir: &Path, subdir: &str) -> PathBuf {
    let inner = fs::canonical(subdir.as_bytes());
    inner.strip_prefix("/").map_or_else(|_| dir.to_owned(), |inner| dir.join(inner))
}

fn read_lock(fetcher: &Fetcher, dir: &Path) -> Result<Rc<LockFile>, FlakeError> {
    let path = dir.join("flake.lock");
    if !fetcher.overlay().exists(&path)? {
        return Ok(Rc::default());
    }
    parse_lock(fetcher, &fetcher.overlay().read_file(&path)?, &path)
}

fn parse_lock(fetcher: &Fetcher, contents: &[u8], path: &Path) -> Result<Rc<LockFile>, FlakeError> {
    let lock = LockFile::parse(contents, &path.to_string_lossy())?;
    for warning in &lock.warnings {
        fetcher.warn(warning);
    }
    Ok(Rc::new(lock))
}

fn lock_inputs<H: FlakeHost>(
    fetcher: &Fetcher,
    host: &H,
    flake_ref: &FlakeRef,
    root: Flake,
    options: &LoadOptions,
) -> Result<LockedFlake, H::Error> {
    let old_lock = match &options.reference_lock_file {
        None => read_lock(fetcher, &root.dir)?,
        Some(file) => parse_lock(fetcher, &std::fs::read(file).map_err(|error| unreadable(file, error))?, file)?,
    };
    let mut resolver = Resolver {
        fetcher,
        host,
        top: flake_ref,
        options,
        overrides: BTreeMap::new(),
        explicit: BTreeSet::new(),
        used: BTreeSet::new(),
        seen: BTreeSet::new(),
        lock: LockFile::default(),
        fetched: HashMap::new(),
        parents: Vec::new(),
    };
    for (path, flake_ref) in &options.overrides {
        let input = InputDeclaration { flake_ref: Some(flake_ref.clone()), ..InputDeclaration::default() };
        resolver.overrides.insert(path.clone(), Override { input, dir: root.dir.clone(), parent: None });
        resolver.explicit.insert(path.clone());
    }
    let old = OldNode { file: old_lock.clone(), index: ROOT };
    let place = NodeContext { path: &[], follows_prefix: &[], dir: &root.dir, trust_lock: false };
    let old = (options.update != Update::Everything).then_some(&old);
    resolver.resolve(&root.declaration.inputs, ROOT, old, place)?;
    for (path, flake_ref) in &options.overrides {
        if !resolver.used.contains(path) {
            let path = show_input_path(path);
            fetcher.warn(&format!("the flag '--override-input {path} {flake_ref}' does not match any input"));
        }
    }
    let unmatched_updates: Vec<InputPath> =
        options.named_updates().filter(|path| !resolver.seen.contains(*path)).cloned().collect();
    let Resolver { lock, mut fetched, .. } = resolver;
    lock.check()?;
    let lock_changed = lock != *old_lock;
    let mut is_dirty = false;
    let mut locked_ref = root.locked_ref;
    if lock_changed || (options.output_lock_file.is_some() && matches!(options.policy, LockPolicy::Write { .. })) {
        let changes = describe_changes(&old_lock, &lock);
        match options.policy {
            LockPolicy::InMemory => {
                fetcher.warn(&format!("not writing modified lock file of flake '{flake_ref}':\n{changes}"));
                is_dirty = true;
            }
            LockPolicy::Refuse => {
                return Err(FlakeError::StaleLock { flake: flake_ref.to_string(), reason: changes }.into());
            }
            LockPolicy::Write { must } => {
                let target = LockTarget::of(flake_ref, options)?;
                if let Some(unlocked) = lock.unlocked(fetcher.settings().allow_dirty_locks)? {
                    let why =
                        format!("lock file of flake '{flake_ref}' because it has an unlocked input ('{unlocked}')");
                    if must {
                        let help = "Use '--allow-dirty-locks' to allow this anyway.";
                        return Err(FlakeError::Source(format!("Not writing {why}. {help}")).into());
                    }
                    if !fetcher.settings().quiet_about_dirty {
                        fetcher.warn(&format!("not writing {why}"));
                    }
                } else {
                    if let Some(message) = target.announcement(&changes) {
                        fetcher.warn(&message);
                    }
                    target.write(&lock.to_text())?;
                    // the flake isn't what it was: a repository that was clean is dirty now. Its files are still the old ones,
                    // as with Nix.
                    fetcher.forget(&flake_ref.input);
                    let access = Access::Registries(options.registries(UseRegistries::All));
                    locked_ref = read_flake(fetcher, host, flake_ref, &[], access)?.locked_ref;
                }
            }
        }
    }
    fetched.insert(ROOT, (root.tree, locked_ref.input.clone(), relative_subdir(&locked_ref.subdir)));
    let nodes = build_nodes(&lock, fetched)?;
    let description = root.declaration.description;
    Ok(LockedFlake { flake_ref: locked_ref, description, lock, lock_changed, unmatched_updates, is_dirty, nodes })
}

/// Where a lock file is written to.
struct LockTarget {
    file: PathBuf,
    /// The root of the repository that it is to be tracked in.
    repository: Option<PathBuf>,
    /// Whether it is the flake's own.
    own: bool,
}

impl LockTarget {
    /// Where the lock file of a flake goes.
    ///
    /// # Errors
    /// When the flake is not on this machine, so that nothing can be written.
    fn of(flake_ref: &FlakeRef, options: &LoadOptions) -> Result<LockTarget, FlakeError> {
        if let Some(file) = &options.output_lock_file {
            return Ok(LockTarget { file: file.clone(), repository: None, own: false });
        }
        let Some((root, is_repository)) = flake_ref.input.directory()? else {
            return Err(FlakeError::Source(format!(
                "cannot write modified lock file of flake '{flake_ref}' (use '--no-write-lock-file' to ignore)"
            )));
        };
        let file = directory_in(&root, &flake_ref.subdir).join("flake.lock");
        Ok(LockTarget { file, repository: is_repository.then_some(root), own: true })
    }

    /// What to say before it is written.
    fn announcement(&self, changes: &str) -> Option<String> {
        let file = self.file.display();
        self.own.then(|| match (self.file.exists(), changes.is_empty()) {
            (true, true) => format!("updating lock file \"{file}\""),
            (true, false) => format!("updating lock file \"{file}\":\n{changes}"),
            (false, _) => format!("creating lock file \"{file}\": \n{changes}"),
        })
    }

    /// Writes the file, all or nothing, and has Git track it.
    fn write(&self, text: &str) -> Result<(), FlakeError> {
        let failed = |error: std::io::Error| {
            FlakeError::Source(format!("cannot write \"{}\": {}", self.file.display(), fs::io_reason(&error)))
        };
        // a link stays one
        let file = self.file.canonicalize().unwrap_or_else(|_| self.file.clone());
        let write = || {
            let mut temporary = tempfile::Builder::new()
                .prefix(".tmp-")
                .permissions(std::fs::Permissions::from_mode(0o666))
                .tempfile_in(file.parent().unwrap_or(Path::new("/")))?;
            temporary.write_all(text.as_bytes())?;
            if let Ok(metadata) = std::fs::metadata(&file) {
                temporary.as_file().set_permissions(metadata.permissions())?;
            }
            temporary.as_file().sync_all()?;
            temporary.persist(&file)?;
            Ok(())
        };
        write().map_err(failed)?;
        match &self.repository {
            Some(repository) => git_cli::intend_to_add(repository, &self.file),
            None => Ok(()),
        }
    }
}

fn unreadable(file: &Path, error: std::io::Error) -> FlakeError {
    fs::FsError::new(fs::Operation::ReadFile, file, error).into()
}

/// A subdirectory in canonical form, without slashes at its ends.
fn relative_subdir(subdir: &str) -> String {
    fs::canonical(subdir.as_bytes()).to_string_lossy().trim_start_matches('/').to_owned()
}

type FetchedNodes = HashMap<usize, (Rc<SourceTree>, Input, String)>;

fn build_nodes(lock: &LockFile, mut fetched: FetchedNodes) -> Result<Vec<Node>, FlakeError> {
    let keys = lock.keys();
    let find = |key: &str, path: &[String]| {
        lock.find(path)?.ok_or_else(|| {
            let path = show_input_path(path);
            FlakeError::Follows(format!("lock file node '{key}' refers to a non-existent input '{path}'"))
        })
    };
    lock.nodes
        .iter()
        .zip(keys)
        .enumerate()
        .map(|(index, (node, key))| {
            let mut inputs = BTreeMap::new();
            for (name, edge) in &node.inputs {
                let target = match edge {
                    Edge::Node(target) => *target,
                    Edge::Follows(path) => find(&key, path)?,
                };
                inputs.insert(name.clone(), target);
            }
            let place = match (fetched.remove(&index), &node.lock) {
                (Some((tree, input, subdir)), _) => Place::Fetched { tree, input, subdir },
                (None, Some(lock)) => match (lock.locked.input.relative_path(), &lock.parent) {
                    (Some(path), Some(parent)) => {
                        Place::Relative { parent: find(&key, parent)?, path: path.to_owned() }
                    }
                    (Some(_), None) => {
                        return Err(FlakeError::Follows(format!(
                            "lock file node '{key}' is a relative path, but it has no 'parent' that it is relative to"
                        )));
                    }
                    (None, _) => Place::Locked { input: lock.locked.input.clone(), subdir: lock.locked.subdir.clone() },
                },
                (None, None) => return Err(FlakeError::Follows(format!("lock file node '{key}' is not locked"))),
            };
            let is_flake = node.lock.as_ref().is_none_or(|lock| lock.is_flake);
            Ok(Node { key, inputs, is_flake, place })
        })
        .collect()
}

/// What one flake declares for an input of another.
#[derive(Clone)]
struct Override {
    input: InputDeclaration,
    /// The directory of the flake that declares it: what a relative path is relative to.
    dir: PathBuf,
    parent: Option<InputPath>,
}

/// A node of a lock file that was read, from which locks are taken over.
#[derive(Clone)]
struct OldNode {
    file: Rc<LockFile>,
    index: usize,
}

impl OldNode {
    fn node(&self) -> &LockNode {
        &self.file.nodes[self.index]
    }

    fn lock(&self) -> Option<&Lock> {
        self.node().lock.as_ref()
    }
}

/// Where the inputs that are being resolved are.
#[derive(Clone, Copy)]
struct NodeContext<'c> {
    /// The node's path from the root.
    path: &'c [String],
    /// What the old lock's `follows` start at.
    follows_prefix: &'c [String],
    /// The node's directory.
    dir: &'c Path,
    /// Whether the inputs come from the lock file itself.
    trust_lock: bool,
}

struct Resolver<'r, H> {
    fetcher: &'r Fetcher,
    host: &'r H,
    /// The flake whose inputs these are, as it was asked for.
    top: &'r FlakeRef,
    options: &'r LoadOptions,
    overrides: BTreeMap<InputPath, Override>,
    /// The paths in `overrides` that came from the command line.
    explicit: BTreeSet<InputPath>,
    used: BTreeSet<InputPath>,
    /// The inputs that there are, but for those that follow others.
    seen: BTreeSet<InputPath>,
    lock: LockFile,
    fetched: FetchedNodes,
    /// The references that led to the flake whose inputs are being resolved.
    parents: Vec<FlakeRef>,
}

/// Deeper nesting of inputs is taken for a lock file that was made to break things.
const MAX_DEPTH: usize = 200;
/// And so is a larger number of nodes.
const MAX_NODES: usize = 100_000;

impl<H: FlakeHost> Resolver<'_, H> {
    fn add_overrides(&mut self, input: &InputDeclaration, path: &[String], context: NodeContext<'_>) {
        for (name, inner) in &input.overrides {
            let mut path = path.to_vec();
            path.push(name.clone());
            if inner.flake_ref.is_some() || inner.follows.is_some() {
                // what is declared nearer to the root was here first, and counts
                self.overrides.entry(path.clone()).or_insert_with(|| Override {
                    input: inner.clone(),
                    dir: context.dir.to_owned(),
                    parent: Some(context.path.to_vec()),
                });
            }
            self.add_overrides(inner, &path, context);
        }
    }

    /// Resolves `inputs`, those of the node with index `node`.
    fn resolve(
        &mut self,
        inputs: &BTreeMap<String, InputDeclaration>,
        node: usize,
        old: Option<&OldNode>,
        context: NodeContext<'_>,
    ) -> Result<(), H::Error> {
        if context.path.len() > MAX_DEPTH || self.lock.nodes.len() > MAX_NODES {
            return Err(FlakeError::Follows("the flake's inputs nest too deeply or are too many".to_owned()).into());
        }
        let path_of = |name: &String| {
            let mut path = context.path.to_vec();
            path.push(name.clone());
            path
        };
        for (name, input) in inputs {
            self.add_overrides(input, &path_of(name), context);
        }
        for path in self.overrides.keys() {
            let Some((name, parent)) = path.split_last() else { continue };
            if parent == context.path && !inputs.contains_key(name) {
                let parent = show_input_path(parent);
                self.fetcher.warn(&format!("input '{parent}' has an override for a non-existent input '{name}'"));
            }
        }
        for (name, input) in inputs {
            let path = path_of(name);
            self.resolve_input(name, input, &path, node, old, context).map_err(|error| {
                let path = show_input_path(&path);
                self.host.add_context(error, format!("while updating the flake input '{path}'"))
            })?;
        }
        Ok(())
    }

    fn resolve_input(
        &mut self,
        name: &str,
        declared: &InputDeclaration,
        path: &InputPath,
        node: usize,
        old: Option<&OldNode>,
        context: NodeContext<'_>,
    ) -> Result<(), H::Error> {
        let overriding = self.overrides.get(path).cloned();
        let explicit = self.explicit.contains(path);
        if overriding.is_some() {
            self.used.insert(path.clone());
        }
        let input = overriding.as_ref().map_or(declared, |overriding| &overriding.input);
        if let Some(target) = &input.follows {
            self.lock.nodes[node].inputs.insert(name.to_owned(), Edge::Follows(target.clone()));
            return Ok(());
        }
        let flake_ref = match &input.flake_ref {
            Some(flake_ref) => flake_ref.clone(),
            None => FlakeRef::indirect(name)?,
        };
        let relative = flake_ref.input.relative_path().map(str::to_owned);
        let parent = match (&relative, &overriding) {
            (None, _) => None,
            (Some(_), Some(overriding)) => overriding.parent.clone(),
            (Some(_), None) => Some(context.path.to_vec()),
        };
        // only where it is needed: below a node that is taken over from the lock file, `dir` is not that node's
        let base = overriding.as_ref().map_or(context.dir, |overriding| overriding.dir.as_path());
        let fetcher = self.fetcher;
        let relative_dir =
            || relative.as_ref().map(|relative| relative_dir(fetcher, base, relative, &flake_ref)).transpose();

        let old_input = old.and_then(|old| match old.node().inputs.get(name) {
            Some(Edge::Node(index)) => Some(OldNode { file: old.file.clone(), index: *index }),
            _ => None,
        });
        self.seen.insert(path.clone());
        let old_input = old_input.filter(|_| !self.options.named_updates().any(|update| update == path));
        let kept = old_input.as_ref().and_then(|old_input| Some((old_input, old_input.lock()?))).filter(|(_, lock)| {
            lock.original.canonical() == flake_ref.canonical() && lock.parent == parent && !explicit
        });
        if let Some((old_input, old_lock)) = kept {
            let child = self.add_node(name, node, old_lock.clone());
            let updates_below = self.options.named_updates().any(|update| update.starts_with(path));
            let inputs = if updates_below { None } else { self.inputs_of_lock(old_input, path, context) };
            return match inputs {
                Some(inputs) => {
                    let context = NodeContext { path, trust_lock: true, ..context };
                    self.resolve(&inputs, child, Some(old_input), context)
                }
                None => {
                    let dir = relative_dir()?;
                    let flake = self.read_input(&old_lock.locked, dir.as_deref(), path, Access::Locked)?;
                    self.note_fetched(child, &flake);
                    let context = NodeContext { path, trust_lock: false, dir: &flake.dir, ..context };
                    self.resolve(&flake.declaration.inputs, child, Some(old_input), context)
                }
            };
        }

        if self.options.policy == LockPolicy::Refuse {
            let reason = format!("its input '{}' isn't locked as it is declared", show_input_path(path));
            return Err(FlakeError::StaleLock { flake: self.top.to_string(), reason }.into());
        }
        if !self.options.allow_unlocked && relative.is_none() && !flake_ref.input.is_locked()? {
            let path = show_input_path(path);
            let message = format!("cannot update unlocked flake input '{path}' in pure mode");
            return Err(FlakeError::Source(message).into());
        }
        let registries = self.options.registries(if explicit { UseRegistries::All } else { UseRegistries::Limited });
        // the lock file keeps what was declared, so that an override on the command line doesn't stick
        let original = match &declared.flake_ref {
            Some(declared) if explicit => declared.clone(),
            _ => flake_ref.clone(),
        };
        if declared.is_flake {
            let dir = relative_dir()?;
            let flake = self.read_input(&flake_ref, dir.as_deref(), path, Access::Registries(registries))?;
            let lock = Lock { locked: flake.locked_ref.clone(), original, is_flake: true, parent };
            let child = self.add_node(name, node, lock);
            self.note_fetched(child, &flake);
            if self.parents.contains(&flake_ref) {
                return Err(FlakeError::Follows(format!("found circular import of flake '{flake_ref}'")).into());
            }
            self.parents.push(flake_ref);
            let old = OldNode { file: read_lock(self.fetcher, &flake.dir)?, index: ROOT };
            let context = NodeContext { path, follows_prefix: path, dir: &flake.dir, trust_lock: false };
            let result = self.resolve(&flake.declaration.inputs, child, Some(&old), context);
            self.parents.pop();
            result
        } else {
            let (tree, locked, subdir) = match relative_dir()? {
                Some(dir) => {
                    let (tree, subdir) = self.tree_around(&dir, &flake_ref)?;
                    (tree, flake_ref.clone(), subdir)
                }
                None => {
                    let registries = self.options.registries(UseRegistries::Limited);
                    let tree = self.fetcher.fetch(&self.fetcher.resolve(&flake_ref.input, registries)?.0)?;
                    let locked = FlakeRef { input: tree.input.clone(), subdir: flake_ref.subdir.clone() };
                    // the source as a whole, wherever the reference points in it
                    (tree, locked, String::new())
                }
            };
            let source = (tree, locked.input.clone(), subdir);
            let child = self.add_node(name, node, Lock { locked, original, is_flake: false, parent });
            self.fetched.insert(child, source);
            Ok(())
        }
    }

    fn add_node(&mut self, name: &str, parent: usize, lock: Lock) -> usize {
        let index = self.lock.nodes.len();
        self.lock.nodes.push(LockNode { inputs: BTreeMap::new(), lock: Some(lock) });
        self.lock.nodes[parent].inputs.insert(name.to_owned(), Edge::Node(index));
        index
    }

    fn note_fetched(&mut self, node: usize, flake: &Flake) {
        let root = self.fetcher.store().print(&flake.tree.store_path);
        let subdir = flake.dir.strip_prefix(root).unwrap_or(Path::new("")).to_string_lossy().into_owned();
        self.fetched.insert(node, (flake.tree.clone(), flake.locked_ref.input.clone(), subdir));
    }

    /// The inputs of a locked node as its lock file has them, so that the flake itself needn't be read. `None` if it
    /// does: if the lock file's `follows` may come from an override that is no longer declared.
    fn inputs_of_lock(
        &self,
        old: &OldNode,
        path: &InputPath,
        context: NodeContext<'_>,
    ) -> Option<BTreeMap<String, InputDeclaration>> {
        let mut inputs = BTreeMap::new();
        for (name, edge) in &old.node().inputs {
            let input = match edge {
                Edge::Node(index) => {
                    let lock = old.file.nodes[*index].lock.as_ref()?;
                    InputDeclaration {
                        flake_ref: Some(lock.original.clone()),
                        is_flake: lock.is_flake,
                        ..InputDeclaration::default()
                    }
                }
                Edge::Follows(target) => {
                    if !context.trust_lock {
                        let mut inner = path.clone();
                        inner.push(name.clone());
                        if !self.overrides.contains_key(&inner) {
                            return None;
                        }
                    }
                    let follows = context.follows_prefix.iter().chain(target).cloned().collect();
                    InputDeclaration { follows: Some(follows), ..InputDeclaration::default() }
                }
            };
            inputs.insert(name.clone(), input);
        }
        Some(inputs)
    }

    /// Reads the flake of an input, which is at `relative_dir` if it is a relative one.
    fn read_input(
        &self,
        flake_ref: &FlakeRef,
        relative_dir: Option<&Path>,
        path: &[String],
        access: Access,
    ) -> Result<Flake, H::Error> {
        let Some(dir) = relative_dir else {
            return read_flake(self.fetcher, self.host, flake_ref, path, access);
        };
        let (tree, _) = self.tree_around(dir, flake_ref)?;
        let dir = directory_in(dir, &flake_ref.subdir);
        let file = dir.join("flake.nix");
        self.fetcher.overlay().metadata(&file).map_err(FlakeError::from)?;
        let declaration = declare(self.host, &file, flake_ref, path)?;
        Ok(Flake { declaration, locked_ref: flake_ref.clone(), tree, dir })
    }

    /// The source that a path of the overlay is in, and the path in there.
    fn tree_around(&self, dir: &Path, flake_ref: &FlakeRef) -> Result<(Rc<SourceTree>, String), FlakeError> {
        let (store_path, rest) =
            self.fetcher.store().split(fs::bytes_of(dir)).map_err(|_| outside_of_source(flake_ref, dir))?;
        let subdir = String::from_utf8_lossy(rest).trim_start_matches('/').to_owned();
        Ok((Rc::new(SourceTree::inside(store_path, flake_ref.input.clone())), subdir))
    }
}

/// The directory of a relative input that a flake in `base` declares. It has to be in the same source.
fn relative_dir(fetcher: &Fetcher, base: &Path, relative: &str, flake_ref: &FlakeRef) -> Result<PathBuf, FlakeError> {
    let full = fs::canonical(fs::bytes_of(&base.join(relative)));
    let source = |path: &Path| fetcher.store().split(fs::bytes_of(path)).map(|(store_path, _)| store_path).ok();
    if source(&full).is_none() || source(&full) != source(base) {
        return Err(outside_of_source(flake_ref, &full));
    }
    Ok(full)
}

fn outside_of_source(flake_ref: &FlakeRef, dir: &Path) -> FlakeError {
    let dir = dir.display();
    FlakeError::Source(format!("relative input '{flake_ref}' leads to '{dir}', which is outside of its source"))
}

/// The differences between two lock files, a line for each input.
fn describe_changes(old: &LockFile, new: &LockFile) -> String {
    let (old, new) = (shown_inputs(old), shown_inputs(new));
    let mut lines = Vec::new();
    for path in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let shown = show_input_path(path);
        match (old.get(path), new.get(path)) {
            (None, Some(new)) => lines.push(format!("• Added input '{shown}':\n    {new}")),
            (Some(_), None) => lines.push(format!("• Removed input '{shown}'")),
            (Some(old), Some(new)) if old != new => {
                lines.push(format!("• Updated input '{shown}':\n    {old}\n  → {new}"));
            }
            _ => {}
        }
    }
    lines.join("\n")
}

/// What each input is, as text, by its path from the root.
fn shown_inputs(lock: &LockFile) -> BTreeMap<InputPath, String> {
    let show = |edge: &Edge| match edge {
        Edge::Follows(target) => format!("follows '{}'", show_input_path(target)),
        Edge::Node(child) => lock.nodes[*child].lock.as_ref().map_or_else(String::new, |lock| {
            let date = SourceInfo::of(&lock.locked.input)
                .ok()
                .and_then(|info| info.last_modified_date())
                .filter(|date| date.len() == 14)
                .map(|date| format!(" ({}-{}-{})", &date[..4], &date[4..6], &date[6..8]))
                .unwrap_or_default();
            format!("'{}'{date}", lock.locked)
        }),
    };
    let mut inputs = BTreeMap::new();
    lock.visit_inputs(|path, edge| {
        inputs.insert(path.clone(), show(edge));
    });
    inputs
}
