//! The log of an attempt: everything that its programs print, in one file that outlives a crash.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use crate::nix::not_started;
use crate::process::{end, wait_until};

/// Of a log that is larger, in bytes, only the beginning and the end are reported: it must fit into the memory of a small host, and
/// into what the hub takes.
const REPORTED: u64 = 16 << 20;
/// How much of that is the beginning.
const BEGINNING: u64 = 1 << 20;

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of the attempt that is under way; what an interrupted agent wrote is kept.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Begins the log of another attempt.
    pub fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("cannot empty {}", self.path.display()))
    }

    /// Adds a line about what the agent does, and shows it.
    pub fn say(&mut self, line: &str) -> Result<()> {
        eprintln!("{line}");
        self.note(line)
    }

    /// Adds a line that is shown elsewhere.
    pub fn note(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{}{line}", mark()).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// What was written; of very much, the beginning and the end.
    pub fn content(&self) -> Result<Vec<u8>> {
        self.read_content().with_context(|| format!("cannot read {}", self.path.display()))
    }

    fn read_content(&self) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let left_out = file.metadata()?.len().saturating_sub(REPORTED);
        let mut content = Vec::new();
        if left_out > 0 {
            (&file).take(BEGINNING).read_to_end(&mut content)?;
            writeln!(content, "\n{}{left_out} bytes are left out here", mark())?;
            file.seek(SeekFrom::Start(BEGINNING + left_out))?;
        }
        file.take(REPORTED - if left_out > 0 { BEGINNING } else { 0 }).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Runs a program; all that it prints goes into the log.
    ///
    /// With a time limit, it and everything that it started is ended when that has passed. An error is a program that
    /// didn't end with status 0.
    pub fn run(&mut self, command: &mut Command, limit: Option<Duration>) -> Result<()> {
        self.run_with_input(command, Stdio::null(), limit)
    }

    /// Runs a program as [`Log::run`] does, with its standard input from elsewhere.
    pub fn run_with_input(&mut self, command: &mut Command, input: Stdio, limit: Option<Duration>) -> Result<()> {
        let status = self.status(command, input, limit)?;
        if !status.success() {
            bail!("{} ended with {status}", PathBuf::from(command.get_program()).display());
        }
        Ok(())
    }

    /// As [`Log::run_with_input`], but gives the status that the program ended with.
    pub fn status(&mut self, command: &mut Command, input: Stdio, limit: Option<Duration>) -> Result<ExitStatus> {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let program = PathBuf::from(command.get_program());
        self.say(&format!("running {} {}", program.display(), words.join(" ")))?;
        let output = || self.file.try_clone().with_context(|| format!("cannot write {}", self.path.display()));
        command.stdin(input).stdout(output()?).stderr(output()?).process_group(0);
        let mut child = command.spawn().with_context(|| not_started(program.as_os_str()))?;
        match limit {
            None => child.wait().with_context(|| format!("cannot wait for {}", program.display())),
            Some(limit) => match wait_until(&mut child, Instant::now() + limit)? {
                Some(status) => Ok(status),
                None => {
                    end(&mut child)?;
                    bail!("{} did not end within {} s and was killed", program.display(), limit.as_secs());
                }
            },
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What a line of the agent's own begins with.
fn mark() -> String {
    format!("{} bento: ", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"))
}
