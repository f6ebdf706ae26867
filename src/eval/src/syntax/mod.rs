//! Text to syntax tree: the lexer, the parser and the tree they make.

#[allow(missing_docs, reason = "each variant's text shows its fields")]
pub mod ast;
mod attrs;
mod error;
mod lexer;
mod parser;
mod position;
mod show;
mod strings;
mod token;

pub use error::{ParseError, Warning};
pub use parser::{Lint, Lints, MAX_DEPTH, MAX_HEIGHT, ParseOptions, parse};
pub use position::{LineIndex, line_column};
pub use show::{show, show_identifier};
