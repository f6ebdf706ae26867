//! What goes wrong while evaluating.

use crate::value::Pos;
use serde::{Deserialize, Serialize};

/// The result of an evaluation step.
pub type Result<T> = std::result::Result<T, Box<Error>>;

/// What kind of error it is. `tryEval` catches [`ErrorKind::Throw`] and [`ErrorKind::Assert`] only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// `throw`
    Throw,
    /// A failed `assert`.
    Assert,
    /// `abort`
    Abort,
    /// Anything else that is wrong with the program.
    Eval,
    /// A syntax error.
    Parse,
    /// `infinite recursion encountered`
    InfiniteRecursion,
    /// The depth of calls or the stack is used up.
    Overflow,
    /// A file can't be read, or a path is not allowed.
    File,
    /// What the program reads has to be built first (import from derivation), and can't be here.
    Unbuilt,
    /// A source is not on this machine, and can't be fetched.
    Unavailable,
}

/// An evaluation's error: message, place, and how the evaluation got there. Its places mean something to the evaluator that
/// it comes from only; [`Evaluator::diagnose`](crate::Evaluator::diagnose) makes something of it that lasts.
#[derive(Clone, Debug)]
pub struct Error {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The message in Nix's words, without `error:`.
    pub message: String,
    /// Where, if known.
    pub pos: Pos,
    /// What was being done, the innermost first.
    pub trace: Vec<Frame>,
    /// Names that are similar to one that was not found.
    pub suggestions: Vec<String>,
    /// How long the trace was when the error left a deferred call, or a promise that needs itself, for as long as the place
    /// is not known yet where that was asked for.
    pub(crate) unplaced_call: Option<usize>,
}

/// One step of an evaluation that failed.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where, if known.
    pub pos: Pos,
    /// What was being done.
    pub message: String,
    /// Which traces show it.
    pub kind: FrameKind,
}

/// Which traces show a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// All, up to the length at which short ones are cut.
    Step,
    /// Full ones only: a function's call.
    Call,
    /// All: the program itself has added it (`builtins.addErrorContext`).
    Context,
}

impl Error {
    /// An error of this kind.
    #[cold]
    pub fn new(kind: ErrorKind, pos: Pos, message: impl Into<String>) -> Box<Self> {
        let (trace, suggestions) = (Vec::new(), Vec::new());
        Box::new(Error { kind, message: message.into(), pos, trace, suggestions, unplaced_call: None })
    }

    /// An error in the program.
    #[cold]
    pub fn eval(pos: Pos, message: impl Into<String>) -> Box<Self> {
        Error::new(ErrorKind::Eval, pos, message)
    }

    /// The error for a promise that needs itself, which was asked for at a place yet to be named.
    #[cold]
    pub(crate) fn infinite_recursion() -> Box<Self> {
        let mut error = Error::new(ErrorKind::InfiniteRecursion, Pos::NONE, "infinite recursion encountered");
        error.unplaced_call = Some(0);
        error
    }

    /// The same error without a place of its own: the steps of its trace have theirs.
    #[cold]
    #[must_use]
    pub fn unplaced(mut self: Box<Self>) -> Box<Self> {
        self.pos = Pos::NONE;
        self
    }

    /// The same error with one more step of the trace.
    #[cold]
    #[must_use]
    pub fn traced(self: Box<Self>, pos: Pos, message: impl Into<String>) -> Box<Self> {
        self.traced_as(FrameKind::Step, pos, message)
    }

    /// The same error with one more step of the trace, of this kind.
    #[cold]
    #[must_use]
    pub fn traced_as(mut self: Box<Self>, kind: FrameKind, pos: Pos, message: impl Into<String>) -> Box<Self> {
        self.trace.push(Frame { pos, message: message.into(), kind });
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
