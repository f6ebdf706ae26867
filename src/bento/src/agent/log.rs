//! The log of an attempt: everything that its programs print, in one file that outlives a crash.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;

use crate::nix::not_started;
use crate::process::{end, wait_until};

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
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        writeln!(self.file, "{now} bento: {line}").with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// All that was written.
    pub fn content(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.path).with_context(|| format!("cannot read {}", self.path.display()))
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
