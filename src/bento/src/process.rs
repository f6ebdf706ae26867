//! Programs that run against the clock: what takes too long is ended, with all that it started.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::nix::not_started;

/// How often a program that runs against the clock is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long a program may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Waits for a program's end, but not beyond a deadline.
pub fn wait_until(child: &mut Child, deadline: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(TICK);
    }
}

/// Ends a program that leads a process group of its own, and what it started: first asked to, then killed.
pub fn end(child: &mut Child) -> Result<()> {
    let group = Pid::from_raw(i32::try_from(child.id()).context("a process id is out of range")?);
    // a group that is gone already needs no signal
    let _ = killpg(group, Signal::SIGTERM);
    wait_until(child, Instant::now() + GRACE)?;
    let _ = killpg(group, Signal::SIGKILL);
    child.wait().context("cannot wait for a program")?;
    Ok(())
}

/// Ends a process group by the number of the process that leads it: first asked to, then killed.
pub fn end_group(leader: u32) {
    let Ok(leader) = i32::try_from(leader) else { return };
    // a group that is gone already needs no signal
    let _ = killpg(Pid::from_raw(leader), Signal::SIGTERM);
    thread::sleep(GRACE);
    let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
}

/// What tells this process to end (Ctrl-C, a shutdown, a terminal that is closed), held back for as long as this lives, so that there
/// is time to tidy up.
pub struct Interruptions {
    /// What is held back.
    held: SigSet,
    /// What is held back besides.
    before: SigSet,
    signals: SignalFd,
}

impl Interruptions {
    /// Begins to hold them back from the thread that calls it.
    pub fn watch() -> Result<Self> {
        let mut held = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            held.add(signal);
        }
        let context = "cannot watch for signals";
        let signals = SignalFd::with_flags(&held, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context(context)?;
        let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK).context(context)?;
        Ok(Self { held, before, signals })
    }

    /// Starts a program, which hears of signals as it would if they were not held back from this process: it inherits what its parent
    /// holds back, and `timeout`, for one, could end nothing.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        if self.any() {
            bail!("interrupted");
        }
        self.before.thread_set_mask().context("cannot watch for signals")?;
        let child = command.spawn();
        self.held.thread_block().context("cannot watch for signals")?;
        child.with_context(|| not_started(command.get_program()))
    }

    /// Whether there was one since they were last asked for.
    pub fn any(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }

    /// Runs a program that has this process's terminal, for no longer than `limit`; it is ended when this process is told to.
    pub fn attend(&self, command: &mut Command, limit: Duration) -> Result<ExitStatus> {
        let program = PathBuf::from(command.get_program());
        let mut child = self.spawn(command)?;
        let deadline = Instant::now() + limit;
        let reason = loop {
            let ended = wait_until(&mut child, (Instant::now() + TICK).min(deadline))?;
            match (ended, self.any()) {
                // a terminal tells both
                (Some(_), true) => bail!("interrupted"),
                (Some(status), false) => return Ok(status),
                (None, true) => break "interrupted".to_owned(),
                (None, false) if Instant::now() < deadline => {}
                (None, false) => {
                    break format!("{} did not end within {} s and was ended", program.display(), limit.as_secs());
                }
            }
        };
        if let Ok(id) = i32::try_from(child.id()) {
            // it may have ended meanwhile
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        if wait_until(&mut child, Instant::now() + GRACE)?.is_none() {
            child.kill().and_then(|()| child.wait()).context("cannot end a program")?;
        }
        bail!(reason)
    }

    /// Reads a line of this process's input; nothing if it is told to end before there is one.
    pub fn read_line(&self) -> Result<Option<String>> {
        let stdin = std::io::stdin();
        let mut either =
            [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        poll(&mut either, PollTimeout::NONE).context("cannot wait for the answer")?;
        if self.any() {
            return Ok(None);
        }
        let mut line = String::new();
        stdin.read_line(&mut line).context("cannot read the answer")?;
        Ok(Some(line))
    }
}

impl Drop for Interruptions {
    fn drop(&mut self) {
        // this thread's own mask can't be refused
        let _ = self.before.thread_set_mask();
    }
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Spoken {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Who answers a program while it runs: is given what it printed so far, again and again, and gives what it shall be told now, if
/// anything.
pub type Answer<'a> = &'a mut dyn FnMut(&str) -> Option<Vec<u8>>;

/// Runs a program with all of `input`, which may take as long as `limit`; then it and everything that it started is ended.
///
/// Its input stays open until it ends, so that the other end of a connection can tell whether this process is alive.
pub fn converse(
    command: &mut Command,
    input: &[u8],
    mut answer: Option<Answer<'_>>,
    limit: Duration,
) -> Result<Spoken> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| not_started(program.as_os_str()))?;
    let deadline = Instant::now() + limit;
    let pipes = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
    let ((mut stdin, mut stdout), mut stderr) = pipes.context("a program has no pipes")?;
    thread::scope(|scope| {
        let (parts, printed) = mpsc::channel::<Vec<u8>>();
        scope.spawn(move || {
            let mut part = [0; 8192];
            while let Ok(length @ 1..) = stdout.read(&mut part) {
                if parts.send(part[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        let complaints = scope.spawn(move || {
            let mut text = Vec::new();
            // what was read until then is what there is
            let _ = stderr.read_to_end(&mut text);
            text
        });
        let (more, answers) = mpsc::channel::<Vec<u8>>();
        scope.spawn(move || {
            // a program that reads nothing of it says why by itself
            let _ = stdin.write_all(input).and_then(|()| stdin.flush());
            while let Ok(words) = answers.recv() {
                let _ = stdin.write_all(&words).and_then(|()| stdin.flush());
            }
        });
        let mut text = Vec::new();
        let ended = loop {
            match printed.recv_timeout(TICK) {
                Ok(part) => text.extend(part),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK),
            }
            if let Some(words) = answer.as_mut().and_then(|answer| answer(&String::from_utf8_lossy(&text))) {
                let _ = more.send(words);
            }
            match child.try_wait().context("cannot wait for a program") {
                Ok(Some(status)) => break Ok(Some(status)),
                Ok(None) if Instant::now() >= deadline => break end(&mut child).map(|()| None),
                Ok(None) => {}
                Err(error) => break Err(error),
            }
        };
        // what it left behind would keep its pipes open
        if let Ok(id) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        drop(more);
        text.extend(printed.iter().flatten());
        let complaints = complaints.join().unwrap_or_default();
        let Some(status) = ended? else {
            bail!("{} did not end within {} s and was killed", program.display(), limit.as_secs());
        };
        let words = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Spoken { status, stdout: words(text), stderr: words(complaints) })
    })
}
