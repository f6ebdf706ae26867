//! The Nix language, evaluated as C++ Nix 2.34 does.
//!
//! A library: it reads files through a trait, it never prints and never exits. [`evaluate`] gives an [`Evaluator`], which
//! evaluates files, expressions and flakes to [`value::Value`]s and computes the derivations that they describe, byte for
//! byte as C++ Nix does. It does not touch the Nix store: what would be written there is kept in memory, and a read of it is
//! served from where it came from. What is to be in a store can be had from it, and what has to be built is asked for: [`store`].

pub mod arena;
mod builtins;
pub mod context;
mod diagnostic;
pub mod error;
mod eval;
#[allow(missing_docs, reason = "each field's type and comment say it")]
pub mod expr;
mod files;
pub mod flake;
pub mod fs;
mod position;
mod print;
mod resolve;
mod select;
mod settings;
pub mod store;
mod suggest;
pub mod symbol;
pub mod syntax;
pub mod text;
pub mod typed;
pub mod value;

pub use diagnostic::{Diagnostic, NixosOption, Place, RenderOptions, Source, Step};
pub use error::{Error, ErrorKind, Frame, FrameKind, Result};
pub use eval::{Coerce, Evaluated, Evaluator};
pub use position::{Location, Origin};
pub use select::Instantiable;
pub use settings::{Aborted, Host, NoHost, SearchPath, Settings, evaluate};
pub use typed::ContextString;
