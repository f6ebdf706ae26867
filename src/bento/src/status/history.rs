//! What a host was told and what it has said over time: its releases, its reports, its logs and what is in them.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use jiff::Timestamp;

use super::{host_logs, read_report};
use crate::files::read_untrusted;
use crate::host::HostName;
use crate::hub::{HostDir, modified};
use crate::manifest::Manifest;
use crate::report::{LogName, Report};

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

/// A release of which the hub still has the files.
#[derive(Debug)]
pub struct Release {
    /// Its serial.
    pub serial: u64,
    /// What it said, if that was kept and can be read.
    pub manifest: Result<Option<Manifest>>,
}

/// The releases of a host that the hub still has, oldest first.
pub fn releases(dir: &HostDir) -> Result<Vec<Release>> {
    let release = |serial| Release { serial, manifest: dir.kept_manifest(serial) };
    Ok(dir.serials()?.into_iter().map(release).collect())
}

/// A report of a host.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it says.
    pub report: Report,
    /// When it ended: by the host's clock, but not after the report arrived.
    pub ended: Timestamp,
}

/// What a host reported.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// The reports, oldest first.
    pub attempts: Vec<Attempt>,
    /// What can't be understood, naming the file.
    pub problems: Vec<String>,
    /// How many older ones were left out.
    pub omitted: usize,
}

/// The last `limit` reports of a host.
pub fn attempts(dir: &HostDir, host: &HostName, limit: usize) -> Result<Attempts> {
    let mut reports = host_logs(&dir.logs())?.reports;
    reports.sort_by_key(|(number, _)| *number);
    let omitted = reports.len().saturating_sub(limit);
    let mut found = Attempts { omitted, ..Attempts::default() };
    for (number, path) in reports.split_off(omitted) {
        match read_report(&path, host, number) {
            Ok(report) => {
                let ended = modified(&path).map_or(report.finished, |arrived| report.finished.min(arrived));
                found.attempts.push(Attempt { report, ended });
            }
            Err(error) => found.problems.push(format!("{}: {error:#}", path.display())),
        }
    }
    Ok(found)
}

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Its last lines, fit to be shown: a host may have put anything there.
    pub text: String,
    /// Whether there is more before them.
    pub cut: bool,
}

impl Log {
    /// The end of what it says, at most so many bytes of it.
    pub fn tail(&self, limit: usize) -> Result<Tail> {
        let packed = read_untrusted(&self.file, PACKED_LIMIT)?;
        let mut rest = GzDecoder::new(packed.as_slice()).take(LIMIT);
        let (mut end, mut chunk, mut cut) = (Vec::new(), vec![0; 64 << 10], false);
        loop {
            let count = rest.read(&mut chunk).with_context(|| format!("{} is damaged", self.file.display()))?;
            if count == 0 {
                break;
            }
            end.extend_from_slice(&chunk[..count]);
            // not for each chunk: moving bytes takes time too
            if end.len() > 2 * limit + chunk.len() {
                end.drain(..end.len() - limit);
                cut = true;
            }
        }
        if end.len() > limit {
            end.drain(..end.len() - limit);
            cut = true;
        }
        let text = printable(&String::from_utf8_lossy(&end));
        // the first line is whole only if nothing is before it
        let begin = if cut { text.find('\n').map_or(0, |newline| newline + 1) } else { 0 };
        Ok(Tail { text: text[begin..].to_owned(), cut })
    }

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

/// A text without the characters that a terminal would obey, and without those that turn the order of others around.
pub fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || turns(*c))).collect()
}
