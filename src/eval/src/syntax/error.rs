//! What the parser says when a text is not Nix.

use super::ast::Pos;

/// Why a text could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// Where, as a byte offset; [`NO_POS`](super::ast::NO_POS) if Nix gives no position with this message.
    pub pos: Pos,
    /// The message in Nix's words. For a duplicate attribute Nix goes on with ` at FILE:LINE:COLUMN` of [`Self::previous`],
    /// which only the caller can format.
    pub message: String,
    /// The position of the first definition of a duplicate attribute.
    pub previous: Option<Pos>,
}

/// What the parser says of a text that it reads all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A discouraged literal.
    Literal {
        /// Where, as a byte offset.
        pos: Pos,
        /// The message in Nix's words.
        message: String,
    },
    /// A call of a function with the variable `or`, as an argument, an element or a default: `or` is to be a variable like others, and
    /// then this will be something else.
    OrAsArgument {
        /// Where the call begins, as a byte offset.
        pos: Pos,
        /// Its text.
        text: String,
    },
}

/// What the parser's functions give. The error is boxed to keep the good case small.
pub(super) type Result<T> = std::result::Result<T, Box<ParseError>>;

/// An error at `pos`.
#[cold]
pub(super) fn fail<T>(pos: Pos, message: impl Into<String>) -> Result<T> {
    Err(Box::new(ParseError { pos, message: message.into(), previous: None }))
}
