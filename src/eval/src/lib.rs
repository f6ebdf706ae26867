//! The Nix language as a library: it evaluates files, expressions and flakes as C++ Nix 2.34 does, and works out the
//! derivations that they describe, byte for byte.
//!
//! It is an evaluator: what `nix-instantiate --eval` and `nix eval` are for. It is no package manager: it does not build, has
//! no store and writes nothing. What would be written to the store is kept in memory, and a read of it is served from where
//! it came from; what is to be in a store can be had from it, and what has to be built is asked of one of the caller's ([`store`]).
//!
//! It leaves the rest of the process alone. There is no global state, so any number of evaluations can run side by side; it
//! never prints (warnings and `builtins.trace` go to a [`Host`], errors are returned) and never ends the process; also an
//! endless recursion or too little memory is an error.
//!
//! ```
//! use bento_eval::{NoHost, Settings, evaluate};
//!
//! let sum = evaluate(Settings::default(), NoHost, |evaluator| {
//!     let value = evaluator.eval_string(b"builtins.foldl' builtins.add 0 [ 1 2 3 ]", b"/")?;
//!     evaluator.deserialize::<i64>(value)
//! })?;
//! assert_eq!(sum.map_err(|error| error.message), Ok(6));
//! # Ok::<(), bento_eval::Aborted>(())
//! ```
//!
//! # What there is
//!
//! - [`evaluate`] runs an evaluation, on a thread with a stack that is large enough; its [`Settings`] say how, and the
//!   [`Host`] answers what it asks: environment variables, what to do with warnings. [`NoHost`] is one that knows nothing.
//! - The [`Evaluator`] evaluates: [`eval_file`](Evaluator::eval_file), [`eval_string`](Evaluator::eval_string),
//!   [`flake_outputs`](Evaluator::flake_outputs); [`select_path`](Evaluator::select_path) and
//!   [`call`](Evaluator::call) lead on from there, [`instantiables`](Evaluator::instantiables) to derivations.
//! - A [`value::Value`] is a handle that lives as long as the evaluation. What is to leave it becomes a Rust type:
//!   [`deserialize`](Evaluator::deserialize) and [`serialize`](Evaluator::serialize) convert with serde, and
//!   [`print`](Evaluator::print) gives Nix's own text. How is in [`typed`]; a [`ContextString`] keeps what a string refers to.
//! - An [`Error`] has its message, kind, place and trace. [`diagnose`](Evaluator::diagnose) makes a [`Diagnostic`] of it, which
//!   can leave the evaluation: with the lines of source, the NixOS option and its modules, a hint.
//! - Files are read through [`fs::FileSystem`].
//!
//! # A host in twenty lines
//!
#![doc = concat!("```no_run\n", include_str!("../examples/evaluate_host.rs"), "```")]

mod arena;
mod builtins;
pub mod context;
mod diagnostic;
pub mod error;
mod eval;
mod expr;
mod files;
pub mod flake;
mod free;
pub mod fs;
mod position;
mod print;
pub mod record;
mod resolve;
mod select;
mod settings;
mod share;
pub mod store;
mod suggest;
pub mod symbol;
pub mod syntax;
pub mod text;
pub mod typed;
pub mod value;

pub use arena::Scratch;
pub use builtins::TreeHashes;
pub use diagnostic::{Diagnostic, NixosOption, Place, RenderOptions, Source, Step};
pub use error::{Error, ErrorKind, Frame, FrameKind, Result};
pub use eval::{Coerce, Evaluated, Evaluator};
pub use position::{Location, Origin};
pub use select::Instantiable;
pub use settings::{Aborted, Host, NoHost, SearchPath, Settings, evaluate, evaluate_on};
pub use typed::ContextString;
