use crate::fs::FsError;
use std::path::PathBuf;

/// What can go wrong with a flake: its reference, its lock file, its source. Messages are worded as Nix words them
/// where Nix has the same error.
#[derive(Debug, thiserror::Error)]
pub enum FlakeError {
    /// A text that is not a URL of the kind that was tried; a reference may still be read as something else.
    #[error("{0}")]
    BadUrl(String),
    /// A reference, or its attributes, that make no sense.
    #[error("{0}")]
    Reference(String),
    /// A lock file that cannot be read or contradicts itself.
    #[error("lock file '{path}': {message}")]
    Lock {
        /// The lock file.
        path: String,
        /// What is wrong with it, naming the node.
        message: String,
    },
    /// `flake.nix`, or what it declares, is wrong or cannot be evaluated.
    #[error("{0}")]
    Declaration(String),
    /// The inputs' `follows` are wrong.
    #[error("{0}")]
    Follows(String),
    /// A file that could not be read.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A source that no NAR can be made of.
    #[error(transparent)]
    Nar(#[from] bento_store::nar::NarError),
    /// A Git repository that could not be read.
    #[error("{action} in Git repository \"{}\": {}", repository.display(), source.message())]
    Git {
        /// What was tried.
        action: String,
        /// The repository.
        repository: PathBuf,
        /// libgit2's error.
        source: git2::Error,
    },
    /// A lock file that doesn't fit what `flake.nix` declares, and may not be changed.
    #[error(
        "flake '{flake}' requires lock file changes but they're not allowed ('bento flake-update' makes them):\n{reason}"
    )]
    StaleLock {
        /// The flake's reference.
        flake: String,
        /// What would have to change.
        reason: String,
    },
    /// A source whose contents are not what was locked.
    #[error("NAR hash mismatch in input '{input}', expected '{expected}' but got '{got}'")]
    NarHashMismatch {
        /// The input's reference.
        input: String,
        /// The locked hash.
        expected: String,
        /// The hash of what is there.
        got: String,
    },
    /// A source that is neither on this machine nor to be had from elsewhere.
    #[error("input '{input}' cannot be had: {reason}")]
    Unavailable {
        /// The input's reference.
        input: String,
        /// Why.
        reason: String,
    },
    /// A download that failed.
    #[error("unable to download '{url}': {reason}")]
    Download {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// A source that exists but cannot be used.
    #[error("{0}")]
    Source(String),
    /// An error with what was being done when it came up.
    #[error("{context}: {error}")]
    While {
        /// What was being done.
        context: String,
        /// What came up.
        #[source]
        error: Box<FlakeError>,
    },
}

impl FlakeError {
    /// The same error, saying what was being done.
    #[must_use]
    pub fn while_doing(self, context: impl Into<String>) -> Self {
        FlakeError::While { context: context.into(), error: Box::new(self) }
    }

    /// The error without what was being done around it.
    #[must_use]
    pub fn root(&self) -> &FlakeError {
        match self {
            FlakeError::While { error, .. } => error.root(),
            other => other,
        }
    }
}
