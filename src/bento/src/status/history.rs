//! What a host has said over time: its logs, newest last, and what is in them.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use jiff::Timestamp;

use crate::files::read_untrusted;
use crate::hub::{HostDir, modified};
use crate::report::LogName;

/// No log is larger than this on the hub, in bytes.
const PACKED_LIMIT: u64 = 64 << 20;
/// Nor than this when it is unpacked: what comes after is left out.
const LIMIT: u64 = 256 << 20;

/// One log that a host left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// What its name says.
    pub name: LogName,
    /// When it arrived.
    pub time: Option<Timestamp>,
    /// Where it is.
    pub file: PathBuf,
}

/// The logs in a host's directory, oldest first.
pub fn logs(dir: &HostDir) -> Result<Vec<Log>> {
    let place = dir.logs();
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(&place).with_context(|| format!("cannot list {}", place.display()))? {
        let file = entry.with_context(|| format!("cannot list {}", place.display()))?.path();
        if let Some(name) = file.file_name().and_then(|name| name.to_str()).and_then(LogName::parse) {
            logs.push(Log { name, time: modified(&file), file });
        }
    }
    logs.sort_by(|a, b| (a.time, &a.name.minute, a.name.number).cmp(&(b.time, &b.name.minute, b.name.number)));
    Ok(logs)
}

impl Log {
    /// What it says, fit for a terminal: a host may have put anything there.
    pub fn text(&self) -> Result<String> {
        let packed = read_untrusted(&self.file, PACKED_LIMIT)?;
        let mut bytes = Vec::new();
        GzDecoder::new(packed.as_slice())
            .take(LIMIT)
            .read_to_end(&mut bytes)
            .with_context(|| format!("{} is damaged", self.file.display()))?;
        Ok(printable(&String::from_utf8_lossy(&bytes)))
    }
}

/// A text without the characters that a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}
