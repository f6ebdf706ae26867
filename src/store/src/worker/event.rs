//! What a daemon tells while it works.

use std::io::Read;

use super::{WorkerError, wire::Reader};

/// One thing that a daemon tells while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something for the user, such as a warning.
    Message(String),
    /// Something begins.
    Started(Activity),
    /// Something has ended.
    Stopped(u64),
    /// Something has made progress.
    Progress {
        /// The activity's number.
        activity: u64,
        /// What the fields mean.
        kind: ProgressKind,
        /// The details.
        fields: Vec<Field>,
    },
}

impl Event {
    /// The line that a builder has printed, and the activity's number, if this is one.
    #[must_use]
    pub fn log_line(&self) -> Option<(u64, &str)> {
        match self {
            Self::Progress { activity, kind: ProgressKind::BuildLogLine, fields } => match fields.first() {
                Some(Field::Text(line)) => Some((*activity, line)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Something that takes a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Its number, which later events name.
    pub id: u64,
    /// The number of the one that it is a part of; 0 for none.
    pub parent: u64,
    /// How much one has to want to know to want to know it: 0 for errors, 3 for what is shown usually, 7 for everything.
    pub level: u64,
    /// What it is.
    pub kind: ActivityKind,
    /// What it is, for people: `building '/nix/store/…-hello.drv'`.
    pub text: String,
    /// The details; of a build the path of the derivation comes first.
    pub fields: Vec<Field>,
}

impl Activity {
    /// The full path of what is built or substituted, if this is such an activity.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        match (self.kind, self.fields.first()) {
            (ActivityKind::Build | ActivityKind::Substitute, Some(Field::Text(path))) => Some(path),
            _ => None,
        }
    }
}

/// What an [`Activity`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivityKind {
    /// A derivation is built.
    Build,
    /// All builds together.
    Builds,
    /// A path is fetched from a substituter.
    Substitute,
    /// A path is copied.
    CopyPath,
    /// All copying together.
    CopyPaths,
    /// A file is downloaded.
    FileTransfer,
    /// All that was asked for.
    Realise,
    /// A build waits for its turn.
    BuildWaiting,
    /// Another one, by its number in Nix.
    Other(u64),
}

/// What the fields of [`Event::Progress`] are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressKind {
    /// A line that a builder printed.
    BuildLogLine,
    /// The phase that a build is in.
    Phase,
    /// Done, expected, running, failed.
    Count,
    /// How much of a kind of activity is expected.
    Expected,
    /// Another one, by its number in Nix.
    Other(u64),
}

/// A detail of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

// The numbers are Nix 2.34's, libutil/logging.hh.
fn activity_kind(number: u64) -> ActivityKind {
    match number {
        100 => ActivityKind::CopyPath,
        101 => ActivityKind::FileTransfer,
        102 => ActivityKind::Realise,
        103 => ActivityKind::CopyPaths,
        104 => ActivityKind::Builds,
        105 => ActivityKind::Build,
        108 => ActivityKind::Substitute,
        111 => ActivityKind::BuildWaiting,
        other => ActivityKind::Other(other),
    }
}

fn progress_kind(number: u64) -> ProgressKind {
    match number {
        101 => ProgressKind::BuildLogLine,
        104 => ProgressKind::Phase,
        105 => ProgressKind::Count,
        106 => ProgressKind::Expected,
        other => ProgressKind::Other(other),
    }
}

fn fields<R: Read>(from: &mut Reader<R>) -> Result<Vec<Field>, WorkerError> {
    let count = from.number()?;
    (0..count)
        .map(|_| match from.number()? {
            0 => Ok(Field::Number(from.number()?)),
            1 => Ok(Field::Text(from.text()?)),
            other => Err(WorkerError::Protocol(format!("a field of type {other}"))),
        })
        .collect()
}

/// The rest of an activity's announcement.
pub(super) fn started<R: Read>(from: &mut Reader<R>) -> Result<Event, WorkerError> {
    let id = from.number()?;
    let level = from.number()?;
    let kind = activity_kind(from.number()?);
    let text = from.text()?;
    let fields = fields(from)?;
    let parent = from.number()?;
    Ok(Event::Started(Activity { id, parent, level, kind, text, fields }))
}

/// The rest of an activity's progress.
pub(super) fn progress<R: Read>(from: &mut Reader<R>) -> Result<Event, WorkerError> {
    let activity = from.number()?;
    let kind = progress_kind(from.number()?);
    Ok(Event::Progress { activity, kind, fields: fields(from)? })
}
