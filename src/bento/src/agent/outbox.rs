//! The outbox: reports and logs on their way to the hub, kept on disk until they are there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::files;
use crate::host::HostName;
use crate::report::{LogName, Report, signature_name};
use crate::sign::{REPORTS, Signer};
use crate::ssh::Connection;

/// Where the hub takes reports.
pub(super) const LOGS: &str = "logs";
/// Where it is in a state directory.
const DIR: &str = "outbox";
/// How many names are tried for a log or report whose name is taken.
const NAMES: u64 = 1000;

/// Reports that are queued in a directory, as `SERIAL-ATTEMPT.json` with the log as `SERIAL-ATTEMPT.log.gz`.
#[derive(Debug)]
pub struct Outbox {
    dir: PathBuf,
}

impl Outbox {
    /// The outbox in a state directory.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join(DIR);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        files::clear_temporaries(&dir)?;
        Ok(Self { dir })
    }

    /// Queues a report with its log, durably. Queueing the same attempt again replaces it.
    pub fn add(&self, report: &Report, log: &[u8]) -> Result<()> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(log).context("cannot compress the log")?;
        let packed = encoder.finish().context("cannot compress the log")?;
        let stem = format!("{:020}-{:06}", report.serial, report.attempt);
        // the report last: what has a report is complete
        files::write_atomic(&self.dir.join(format!("{stem}.log.gz")), &packed, 0o600, None)?;
        files::write_atomic(&self.dir.join(format!("{stem}.json")), &report.to_json()?, 0o600, None)
    }

    /// How many reports wait in the outbox of a state directory; none where there is no outbox.
    pub fn count(state_dir: &Path) -> Result<usize> {
        let outbox = Self { dir: state_dir.join(DIR) };
        if outbox.dir.exists() { Ok(outbox.queued()?.len()) } else { Ok(0) }
    }

    /// The queued reports' files, oldest first.
    fn queued(&self) -> Result<Vec<PathBuf>> {
        let mut queued = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                queued.push(path);
            }
        }
        queued.sort();
        Ok(queued)
    }

    /// The highest number of the attempts at a release that wait.
    pub fn attempts(&self, serial: u64) -> Result<u64> {
        let numbers = self.queued()?.into_iter().filter_map(|file| {
            let (of, attempt) = file.file_stem()?.to_str()?.split_once('-')?;
            (of.parse() == Ok(serial)).then(|| attempt.parse().ok())?
        });
        Ok(numbers.max().unwrap_or(0))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.queued()?.is_empty())
    }

    /// Delivers all that a host has queued, oldest first, signed unless there is nothing to sign with; what is delivered
    /// leaves the outbox.
    pub fn deliver(&self, host: &HostName, hub: &Connection, signer: Option<&Signer>) -> Result<()> {
        for file in self.queued()? {
            let log_file = file.with_extension("log.gz");
            let report = fs::read(&file).map_err(Error::from).and_then(|text| Report::parse(&text));
            // kept for people to look at, but it must not hold up the others
            let mut report = match report {
                Ok(report) if report.host == *host => report,
                Ok(Report { host: other, .. }) => {
                    set_aside(&file, &format!("speaks of the host {other}, which this one was"), "renamed")?;
                    continue;
                }
                Err(_) => {
                    set_aside(&file, "is damaged", "damaged")?;
                    continue;
                }
            };
            match fs::read(&log_file) {
                Ok(log) => deliver_log(hub, &mut report, &log)?,
                Err(error) => eprintln!("a report goes without its log: {}: {error}", log_file.display()),
            }
            // on disk before it is sent: a report that is sent twice is the same both times
            files::write_atomic(&file, &report.to_json()?, 0o600, None)?;
            deliver_report(hub, &mut report, signer)?;
            files::remove(&file)?;
            files::remove(&log_file)?;
        }
        Ok(())
    }
}

/// Keeps a queued report that is not to be delivered, and says so.
fn set_aside(file: &Path, why: &str, extension: &str) -> Result<()> {
    let aside = file.with_extension(extension);
    eprintln!("{} {why}: set aside as {}", file.display(), aside.display());
    fs::rename(file, &aside).with_context(|| format!("cannot create {}", aside.display()))
}

/// Uploads a log under the first free name, and puts that name into the report.
fn deliver_log(hub: &Connection, report: &mut Report, log: &[u8]) -> Result<()> {
    let mut name = LogName::new(report.finished, report.running.as_ref(), report.outcome);
    for number in 1..=NAMES {
        name.number = number;
        if hub.upload(&format!("{LOGS}/{name}"), log)? {
            report.log = Some(name.to_string());
            return Ok(());
        }
    }
    anyhow::bail!("the hub has {NAMES} other logs of the same minute")
}

/// Uploads a report under its attempt's number, or a higher one if that is taken: an agent that lost its state counts
/// from the beginning. Its signature is there before it is: so nobody ever sees it without.
fn deliver_report(hub: &Connection, report: &mut Report, signer: Option<&Signer>) -> Result<()> {
    for _ in 0..NAMES {
        let (file, text) = (format!("{LOGS}/{}", report.file_name()), report.to_json()?);
        // another report's signature is left alone
        if let Some(signer) = signer
            && !hub.exists(&file)?
        {
            hub.replace(&signature_name(&file), signer.sign_in(REPORTS, &text)?.as_bytes())?;
        }
        if hub.upload(&file, &text)? {
            return Ok(());
        }
        report.attempt += 1;
    }
    anyhow::bail!("the hub has {NAMES} other reports of release {}", report.serial)
}
