//! The Nix store of this machine, for what an evaluation has made or needs to have built. It is reached over the worker
//! protocol: the daemon of a multi-user installation, or a process of a single-user one.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow};
use bento_eval::store::{BuiltOutput, Store, StoreError, Wanted};
use bento_store::derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath};
use bento_store::store_path::{DRV_EXTENSION, StoreDir, StorePath};
use bento_store::worker::{
    Activity, Added, BuildMode, BuildStatus, Connection, Contents, Event, Listener, Object, Options, WorkerError,
};
use tempfile::TempDir;

/// The machine's Nix store. It is connected to when something is asked of it. Clones share the connection.
#[derive(Clone, Debug)]
pub struct NixStore {
    dir: StoreDir,
    open: Arc<Mutex<Open>>,
}

/// What is only there while the store is in use.
#[derive(Debug)]
struct Open {
    connection: Option<Connection>,
    /// Holds copies of what the store has and this process can't see.
    copies: Option<TempDir>,
    /// The process that it belongs to.
    process: u32,
}

impl Default for Open {
    fn default() -> Self {
        Self { connection: None, copies: None, process: std::process::id() }
    }
}

impl Open {
    /// Leaves what it has to the process that has forked this one, which goes on using it.
    fn leave_to_parent(&mut self) {
        if self.process != std::process::id() {
            std::mem::forget((self.connection.take(), self.copies.take()));
            self.process = std::process::id();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.leave_to_parent();
    }
}

/// How much a daemon has to want to say something for it to be shown: as much as Nix shows, unless told otherwise.
const SHOWN: u64 = 3;

impl NixStore {
    /// The store whose directory is `dir`. `NIX_REMOTE`, `NIX_STATE_DIR` and `NIX_DAEMON_SOCKET_PATH` say how to reach it, as
    /// they say it to Nix.
    pub fn new(dir: StoreDir) -> Self {
        Self { dir, open: Arc::default() }
    }

    /// The store directory.
    pub fn dir(&self) -> &StoreDir {
        &self.dir
    }

    /// Opens a connection of the caller's own; `listener` makes what hears what the daemon tells while it works.
    ///
    /// # Errors
    /// There is no Nix on this machine, or it can't be reached.
    pub fn connect(&self, listener: impl Fn() -> Listener) -> Result<Connection, WorkerError> {
        let options = || Options { listener: listener(), ..Options::default() };
        let writable = |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok();
        let command = match way(|name| std::env::var_os(name), writable) {
            Way::Socket(socket) => return Connection::open(&socket, self.dir.clone(), options()),
            Way::Process => |program: &str, arguments: &[&str]| {
                let mut command = Command::new(program);
                command.args(arguments);
                Connection::start(command, self.dir.clone(), options())
            },
        };
        match command("nix-daemon", &["--stdio"]) {
            // where Nix was installed without the names of old
            Err(WorkerError::Start { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                command("nix", &["--extra-experimental-features", "nix-command", "daemon", "--stdio"])
            }
            other => other,
        }
    }

    /// Sees to it that these derivations, which an evaluation has made, are in the store, with all that they need. Gives how
    /// much was missing.
    ///
    /// # Errors
    /// The store can't be reached, or does not take them.
    pub fn add(&self, evaluator: &bento_eval::Evaluator<'_>, drvs: &[StorePath]) -> Result<Added> {
        let objects = evaluator.closure(drvs.iter().cloned());
        let _turn = self.take_turn();
        self.with(|connection| connection.add_missing(&objects, evaluator))
            .context("cannot add the derivations to the Nix store")
    }

    /// Waits until no other process of ours adds to the store, and keeps others waiting. A store can lose track of what is sent
    /// to them when somebody else adds the same path at that moment. Where the store is elsewhere, there is no waiting.
    fn take_turn(&self) -> Option<std::fs::File> {
        let turn = std::fs::File::open(self.dir.as_str()).ok()?;
        turn.lock().ok()?;
        Some(turn)
    }

    /// Makes `link`, an absolute path, a symbolic link to `path`, which the store keeps as long as the link is there.
    ///
    /// # Errors
    /// There is something else than a link already, it can't be made, or the store can't be reached.
    pub fn add_root(&self, path: &StorePath, link: &Path) -> Result<()> {
        let make = || {
            if std::fs::symlink_metadata(link).is_ok_and(|found| !found.is_symlink()) {
                return Err(std::io::Error::other("there is something else than a symbolic link already"));
            }
            let parent = link.parent().unwrap_or(Path::new("/"));
            let beside = tempfile::Builder::new().prefix(".bento-").tempdir_in(parent)?;
            let made = beside.path().join("link");
            std::os::unix::fs::symlink(self.dir.print(path), &made)?;
            std::fs::rename(&made, link)
        };
        make().with_context(|| format!("cannot make the link '{}'", link.display()))?;
        self.with(|connection| connection.add_indirect_root(link))
            .with_context(|| format!("cannot have the Nix store keep what '{}' points to", link.display()))
    }

    /// Closes the connection, and removes what was copied for this process to read.
    pub fn close(&self) {
        *self.lock() = Open::default();
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.leave_to_parent();
        open
    }

    /// Closes the connection, so that the next question opens another.
    pub fn disconnect(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).connection = None;
    }

    /// Asks the store for something.
    fn with<T>(&self, ask: impl FnOnce(&mut Connection) -> Result<T, WorkerError>) -> Result<T, WorkerError> {
        let mut open = self.lock();
        let mut connection = match open.connection.take() {
            Some(connection) => connection,
            None => self.connect(|| Box::new(tell))?,
        };
        let answer = ask(&mut connection);
        // after any other error there is nothing to be asked any more
        if matches!(answer, Ok(_) | Err(WorkerError::Failed { .. })) {
            open.connection = Some(connection);
        }
        answer
    }

    /// Builds what is wanted, and finds out where it is.
    fn build_all(
        &self,
        wanted: &[Wanted],
        objects: &[Object],
        contents: &dyn Contents,
    ) -> Result<Vec<StorePath>, WorkerError> {
        self.with(|connection| {
            connection.add_missing(objects, contents)?;
            let requests: Vec<DerivedPath> = wanted.iter().map(|wanted| request(&wanted.path)).collect();
            let results = connection.build(&requests, BuildMode::Normal)?;
            let failed = results.iter().filter(|result| !result.status.is_success());
            // one that failed by itself says more than one that needs it
            if let Some(result) = failed.min_by_key(|result| result.status == BuildStatus::DependencyFailed) {
                let message = match result.message.as_str() {
                    "" => format!("cannot build '{}'", result.path),
                    message => message.to_owned(),
                };
                return Err(WorkerError::Failed { message, trace: Vec::new() });
            }
            wanted
                .iter()
                .map(|wanted| match &wanted.known {
                    Some(path) => Ok(path.clone()),
                    None => resolve(connection, &wanted.path),
                })
                .collect()
        })
    }

    /// Where this process can read a path of the store, if not at the path itself.
    fn place(&self, path: &StorePath) -> Result<Option<PathBuf>> {
        if Path::new(&self.dir.print(path)).symlink_metadata().is_ok() {
            return Ok(None);
        }
        let place = {
            let mut open = self.lock();
            let copies = match open.copies.take() {
                Some(copies) => copies,
                None => tempfile::Builder::new().prefix("bento-").tempdir().context("cannot make a directory")?,
            };
            open.copies.insert(copies).path().join(path.as_str())
        };
        if place.symlink_metadata().is_err() {
            self.with(|connection| connection.unpack(path, &place))?;
        }
        Ok(Some(place))
    }
}

impl Store for NixStore {
    fn build(
        &self,
        wanted: &[Wanted],
        objects: &[Object],
        contents: &dyn Contents,
    ) -> Result<Vec<BuiltOutput>, StoreError> {
        let built = self.build_all(wanted, objects, contents).map_err(|error| match error {
            // nearly always the daemon names what it could not build
            WorkerError::Failed { ref message, .. } if message.contains(DRV_EXTENSION) => StoreError::from(error),
            error => {
                let first = wanted.first().map(|wanted| wanted.path.show(&self.dir)).unwrap_or_default();
                format!("cannot build '{first}' during evaluation (import from derivation): {}", remedy(&error)).into()
            }
        })?;
        built
            .into_iter()
            .map(|path| {
                let place = self.place(&path).map_err(|error| {
                    format!("cannot read '{}', which was built during evaluation: {error:#}", self.dir.print(&path))
                })?;
                Ok(BuiltOutput { path, place })
            })
            .collect()
    }

    fn references(&self, path: &StorePath) -> Result<std::collections::BTreeSet<StorePath>, StoreError> {
        let info = self.with(|connection| connection.query_path_info(path))?;
        Ok(info.map(|info| info.references).unwrap_or_default())
    }
}

/// What an error says, and what to do about it.
fn remedy(error: &WorkerError) -> String {
    match error {
        WorkerError::Start { .. } => {
            format!("{error}; on a machine without Nix, only what needs no builds can be evaluated")
        }
        _ => error.to_string(),
    }
}

/// One output, as something to be built.
fn request(path: &SingleDerivedPath) -> DerivedPath {
    match path {
        SingleDerivedPath::Opaque(path) => DerivedPath::Opaque(path.clone()),
        SingleDerivedPath::Built { drv, output } => DerivedPath::Built {
            drv: (**drv).clone(),
            outputs: OutputsSpec::Names(std::iter::once(output.clone()).collect()),
        },
    }
}

/// The path of something that is built.
fn resolve(connection: &mut Connection, path: &SingleDerivedPath) -> Result<StorePath, WorkerError> {
    match path {
        SingleDerivedPath::Opaque(path) => Ok(path.clone()),
        SingleDerivedPath::Built { drv, output } => {
            let drv = resolve(connection, drv)?;
            let outputs = connection.query_outputs(&drv)?;
            outputs.get(output).cloned().flatten().ok_or_else(|| {
                // of impure ones it is not kept; these are Nix's words for it
                let drv = connection.store().print(&drv);
                let message = format!("cannot operate on output '{output}' of the unbuilt derivation '{drv}'");
                WorkerError::Failed { message, trace: Vec::new() }
            })
        }
    }
}

/// Says on standard error what a daemon does, as Nix's programs say it: a line for each thing that begins.
fn tell(event: Event) {
    let line = match event {
        Event::Started(Activity { level: 0..=SHOWN, text, .. }) if !text.is_empty() => format!("{text}..."),
        Event::Message(text) => text,
        _ => return,
    };
    // if nobody can read it, it is lost
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// How to reach a store.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// The daemon behind this socket.
    Socket(PathBuf),
    /// A process, which finds its store as every program of Nix does.
    Process,
}

/// How the environment says that the store is to be reached.
fn way(env: impl Fn(&str) -> Option<OsString>, writable: impl Fn(&Path) -> bool) -> Way {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let state = env("NIX_STATE_DIR").map_or_else(|| PathBuf::from("/nix/var/nix"), PathBuf::from);
    let socket = env("NIX_DAEMON_SOCKET_PATH").map_or_else(|| state.join("daemon-socket/socket"), PathBuf::from);
    let remote = env("NIX_REMOTE").unwrap_or_default().to_string_lossy().into_owned();
    match remote.as_str() {
        "daemon" => Way::Socket(socket),
        // who may write the store needs no daemon
        "" | "auto" if !writable(&state) && socket.exists() => Way::Socket(socket),
        other => match other.strip_prefix("unix://").filter(|rest| !rest.contains('?')) {
            Some("") => Way::Socket(socket),
            Some(path) => Way::Socket(path.into()),
            None => Way::Process,
        },
    }
}

/// The store directory of this machine's Nix: `NIX_STORE_DIR`, or `/nix/store`.
///
/// # Errors
/// The variable is not an absolute path.
pub fn store_dir() -> Result<StoreDir> {
    match std::env::var_os("NIX_STORE_DIR").filter(|dir| !dir.is_empty()) {
        None => Ok(StoreDir::default()),
        Some(dir) => {
            let dir = dir.into_string().map_err(|dir| anyhow!("NIX_STORE_DIR is not UTF-8: {}", dir.display()))?;
            StoreDir::new(&dir).context("NIX_STORE_DIR is wrong")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Way, way};
    use std::path::Path;

    fn with(variables: &[(&str, &str)], writable: bool) -> Way {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        way(value, |_| writable)
    }

    #[test]
    fn the_environment_says_how_to_reach_the_store() {
        let socket = |path: &str| Way::Socket(Path::new(path).to_owned());
        let state = tempfile::tempdir().expect("a directory");
        let state = state.path().to_str().expect("UTF-8");
        std::fs::create_dir(format!("{state}/daemon-socket")).expect("a directory");
        let own = format!("{state}/daemon-socket/socket");
        assert_eq!(with(&[("NIX_STATE_DIR", state)], false), Way::Process, "nobody listens");
        std::fs::write(&own, "").expect("a file");
        assert_eq!(with(&[("NIX_STATE_DIR", state)], false), socket(&own));
        assert_eq!(with(&[("NIX_STATE_DIR", state), ("NIX_REMOTE", "auto")], false), socket(&own));
        assert_eq!(with(&[("NIX_STATE_DIR", state)], true), Way::Process);
        assert_eq!(with(&[("NIX_STATE_DIR", state), ("NIX_REMOTE", "daemon")], true), socket(&own));
        assert_eq!(with(&[("NIX_REMOTE", "daemon"), ("NIX_DAEMON_SOCKET_PATH", "/s")], true), socket("/s"));
        assert_eq!(with(&[("NIX_REMOTE", "daemon")], true), socket("/nix/var/nix/daemon-socket/socket"));
        assert_eq!(with(&[("NIX_REMOTE", "unix:///a/socket")], true), socket("/a/socket"));
        assert_eq!(with(&[("NIX_REMOTE", "local")], false), Way::Process);
        assert_eq!(with(&[("NIX_REMOTE", "local?root=/x")], false), Way::Process);
        assert_eq!(with(&[("NIX_REMOTE", "unix:///a?root=/x")], false), Way::Process);
        assert_eq!(with(&[("NIX_REMOTE", "ssh-ng://there")], false), Way::Process);
    }
}
