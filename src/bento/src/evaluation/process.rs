//! Copies of this process, which evaluate: what one of them breaks, breaks only itself.
//!
//! This is the program's one module with `unsafe`: `fork`, `_exit` and an option of the allocator. A copy has one thread, the one that forked, while
//! locks of others would stay locked in it for ever. So the invariant is: **when a process is copied, each other thread of
//! it waits for the forking one to end, and so holds no lock.** The caller says how many those are, and [`spawn`] refuses
//! if there are more. A copy never returns from [`spawn`]: it ends with `_exit`, so that neither destructors nor buffers of
//! the original are run or written twice.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bento_eval::Aborted;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, fork, getpid, getppid, pipe2};
use serde::{Serialize, de::DeserializeOwned};

/// What a copy may use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Bytes of memory beyond those that it has from the beginning.
    pub(super) memory: Option<u64>,
    /// Time on a processor.
    pub(super) time: Option<Duration>,
}

impl Limits {
    /// Makes the limits those of this process.
    pub(super) fn apply(self) {
        let memory = self.memory.map(|memory| memory.saturating_add(data_size()));
        // a limit that can't be set is none; the copy does its work all the same
        let _ = set_soft(Resource::RLIMIT_DATA, memory);
        let _ = set_soft(Resource::RLIMIT_CPU, self.time.map(|time| time.as_secs().max(1)));
    }
}

fn set_soft(resource: Resource, limit: Option<u64>) -> nix::Result<()> {
    let (_, hard) = getrlimit(resource)?;
    setrlimit(resource, limit.map_or(hard, |limit| limit.min(hard)), hard)
}

/// A figure of `/proc/self/status`, in bytes.
fn status_figure(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let kilobytes =
        line.trim_start_matches(':').split_whitespace().next().and_then(|figure| figure.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// How much memory this process has for itself, whether it was touched or not: what `RLIMIT_DATA` is about.
fn data_size() -> u64 {
    status_figure("VmData")
}

/// How much memory of this process is in use.
pub(super) fn resident() -> u64 {
    status_figure("VmRSS")
}

/// How many threads this process has, where `expected` are to stay. The system goes on listing a thread for a moment after it
/// was joined, so more than that are counted again.
fn threads(expected: usize) -> Result<usize> {
    const LEAVING: Duration = Duration::from_millis(200);
    let start = Instant::now();
    loop {
        let count = std::fs::read_dir("/proc/self/task").context("cannot count this process's threads")?.count();
        if count <= expected || start.elapsed() > LEAVING {
            return Ok(count);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether this process can be copied from its only thread.
pub(super) fn is_alone() -> bool {
    threads(1).is_ok_and(|threads| threads == 1)
}

/// The exit status of a copy that has not enough memory for its values.
const OUT_OF_MEMORY: i32 = 70;

/// A copy that is at work.
pub(super) struct Child {
    pid: Pid,
    /// What it reports; ends when it ends.
    pub(super) reports: File,
    /// What it, or the system's libraries in it, printed as an error.
    complaints: File,
}

/// How a copy ended that did not report what it was to.
#[derive(Debug)]
pub(super) enum Crash {
    /// It wanted more memory than it may have.
    Memory,
    /// It took more time than it may.
    Time,
    /// Something else killed it: what it said, and how it ended.
    Other(String),
}

/// Copies this process, which has `waiting` threads besides this one that wait for it. The copy carries out `body`, which
/// writes its reports to the file it gets, and ends.
///
/// # Errors
/// When there are more threads, or the system refuses.
pub(super) fn spawn(
    waiting: usize,
    limits: Limits,
    body: impl FnOnce(File) -> std::result::Result<(), Aborted>,
) -> Result<Child> {
    let threads = threads(waiting + 1)?;
    if threads != waiting + 1 {
        bail!("this process can't be copied: it has {threads} threads, not {}", waiting + 1);
    }
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let complaints = tempfile::tempfile().context("cannot make a temporary file")?;
    let parent = getpid();
    // SAFETY: the other threads wait for this one and hold no lock (counted above), so the copy may do what any process
    // with one thread may.
    match unsafe { fork() }.context("cannot start another process to evaluate in")? {
        ForkResult::Parent { child } => Ok(Child { pid: child, reports: File::from(read), complaints }),
        ForkResult::Child => {
            drop(read);
            let done = catch_unwind(AssertUnwindSafe(|| {
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                // if the parent has gone before that, nobody is interested any more
                if getppid() != parent {
                    return Ok(());
                }
                let _ = dup2_stderr(&complaints);
                // should the machine run out of memory, a copy is the one to go
                let _ = std::fs::write("/proc/self/oom_score_adj", "700");
                limits.apply();
                body(File::from(write))
            }));
            let aborted = match &done {
                Ok(Ok(())) => None,
                Ok(Err(aborted)) => Some(matches!(aborted, Aborted::Memory { .. })),
                Err(panic) => Some(matches!(Aborted::from_panic(&**panic), Some(Aborted::Memory { .. }))),
            };
            let status = match aborted {
                None => 0,
                Some(true) => OUT_OF_MEMORY,
                Some(false) => 1,
            };
            // SAFETY: this process is a copy that nothing waits in; the kernel takes back all that it has.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Has this process, and its copies, keep memory that it freed for what it needs next. An evaluation takes and frees memory at
/// each turn, and each time that it goes back to the kernel and comes again, the kernel clears it.
pub(super) fn keep_freed_memory() {
    /// `mi_option_purge_delay`, for which the crate has no name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: any option may be set to any number at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Ends this process, which is a copy that has reported all that it had to. What it holds need not be put in order piece by piece
/// first: the kernel takes it all at once.
pub(super) fn leave() -> ! {
    // SAFETY: as in `spawn`.
    unsafe { libc::_exit(0) }
}

impl Child {
    /// Waits for the end, and says what it was; to be called once nothing is reported any more.
    pub(super) fn end(mut self) -> Crash {
        let status = loop {
            match waitpid(self.pid, None) {
                Err(nix::Error::EINTR) => {}
                status => break status,
            }
        };
        let mut said = Vec::new();
        // if that can't be read, it goes without saying
        let _ = self.complaints.seek(SeekFrom::Start(0));
        let _ = self.complaints.take(64 << 10).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        match status {
            Ok(WaitStatus::Signaled(_, Signal::SIGXCPU, _)) => Crash::Time,
            // the system's way to end what takes too much memory
            Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _) | WaitStatus::Exited(_, OUT_OF_MEMORY)) => Crash::Memory,
            // what Rust's allocator says
            _ if said.contains("memory allocation of") => Crash::Memory,
            Ok(WaitStatus::Signaled(_, signal, _)) => Crash::Other(format!("it was ended by {signal}: {said}")),
            _ => Crash::Other(said),
        }
    }
}

/// Writes reports: each as its length, in four bytes, and itself.
pub(super) struct Reports(pub(super) File);

impl Reports {
    /// Sends one.
    pub(super) fn send(&mut self, report: &impl Serialize) -> Result<()> {
        let bytes = postcard::to_stdvec(report).context("cannot write a report down")?;
        let len = u32::try_from(bytes.len()).context("a report of more than 4 GiB")?;
        let mut frame = len.to_le_bytes().to_vec();
        frame.extend_from_slice(&bytes);
        self.0.write_all(&frame).context("cannot report")
    }
}

/// Puts together again what [`Reports`] wrote.
#[derive(Default)]
pub(super) struct Received {
    bytes: Vec<u8>,
}

impl Received {
    /// Reads once; false at the end.
    pub(super) fn read_from(&mut self, file: &mut File) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        loop {
            match file.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(len) => {
                    self.bytes.extend_from_slice(&buffer[..len]);
                    return Ok(len > 0);
                }
            }
        }
    }

    /// The next whole report.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some((len, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        let Some(report) = rest.get(..len) else { return Ok(None) };
        let report = postcard::from_bytes(report).context("a report is damaged")?;
        self.bytes.drain(..4 + len);
        Ok(Some(report))
    }
}
