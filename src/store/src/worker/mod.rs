//! The worker protocol: how a program talks to a Nix store that it must not, or need not, write itself.
//!
//! A [`Connection`] leads to a daemon behind a Unix socket, or to one that is started as a process and spoken to over its
//! standard input and output. Both speak the same protocol, of which versions 1.18 (Nix 2.0) to 1.38 (Nix 2.34) are
//! understood, as by C++ Nix 2.34.
//!
//! ```no_run
//! use bento_store::{store_path::StoreDir, worker::{Connection, Options}};
//!
//! let mut connection = Connection::open("/nix/var/nix/daemon-socket/socket".as_ref(), StoreDir::default(), Options::default())?;
//! let path = "li9x1wv4rxj0bshjvlskhn3zlwfjw269-greeting.drv".parse()?;
//! if let Some(info) = connection.query_path_info(&path)? {
//!     println!("{} refers to {:?}", path, info.references);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod add;
mod event;
mod transport;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
};

use thiserror::Error;

use crate::{
    content_address::{ContentAddress, ContentAddressError},
    derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath},
    hash::{Hash, HashAlgo, HashError},
    nar::{self, NarError},
    store_path::{StoreDir, StorePath, StorePathError},
};

pub use add::{Added, Contents, Object};
pub use event::{Activity, ActivityKind, Event, Field, ProgressKind};
use transport::Transport;
use wire::WriteWire;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// It is 1, and changes only when nothing is left of what the protocol is.
    pub major: u8,
    /// What grows.
    pub minor: u8,
}

impl Version {
    /// The oldest version that can be spoken: C++ Nix 2.34's limit too.
    pub const OLDEST: Self = Self::v1(18);
    /// The newest version that can be spoken.
    pub const NEWEST: Self = Self::v1(38);

    const fn v1(minor: u8) -> Self {
        Self { major: 1, minor }
    }

    fn from_wire(number: u64) -> Self {
        Self { major: (number >> 8) as u8, minor: number as u8 }
    }

    fn to_wire(self) -> u64 {
        u64::from(self.major) << 8 | u64::from(self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why a store could not be reached or did not do what was asked.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// There is no daemon, or it can't be reached.
    #[error("cannot connect to the Nix daemon at '{}': {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The program that serves a store can't be started.
    #[error("cannot start '{program}' to reach the Nix store: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// The connection ended or broke.
    #[error("lost the connection to the Nix daemon: {source}{}", also(said))]
    Lost {
        /// What the system says.
        source: io::Error,
        /// What the daemon's process has printed, if it is one of ours.
        said: String,
    },
    /// An earlier failure has left the connection in a state in which nothing can be asked any more.
    #[error("the connection to the Nix daemon is broken by an earlier error")]
    Broken,
    /// The other side is no daemon.
    #[error("what answers is no Nix daemon: it begins with {0:#x}")]
    NoDaemon(u64),
    /// The daemon is too old or too new.
    #[error("the Nix daemon speaks version {0} of its protocol; {oldest} or newer of version 1 is needed", oldest = Version::OLDEST)]
    Version(Version),
    /// The daemon is too old for this operation.
    #[error("the Nix daemon is too old to {operation}: it speaks version {has} of its protocol, and {needs} is needed")]
    TooOld {
        /// What was to be done, as a verb.
        operation: &'static str,
        /// What it speaks.
        has: Version,
        /// What would be needed.
        needs: Version,
    },
    /// The daemon does not keep to the protocol.
    #[error("the Nix daemon does not keep to its protocol: {0}")]
    Protocol(String),
    /// The daemon says that it failed, and why.
    #[error("{message}")]
    Failed {
        /// Its own words, without `error:`. May have several lines.
        message: String,
        /// What it was doing, the innermost first.
        trace: Vec<String>,
    },
    /// A path that an object to be added refers to is neither in the store nor to be added.
    #[error("'{path}', which '{referrer}' refers to, is not in the store")]
    NotInStore {
        /// The full path.
        path: String,
        /// The full path of the object.
        referrer: String,
    },
    /// Objects refer to each other in a circle.
    #[error("'{0}' refers to itself through others")]
    Circle(String),
    /// An object that is to be added can't be had.
    #[error("cannot read what '{path}' is made of: {source}")]
    Contents {
        /// The full path.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What a store serves as NAR is none, or can't be unpacked.
    #[error(transparent)]
    Nar(#[from] NarError),
}

fn also(said: &str) -> String {
    if said.trim().is_empty() { String::new() } else { format!("; it said: {}", said.trim()) }
}

impl From<StorePathError> for WorkerError {
    fn from(error: StorePathError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<ContentAddressError> for WorkerError {
    fn from(error: ContentAddressError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<HashError> for WorkerError {
    fn from(error: HashError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What a store knows of an object, or is to know of one that is added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The derivation that it is known to come from.
    pub deriver: Option<StorePath>,
    /// The SHA-256 of its NAR.
    pub nar_hash: Hash,
    /// The length of its NAR in bytes.
    pub nar_size: u64,
    /// What it refers to, possibly itself.
    pub references: BTreeSet<StorePath>,
    /// When it was registered, in seconds since 1970; 0 if that is not known.
    pub registered: u64,
    /// Whether it was built by this store.
    pub ultimate: bool,
    /// Signatures, as `KEY:BASE64`.
    pub signatures: BTreeSet<String>,
    /// How its path follows from its contents, if it does.
    pub address: Option<ContentAddress>,
}

/// How to build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BuildMode {
    /// What is missing.
    #[default]
    Normal,
    /// What is missing or damaged.
    Repair,
    /// Again what is there, to compare.
    Check,
}

/// What became of one thing that was to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildResult {
    /// What was to be built, as in [`DerivedPath::show`].
    pub path: String,
    /// What became of it.
    pub status: BuildStatus,
    /// Why it failed, in the daemon's words.
    pub message: String,
    /// When the build began and ended, in seconds since 1970; 0 where that is not known.
    pub started: u64,
    /// See [`BuildResult::started`].
    pub stopped: u64,
}

/// What became of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStatus {
    /// It was built.
    Built,
    /// It was fetched from a substituter.
    Substituted,
    /// It was there already.
    AlreadyValid,
    /// The builder failed.
    Failed,
    /// Something that it needs failed.
    DependencyFailed,
    /// It took too long, or was silent for too long.
    TimedOut,
    /// The builder printed too much.
    LogLimitExceeded,
    /// Two builds gave different outputs.
    NotDeterministic,
    /// The derivation was refused.
    InputRejected,
    /// What was built was refused, such as for another hash than the expected one.
    OutputRejected,
    /// It failed for a reason that may pass, or for another one.
    Other,
}

impl BuildStatus {
    /// Whether the outputs are there now.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Built | Self::Substituted | Self::AlreadyValid)
    }

    /// The numbers are Nix 2.34's, libstore/common-protocol.cc.
    fn from_wire(number: u64) -> Result<Self, WorkerError> {
        Ok(match number {
            0 => Self::Built,
            1 => Self::Substituted,
            2 | 13 => Self::AlreadyValid,
            3 | 7 => Self::Failed,
            4 => Self::InputRejected,
            5 => Self::OutputRejected,
            6 | 9 | 14 => Self::Other,
            8 => Self::TimedOut,
            10 => Self::DependencyFailed,
            11 => Self::LogLimitExceeded,
            12 => Self::NotDeterministic,
            other => return Err(WorkerError::Protocol(format!("a build ended with status {other}"))),
        })
    }
}

/// What building something would take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Derivations that will be built.
    pub build: BTreeSet<StorePath>,
    /// Paths that will be fetched.
    pub substitute: BTreeSet<StorePath>,
    /// Paths of which nobody knows where they could come from.
    pub unknown: BTreeSet<StorePath>,
    /// How many bytes will be downloaded.
    pub download_size: u64,
    /// How many bytes these are, unpacked.
    pub nar_size: u64,
}

/// What hears what a daemon tells.
pub type Listener = Box<dyn FnMut(Event) + Send>;

/// How to speak to a daemon.
pub struct Options {
    /// The newest version of the protocol to speak.
    pub version: Version,
    /// Hears what the daemon tells while it works.
    pub listener: Listener,
}

impl Default for Options {
    /// The newest version, and nobody listens.
    fn default() -> Self {
        Self { version: Version::NEWEST, listener: Box::new(|_| {}) }
    }
}

/// Operations, by Nix's numbers.
#[derive(Clone, Copy)]
enum Op {
    BuildPaths = 9,
    AddTempRoot = 11,
    AddIndirectRoot = 12,
    QueryPathInfo = 26,
    QueryValidPaths = 31,
    NarFromPath = 38,
    AddToStoreNar = 39,
    QueryMissing = 40,
    QueryDerivationOutputMap = 41,
    AddMultipleToStore = 44,
    BuildPathsWithResults = 46,
}

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;

// What a daemon's messages begin with.
const NEXT: u64 = 0x6f6c_6d67;
const READ: u64 = 0x6461_7461;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

/// What a message of the daemon means to who waits for it.
enum Turn {
    /// It goes on.
    More,
    /// It wants as many bytes at most.
    Wants(u64),
    /// It is done; the answer follows.
    Done,
}

/// A connection to a Nix store.
///
/// One thing is asked at a time. A [`WorkerError::Failed`] leaves the connection as it was; after any other error of it
/// there is nothing to be asked any more. What is added or built through it is kept from the garbage collector until it
/// is closed.
pub struct Connection {
    store: StoreDir,
    transport: Transport,
    version: Version,
    nix_version: Option<String>,
    trusted: Option<bool>,
    listener: Listener,
    broken: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("store", &self.store)
            .field("version", &self.version)
            .field("nix_version", &self.nix_version)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the daemon behind a Unix socket. `store` is the store directory that the daemon serves.
    ///
    /// # Errors
    /// Nobody listens there, or it is no daemon of a version that can be spoken with.
    pub fn open(socket: &Path, store: StoreDir, options: Options) -> Result<Self, WorkerError> {
        Self::greet(Transport::open(socket)?, store, options)
    }

    /// Starts a daemon of its own, such as `nix-daemon --stdio`, which ends with the connection. What the process prints on
    /// standard error becomes a part of the error where it ends too early.
    ///
    /// # Errors
    /// The program can't be started, or is no daemon of a version that can be spoken with.
    pub fn start(command: Command, store: StoreDir, options: Options) -> Result<Self, WorkerError> {
        Self::greet(Transport::start(command)?, store, options)
    }

    fn greet(transport: Transport, store: StoreDir, options: Options) -> Result<Self, WorkerError> {
        let Options { version, listener } = options;
        let (nix_version, trusted) = (None, None);
        let mut this = Self { store, transport, version, nix_version, trusted, listener, broken: false };
        match this.handshake() {
            Ok(()) => Ok(this),
            Err(error) => Err(this.explained(error)),
        }
    }

    fn handshake(&mut self) -> Result<(), WorkerError> {
        let ours = self.version.to_wire();
        self.send(|to| {
            to.number(CLIENT_MAGIC)?;
            to.number(ours)
        })?;
        let from = &mut self.transport.from;
        let magic = from.number()?;
        if magic != DAEMON_MAGIC {
            return Err(WorkerError::NoDaemon(magic));
        }
        let theirs = Version::from_wire(from.number()?);
        if theirs.major != Version::NEWEST.major || theirs < Version::OLDEST {
            return Err(WorkerError::Version(theirs));
        }
        self.version = self.version.min(theirs);
        if self.version >= Version::v1(38) {
            // features that both have: none are known here
            self.send(|to| to.strings(std::iter::empty::<&str>()))?;
            let _: Vec<String> = self.transport.from.texts()?;
        }
        self.send(|to| {
            to.number(0)?; // a processor to run on, which is obsolete
            to.number(0) // space to reserve, which is obsolete
        })?;
        if self.version >= Version::v1(33) {
            self.nix_version = Some(self.transport.from.text()?);
        }
        if self.version >= Version::v1(35) {
            self.trusted = match self.transport.from.number()? {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            };
        }
        self.settle()
    }

    /// The version of the protocol that is spoken.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The version of Nix at the other end, if it tells (from protocol 1.33 on).
    #[must_use]
    pub fn nix_version(&self) -> Option<&str> {
        self.nix_version.as_deref()
    }

    /// Whether the daemon trusts this user, if it tells (from protocol 1.35 on).
    #[must_use]
    pub fn trusted(&self) -> Option<bool> {
        self.trusted
    }

    /// The store directory.
    #[must_use]
    pub fn store(&self) -> &StoreDir {
        &self.store
    }

    /// Those of the paths that are in the store. With `substitute` the daemon first tries to fetch the others.
    ///
    /// # Errors
    /// The daemon fails, or the connection does.
    pub fn query_valid_paths<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p StorePath, IntoIter: ExactSizeIterator>,
        substitute: bool,
    ) -> Result<BTreeSet<StorePath>, WorkerError> {
        let (store, version) = (self.store.clone(), self.version);
        let paths = paths.into_iter();
        self.ask(Op::QueryValidPaths, |to| {
            to.strings(paths.map(|path| store.print(path)))?;
            if version >= Version::v1(27) {
                to.bool(substitute)?;
            }
            Ok(())
        })?;
        self.answer(Self::read_paths)
    }

    /// What the store knows of a path; `None` if it is not there.
    ///
    /// # Errors
    /// The daemon fails, or the connection does.
    pub fn query_path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, WorkerError> {
        let printed = self.store.print(path);
        self.ask(Op::QueryPathInfo, |to| to.string(&printed))?;
        self.answer(|this| {
            if !this.transport.from.bool()? {
                return Ok(None);
            }
            let from = &mut this.transport.from;
            let deriver = from.text()?;
            let nar_hash = Hash::parse_any(&from.text()?, Some(HashAlgo::Sha256))?;
            let references = this.read_paths()?;
            let from = &mut this.transport.from;
            let (registered, nar_size) = (from.number()?, from.number()?);
            let ultimate = from.bool()?;
            let signatures = from.texts()?;
            let address = from.text()?;
            let address = if address.is_empty() { None } else { Some(address.parse()?) };
            let deriver = if deriver.is_empty() { None } else { Some(this.store.parse(deriver)?) };
            Ok(Some(PathInfo { deriver, nar_hash, nar_size, references, registered, ultimate, signatures, address }))
        })
    }

    /// The paths of a derivation's outputs, as far as they are known: of content-addressed ones once they are built.
    ///
    /// # Errors
    /// The derivation is not in the store, the daemon is too old, or it or the connection fails.
    pub fn query_outputs(&mut self, drv: &StorePath) -> Result<BTreeMap<String, Option<StorePath>>, WorkerError> {
        self.needs(Version::v1(22), "tell the outputs of derivations")?;
        let printed = self.store.print(drv);
        self.ask(Op::QueryDerivationOutputMap, |to| to.string(&printed))?;
        self.answer(|this| {
            let count = this.transport.from.number()?;
            (0..count)
                .map(|_| {
                    let name = this.transport.from.text()?;
                    let path = this.transport.from.text()?;
                    let path = if path.is_empty() { None } else { Some(this.store.parse(path)?) };
                    Ok((name, path))
                })
                .collect()
        })
    }

    /// What building these would take, which is found out without building or fetching anything.
    ///
    /// # Errors
    /// A derivation is not in the store, the daemon is too old, or it or the connection fails.
    pub fn query_missing(&mut self, wanted: &[DerivedPath]) -> Result<Missing, WorkerError> {
        self.needs(Version::v1(19), "tell what is missing")?;
        let wanted = self.wanted(wanted)?;
        self.ask(Op::QueryMissing, |to| to.strings(wanted.iter()))?;
        self.answer(|this| {
            let (build, substitute, unknown) = (this.read_paths()?, this.read_paths()?, this.read_paths()?);
            let (download_size, nar_size) = (this.transport.from.number()?, this.transport.from.number()?);
            Ok(Missing { build, substitute, unknown, download_size, nar_size })
        })
    }

    /// Builds, or fetches from substituters; what there is already is left as it is. The derivations must be in the store.
    /// What it takes and what the builders print goes to the listener.
    ///
    /// Gives what became of each. A daemon that can't tell this (before protocol 1.34) makes an error of a failure.
    ///
    /// # Errors
    /// Something is not in the store, or the daemon or the connection fails.
    pub fn build(&mut self, wanted: &[DerivedPath], mode: BuildMode) -> Result<Vec<BuildResult>, WorkerError> {
        let requests = self.wanted(wanted)?;
        let mode = mode as u64;
        if self.version < Version::v1(34) {
            self.ask(Op::BuildPaths, |to| {
                to.strings(requests.iter())?;
                to.number(mode)
            })?;
            self.answer(|this| this.transport.from.number())?;
            let built = |path: &DerivedPath| BuildResult {
                path: path.show(&self.store),
                status: BuildStatus::Built,
                message: String::new(),
                started: 0,
                stopped: 0,
            };
            return Ok(wanted.iter().map(built).collect());
        }
        self.ask(Op::BuildPathsWithResults, |to| {
            to.strings(requests.iter())?;
            to.number(mode)
        })?;
        self.answer(|this| {
            let count = this.transport.from.number()?;
            (0..count).map(|_| this.read_build_result()).collect()
        })
    }

    fn read_build_result(&mut self) -> Result<BuildResult, WorkerError> {
        let version = self.version;
        let from = &mut self.transport.from;
        let path = from.text()?.replace('!', "^");
        let status = BuildStatus::from_wire(from.number()?)?;
        let message = from.message()?;
        let (_times_built, _not_deterministic) = (from.number()?, from.bool()?);
        let (started, stopped) = (from.number()?, from.number()?);
        if version >= Version::v1(37) {
            for _ in ["user", "system"] {
                if from.bool()? {
                    let _microseconds = from.number()?;
                }
            }
        }
        // the outputs, as JSON; `query_outputs` tells them too
        for _ in 0..from.number()? {
            let (_output, _realisation) = (from.bytes()?, from.bytes()?);
        }
        Ok(BuildResult { path, status, message, started, stopped })
    }

    /// Keeps a path from the garbage collector until the connection is closed, be it in the store yet or not.
    ///
    /// # Errors
    /// The daemon fails, or the connection does.
    pub fn add_temp_root(&mut self, path: &StorePath) -> Result<(), WorkerError> {
        let printed = self.store.print(path);
        self.ask(Op::AddTempRoot, |to| to.string(&printed))?;
        self.answer(|this| this.transport.from.number()).map(|_| ())
    }

    /// Has the store keep what the symbolic link at `link` (an absolute path) points to, as long as the link is there.
    ///
    /// # Errors
    /// The daemon fails, or the connection does.
    pub fn add_indirect_root(&mut self, link: &Path) -> Result<(), WorkerError> {
        use std::os::unix::ffi::OsStrExt;
        self.ask(Op::AddIndirectRoot, |to| to.string(link.as_os_str().as_bytes()))?;
        self.answer(|this| this.transport.from.number()).map(|_| ())
    }

    /// Unpacks a copy of an object to `destination`, which must not exist.
    ///
    /// # Errors
    /// The path is not in the store, `destination` can't be written, or the daemon or the connection fails.
    pub fn unpack(&mut self, path: &StorePath, destination: &Path) -> Result<(), WorkerError> {
        let printed = self.store.print(path);
        self.ask(Op::NarFromPath, |to| to.string(&printed))?;
        self.answer(|this| Ok(nar::unpack(&mut this.transport.from.0, destination)?))
    }

    fn needs(&self, version: Version, operation: &'static str) -> Result<(), WorkerError> {
        if self.version < version {
            return Err(WorkerError::TooOld { operation, has: self.version, needs: version });
        }
        Ok(())
    }

    /// How the protocol's version names what is to be built.
    fn wanted(&self, paths: &[DerivedPath]) -> Result<Vec<String>, WorkerError> {
        let old = self.version < Version::v1(30);
        paths
            .iter()
            .map(|path| match path {
                _ if !old => Ok(path.legacy(&self.store)),
                // before, a derivation alone stood for all of its outputs
                DerivedPath::Built { drv: SingleDerivedPath::Opaque(drv), outputs: OutputsSpec::All } => {
                    Ok(self.store.print(drv))
                }
                DerivedPath::Opaque(other) if other.is_derivation() => {
                    self.needs(Version::v1(30), "fetch a derivation")?;
                    Ok(self.store.print(other))
                }
                DerivedPath::Built { drv: SingleDerivedPath::Built { .. }, .. } => {
                    self.needs(Version::v1(30), "build a derivation that is itself built")?;
                    Ok(path.legacy(&self.store))
                }
                _ => Ok(path.legacy(&self.store)),
            })
            .collect()
    }

    fn read_paths(&mut self) -> Result<BTreeSet<StorePath>, WorkerError> {
        let count = self.transport.from.number()?;
        (0..count).map(|_| Ok(self.store.parse(self.transport.from.bytes()?)?)).collect()
    }

    /// Writes, and sends what was written.
    fn send(&mut self, write: impl FnOnce(&mut transport::Output) -> io::Result<()>) -> Result<(), WorkerError> {
        use io::Write;
        let to = &mut self.transport.to;
        write(to).and_then(|()| to.flush()).map_err(wire::lost)
    }

    /// Asks for an operation and waits until the daemon has worked; an answer may follow.
    fn ask(
        &mut self,
        op: Op,
        arguments: impl FnOnce(&mut transport::Output) -> io::Result<()>,
    ) -> Result<(), WorkerError> {
        self.exchange(|this| {
            this.send(|to| {
                to.number(op as u64)?;
                arguments(to)
            })?;
            this.settle()
        })
    }

    /// Reads an operation's answer.
    fn answer<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, WorkerError>) -> Result<T, WorkerError> {
        self.exchange(read)
    }

    /// Does a part of an operation. Unless it is the daemon that says no, nothing can be asked any more after an error.
    fn exchange<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T, WorkerError>) -> Result<T, WorkerError> {
        if self.broken {
            return Err(WorkerError::Broken);
        }
        part(self).map_err(|error| {
            if matches!(error, WorkerError::Failed { .. }) {
                return error;
            }
            self.broken = true;
            let error = self.explained(error);
            // a daemon that waits for more would keep its locks
            self.transport.close();
            error
        })
    }

    /// Adds to the error of a connection that broke what the daemon's process has said.
    fn explained(&mut self, error: WorkerError) -> WorkerError {
        match error {
            WorkerError::Lost { source, .. } => WorkerError::Lost { source, said: self.transport.last_words() },
            error => error,
        }
    }

    /// Hears the daemon out until it has done what it was asked for.
    fn settle(&mut self) -> Result<(), WorkerError> {
        loop {
            match self.message()? {
                Turn::More => {}
                Turn::Done => return Ok(()),
                Turn::Wants(_) => return Err(WorkerError::Protocol("it wants data that there are none of".into())),
            }
        }
    }

    /// Reads one message.
    fn message(&mut self) -> Result<Turn, WorkerError> {
        let from = &mut self.transport.from;
        let event = match from.number()? {
            LAST => return Ok(Turn::Done),
            READ => return Ok(Turn::Wants(from.number()?)),
            ERROR => return Err(self.failure()?),
            NEXT => Event::Message(from.message()?),
            START_ACTIVITY => event::started(from)?,
            STOP_ACTIVITY => Event::Stopped(from.number()?),
            RESULT => event::progress(from)?,
            other => return Err(WorkerError::Protocol(format!("a message of type {other:#x}"))),
        };
        (self.listener)(event);
        Ok(Turn::More)
    }

    /// Reads why the daemon failed.
    fn failure(&mut self) -> Result<WorkerError, WorkerError> {
        let from = &mut self.transport.from;
        if self.version < Version::v1(26) {
            let message = from.message()?;
            let _status = from.number()?;
            return Ok(WorkerError::Failed { message, trace: Vec::new() });
        }
        let _type = from.text()?;
        let _level = from.number()?;
        let _name = from.text()?;
        let message = from.message()?;
        // positions are always missing
        let _position = from.number()?;
        let count = from.number()?;
        let trace = (0..count)
            .map(|_| {
                let _position = from.number()?;
                from.message()
            })
            .collect::<Result<_, _>>()?;
        Ok(WorkerError::Failed { message, trace })
    }
}
