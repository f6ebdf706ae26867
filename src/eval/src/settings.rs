//! What an evaluation depends on besides the files: settings, and what it asks of its caller.

use crate::arena::{Arena, Full, REGION};
use crate::eval::Evaluator;
use crate::flake::FetchSettings;
use crate::fs::{FileSystem, OverlayFs, RealFs};
use crate::store::Store;
use crate::syntax::Lints;
use bento_store::store_path::StoreDir;
use bumpalo::Bump;
use std::any::Any;
use std::path::PathBuf;
use std::rc::Rc;

/// Entries of `-I` and `NIX_PATH`: a prefix, possibly empty, and what it stands for.
pub type SearchPath = Vec<(String, String)>;

/// How to evaluate.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store directory.
    pub store: StoreDir,
    /// `builtins.nixPath`.
    pub search_path: SearchPath,
    /// `builtins.currentSystem`.
    pub system: String,
    /// `builtins.currentTime`, in seconds since 1970; `None` for the time at which the evaluation starts.
    pub time: Option<i64>,
    /// Whether evaluation is pure: no environment, no current time or system, no paths but those that are locked by a hash.
    pub pure: bool,
    /// Whether only paths on the search path and in `allowed_paths` may be read (`--restrict-eval`).
    pub restricted: bool,
    /// What may be read if evaluation is pure or restricted.
    pub allowed_paths: Vec<PathBuf>,
    /// How deep calls may be nested.
    pub max_call_depth: u32,
    /// Whether `|>` and `<|` are allowed.
    pub pipe_operators: bool,
    /// Whether content-addressed derivations are allowed.
    pub ca_derivations: bool,
    /// Whether dynamic derivations are allowed, and there is `outputOf`.
    pub dynamic_derivations: bool,
    /// Whether impure derivations are allowed.
    pub impure_derivations: bool,
    /// Whether what has to be built first may be read.
    pub allow_import_from_derivation: bool,
    /// Whether a warning tells what was built for that.
    pub trace_import_from_derivation: bool,
    /// Whether contents can be hashed as Git hashes them.
    pub git_hashing: bool,
    /// Whether there are BLAKE3 hashes.
    pub blake3_hashes: bool,
    /// Whether there is `fetchClosure`.
    pub fetch_closure: bool,
    /// Whether `fromTOML` reads times.
    pub parse_toml_timestamps: bool,
    /// How sources are fetched.
    pub fetch: FetchSettings,
    /// What is to be said about discouraged literals.
    pub lints: Lints,
    /// Whether `traceVerbose` speaks.
    pub trace_verbose: bool,
    /// Whether `abort` is called on a warning.
    pub abort_on_warn: bool,
    /// The home directory, for paths that start with `~`.
    pub home: Option<Vec<u8>>,
    /// How much memory the values may take, in bytes; at most 4 GiB, which is as far as they can refer to each other.
    pub max_heap: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            store: StoreDir::default(),
            search_path: Vec::new(),
            system: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            time: None,
            pure: false,
            restricted: false,
            allowed_paths: Vec::new(),
            max_call_depth: 10_000,
            pipe_operators: false,
            ca_derivations: false,
            dynamic_derivations: false,
            impure_derivations: false,
            allow_import_from_derivation: true,
            trace_import_from_derivation: false,
            git_hashing: false,
            blake3_hashes: false,
            fetch_closure: false,
            parse_toml_timestamps: false,
            fetch: FetchSettings::default(),
            lints: Lints::default(),
            trace_verbose: false,
            abort_on_warn: false,
            home: None,
            max_heap: MAX_HEAP,
        }
    }
}

/// What an evaluation asks of its caller.
pub trait Host {
    /// An environment variable, for `builtins.getEnv`; never asked if evaluation is pure.
    fn env(&self, name: &str) -> Option<Vec<u8>>;
    /// A warning, without `warning:`.
    fn warn(&self, message: &str);
    /// A warning that the evaluated code gives (`builtins.warn`), without `evaluation warning:`.
    fn evaluation_warning(&self, message: &str) {
        self.warn(message);
    }
    /// What `builtins.trace` says, without `trace:`.
    fn trace(&self, message: &str);
    /// Something that neither files nor the environment determine had a part in the evaluation, named here: the time, or
    /// a source that no hash locks. Such a result can't be kept.
    fn volatile(&self, _what: &str) {}
    /// The store that what has to be built before it can be read is built in, if there is one.
    fn store(&self) -> Option<&dyn Store> {
        None
    }
}

/// A caller with an empty environment that hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl Host for NoHost {
    fn env(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn warn(&self, _: &str) {}
    fn trace(&self, _: &str) {}
}

/// The stack of an evaluation in bytes. Only what is used of it takes memory.
const STACK_SIZE: usize = 4 << 30;

/// As much memory as values can take.
const MAX_HEAP: usize = REGION;

/// Why an evaluation ended without any result of its own.
#[derive(Debug, thiserror::Error)]
pub enum Aborted {
    /// It could not be started.
    #[error("cannot start an evaluation")]
    Start(#[source] std::io::Error),
    /// Its values need more memory than [`Settings::max_heap`].
    #[error("the evaluation needs more than {} MiB for its values", limit >> 20)]
    Memory {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl Aborted {
    /// What a panic that comes out of an evaluator means, for those who catch it before [`evaluate`] does; `None` if it is
    /// a mistake in the evaluator.
    pub fn from_panic(panic: &(dyn Any + Send)) -> Option<Self> {
        panic.downcast_ref::<Full>().map(|full| Aborted::Memory { limit: full.limit })
    }
}

/// Runs an evaluation on a thread of its own, whose stack is large enough for the deepest calls that Nix allows. All values
/// live until `body` returns.
///
/// # Errors
/// When no such thread can be started, or the values take too much memory.
///
/// # Panics
/// When `body` does.
pub fn evaluate<R: Send>(
    settings: Settings,
    host: impl Host + Send + 'static,
    body: impl for<'a> FnOnce(&Evaluator<'a>) -> R + Send,
) -> Result<R, Aborted> {
    evaluate_on(settings, || Rc::new(RealFs), host, |evaluator, _| body(evaluator))
}

/// As [`evaluate`], with the file system that `base` makes on the evaluation's thread in place of the machine's; `body` gets
/// it, too.
///
/// # Errors
/// As there.
///
/// # Panics
/// As there.
pub fn evaluate_on<R: Send, F: FileSystem + 'static>(
    settings: Settings,
    base: impl FnOnce() -> Rc<F> + Send,
    host: impl Host + Send + 'static,
    body: impl for<'a> FnOnce(&Evaluator<'a>, &F) -> R + Send,
) -> Result<R, Aborted> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("evaluation".to_owned()).stack_size(STACK_SIZE).spawn_scoped(
            scope,
            move || {
                let (arena, texts) = (Arena::new(settings.max_heap).map_err(Aborted::Start)?, Bump::new());
                let store = settings.store.as_str().to_owned();
                let base = base();
                let fs = Rc::new(OverlayFs::new(base.clone(), store.as_ref()));
                let evaluator = Evaluator::new(&arena, &texts, settings, fs, Rc::new(host), STACK_SIZE);
                Ok(body(&evaluator, &base))
            },
        );
        thread.map_err(Aborted::Start)?.join().unwrap_or_else(|panic| match Aborted::from_panic(&*panic) {
            Some(aborted) => Err(aborted),
            None => std::panic::resume_unwind(panic),
        })
    })
}
