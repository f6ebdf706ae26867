//! A report: what a host says of one attempt at a release, and the names under which logs and reports are kept.

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::HostName;
use crate::store_path::StorePath;

/// The version of the report's schema that this program writes and understands.
pub const SCHEMA: u32 = 1;
/// What a signature's file name has more than the report's.
const SIGNATURE: &str = ".sig";
/// No report is larger, in bytes.
pub const LIMIT: u64 = 1 << 20;

/// How an attempt ended, by the words that the original bento uses in file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The host runs the release.
    Success,
    /// The host updated its inputs by itself, and runs the result.
    Autoupdate,
    /// The host could not get that far; it runs what it ran before.
    Failure,
    /// The host activated the release and went back to what it ran before.
    Rollback,
}

impl Outcome {
    /// The word in file names.
    pub fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Autoupdate => "autoupdate",
            Self::Failure => "failure",
            Self::Rollback => "rollback",
        }
    }

    /// Whether the host runs what the attempt was about.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Success | Self::Autoupdate)
    }

    /// The outcome of that word.
    fn from_word(word: &str) -> Option<Self> {
        [Self::Success, Self::Autoupdate, Self::Failure, Self::Rollback]
            .into_iter()
            .find(|outcome| outcome.word() == word)
    }
}

/// The part of an attempt that was at work when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reading and checking the manifest.
    Manifest,
    /// Fetching and verifying the files.
    Fetch,
    /// Building the system.
    Build,
    /// Seeing whether the machine is fit to try a system out.
    Check,
    /// Switching to the system for a test.
    Activate,
    /// Seeing whether the hub can still be reached.
    Confirm,
    /// Making the system the one that is booted.
    Boot,
    /// The system runs, but has another kernel than the machine was booted with: it waits for a restart.
    Reboot,
    /// All of it is done.
    Done,
}

/// What a host says of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who says so.
    pub host: HostName,
    /// The release that was attempted.
    pub serial: u64,
    /// Number of the attempt at this release, from 1.
    pub attempt: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// How far it got.
    pub stage: Stage,
    /// Why it got no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What does not work and is no part of an attempt: the report repeats how the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What the release asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<StorePath>,
    /// What was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built: Option<StorePath>,
    /// What ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<StorePath>,
    /// What runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<StorePath>,
    /// When the attempt began, by the host's clock.
    pub started: Timestamp,
    /// When it ended, by the host's clock.
    pub finished: Timestamp,
    /// The file name of its log, beside the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Units that failed when the report was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_units: Vec<String>,
    /// Of a host that updated its inputs by itself: those that are not the release's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputChange>,
    /// The version of the agent.
    pub agent: String,
}

/// An input of a flake that a host has in another revision than its release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputChange {
    /// The name of its node in `flake.lock`.
    pub name: String,
    /// The release's revision, or its hash where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// When that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<Timestamp>,
}

impl Report {
    /// Reads a report; an unknown schema is told as such.
    pub fn parse(text: &[u8]) -> Result<Self> {
        check_schema(text)?;
        serde_json::from_slice(text).context("no report")
    }

    /// Whether somebody at the machine wanted this end: what goes back by itself does so at an earlier stage.
    pub fn gave_up(&self) -> bool {
        self.outcome == Outcome::Rollback && matches!(self.stage, Stage::Done | Stage::Reboot)
    }

    /// The file name in `logs/`.
    pub fn file_name(&self) -> String {
        report_name(self.serial, self.attempt)
    }

    /// The report as it is stored.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context("cannot write the report")?;
        text.push(b'\n');
        Ok(text)
    }
}

/// The file in `logs/` that holds a host's [`Presence`].
pub const PRESENCE: &str = "seen.json";

/// What a host says of itself with every poll, whether or not there is anything new. It overwrites the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who says so.
    pub host: HostName,
    /// The highest serial that it ever accepted.
    pub serial: u64,
    /// What runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<StorePath>,
    /// What was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<StorePath>,
    /// Whether kernel, modules or initrd of what runs are not those that were booted.
    #[serde(default)]
    pub reboot_needed: bool,
    /// Whether somebody at the host has told it to take up nothing.
    #[serde(default)]
    pub held: bool,
    /// How many units of the system have failed, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_units: Option<u64>,
    /// Seconds within which the host means to poll again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// When it polled, by its own clock.
    pub time: Timestamp,
    /// The version of the agent.
    pub agent: String,
    /// The host's signature of all that comes before it. The last field: see [`Presence::signed_part`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Presence {
    /// Reads a presence; an unknown schema is told as such.
    pub fn parse(text: &[u8]) -> Result<Self> {
        check_schema(text)?;
        serde_json::from_slice(text).context("no presence")
    }

    /// The presence as it is stored.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).context("cannot write the presence")
    }

    /// What the signature in the text of a presence is of: the text as it is without it. It is in the same file because the
    /// file is replaced with every poll, and a reader would find one poll's text and another's signature.
    pub fn signed_part(text: &[u8]) -> Option<Vec<u8>> {
        const BEGIN: &[u8] = b",\"signature\":\"";
        let end = text.windows(BEGIN.len()).rposition(|part| part == BEGIN)?;
        Some([&text[..end], b"}"].concat())
    }
}

/// Refuses what has another schema than the one that this program knows.
fn check_schema(text: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Schema {
        schema: u32,
    }
    let Schema { schema } = serde_json::from_slice(text).context("no report")?;
    if schema != SCHEMA {
        bail!("a report of schema {schema}, but this bento knows only schema {SCHEMA}: update bento");
    }
    Ok(())
}

/// The file name of a report.
pub fn report_name(serial: u64, attempt: u64) -> String {
    format!("report-{serial}-{attempt}.json")
}

/// The file name of the signature of a report, from the report's.
pub fn signature_name(report: &str) -> String {
    format!("{report}{SIGNATURE}")
}

/// Whether a file name is one of a report's signature.
pub fn is_signature_name(name: &str) -> bool {
    name.strip_suffix(SIGNATURE).and_then(parse_report_name).is_some()
}

/// Serial and attempt of a report, from its file name.
pub fn parse_report_name(name: &str) -> Option<(u64, u64)> {
    let (serial, attempt) = name.strip_prefix("report-")?.strip_suffix(".json")?.split_once('-')?;
    Some((serial.parse().ok()?, attempt.parse().ok()?))
}

/// What a log's file name says: `YYYYMMDD-HHMM[-N]_VERSION_OUTCOME.log.gz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogName {
    /// The minute, by the writer's clock: `YYYYMMDD-HHMM`.
    pub minute: String,
    /// Number among the logs of the same minute and outcome, from 1; the first has no number in its name.
    pub number: u64,
    /// The base name of the system's store path.
    pub version: String,
    /// How the attempt ended.
    pub outcome: Outcome,
}

impl LogName {
    /// The name of the log of an attempt that ended at `finished` (in UTC) with `running` as the host's system.
    pub fn new(finished: Timestamp, running: Option<&StorePath>, outcome: Outcome) -> Self {
        Self {
            minute: finished.strftime("%Y%m%d-%H%M").to_string(),
            number: 1,
            version: running.map_or("unknown", StorePath::base_name).to_owned(),
            outcome,
        }
    }

    /// Reads a file name. The version may hold every character, `_` and the outcomes' words among them.
    pub fn parse(name: &str) -> Option<Self> {
        let (time, rest) = name.strip_suffix(".log.gz")?.split_once('_')?;
        let (version, word) = rest.rsplit_once('_')?;
        let mut parts = time.splitn(3, '-');
        let (day, minute) = (parts.next()?, parts.next()?);
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(day, 8) || !digits(minute, 4) || version.is_empty() {
            return None;
        }
        let number = parts.next().map_or(Some(1), |number| number.parse().ok())?;
        let outcome = Outcome::from_word(word)?;
        Some(Self { minute: format!("{day}-{minute}"), number, version: version.to_owned(), outcome })
    }
}

impl std::fmt::Display for LogName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.minute)?;
        if self.number > 1 {
            write!(f, "-{}", self.number)?;
        }
        write!(f, "_{}_{}.log.gz", self.version, self.outcome.word())
    }
}
