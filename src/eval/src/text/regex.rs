//! POSIX extended regular expressions as `builtins.match` and `builtins.split` know them.
//!
//! Nix hands the pattern to `std::regex` with the `extended` grammar, compiled by GCC against libstdc++, and what that
//! library really does is the rule here, not POSIX:
//!
//! - `match` takes the *first* way through the pattern in a greedy depth-first order that consumes the whole input.
//! - `split` searches with the same order but tries *both* sides of every `|` and keeps the longest result, the first
//!   of equal ones. A loop that found any result by going round once more does not try to stop earlier.
//! - At one place in the input a loop's body may be entered twice, so that an empty round can still set groups: that is
//!   why `match "(a*)+" "aa"` gives `[ "" ]`.
//! - A group keeps what it matched last, also from an earlier round of an enclosing loop.
//! - There are no back-references, `\` escapes nothing but ``.[\()*+?{|^$`` and is literal between brackets, `.` is any
//!   byte but NUL, ranges compare bytes as signed numbers.
//!
//! Compilation turns the pattern into an automaton and that into decision lists, one for the start and one for each
//! place after a consumed byte, with loops and empty rounds already worked out. Matching then consumes one byte per
//! step, remembers which (place, position) pairs are settled, and keeps its own stack, so its time is linear in the
//! input for a given pattern.

mod exec;
mod nfa;
mod program;

use std::ops::Range;

use program::Program;

pub use exec::Matches;

/// Why a pattern could not be compiled or run. `Display` gives Nix's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegexError {
    /// The pattern is not a regular expression. Holds the pattern.
    #[error("invalid regular expression '{}'", String::from_utf8_lossy(.0))]
    Invalid(Vec<u8>),
    /// The pattern, or running it on this input, would need too much memory. Holds the pattern.
    #[error("memory limit exceeded by regular expression '{}'", String::from_utf8_lossy(.0))]
    MemoryLimit(Vec<u8>),
}

/// What went wrong, before the pattern is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Invalid,
    MemoryLimit,
}

impl Failure {
    fn of(self, pattern: &[u8]) -> RegexError {
        match self {
            Failure::Invalid => RegexError::Invalid(pattern.to_vec()),
            Failure::MemoryLimit => RegexError::MemoryLimit(pattern.to_vec()),
        }
    }
}

/// A compiled regular expression: immutable, shareable, worth caching by its pattern.
#[derive(Debug)]
pub struct Regex {
    pattern: Box<[u8]>,
    program: Program,
}

/// One match: byte ranges into the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captures {
    /// The whole match.
    pub whole: Range<usize>,
    /// The groups in the order of their opening parentheses; `None` for one that took no part in the match.
    pub groups: Vec<Option<Range<usize>>>,
}

impl Regex {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// [`RegexError::Invalid`] for what libstdc++ rejects, [`RegexError::MemoryLimit`] where it would need more than
    /// 100,000 states, or where the nesting of loops makes the decision lists grow out of hand.
    pub fn compile(pattern: &[u8]) -> Result<Regex, RegexError> {
        let nfa = nfa::parse(pattern).map_err(|f| f.of(pattern))?;
        let program = program::build(&nfa).map_err(|f| f.of(pattern))?;
        Ok(Regex { pattern: pattern.into(), program })
    }

    /// The number of groups in the pattern.
    pub fn group_count(&self) -> usize {
        self.program.groups
    }

    /// Matches the whole of `text` (`builtins.match`); `None` if it does not match.
    ///
    /// # Errors
    /// [`RegexError::MemoryLimit`] if the bookkeeping for this input would exceed a gibibyte.
    pub fn full_match(&self, text: &[u8]) -> Result<Option<Captures>, RegexError> {
        exec::full_match(&self.program, text).map_err(|f| f.of(&self.pattern))
    }

    /// Finds the successive matches in `text`, which never overlap (`builtins.split`; C++'s `regex_iterator`).
    pub fn find_iter<'r, 't>(&'r self, text: &'t [u8]) -> Matches<'r, 't> {
        Matches::new(self, text)
    }
}
