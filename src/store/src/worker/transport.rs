//! The two ways to a daemon: a Unix socket, and the standard input and output of a process.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    WorkerError,
    wire::{self, Reader},
};

pub(super) type Output = BufWriter<Box<dyn Write + Send>>;

/// A connection's two directions.
pub(super) struct Transport {
    pub(super) from: Reader<BufReader<Box<dyn Read + Send>>>,
    pub(super) to: Output,
    /// What is read from, to see whether something has come; `None` once it is closed.
    source: Option<Source>,
    process: Option<Process>,
}

enum Source {
    Socket(UnixStream),
    Pipe(OwnedFd),
}

struct Process {
    child: Child,
    /// Collects what it prints on standard error.
    said: Option<JoinHandle<String>>,
}

const BUFFER: usize = 64 * 1024;
/// As much of what a process prints as an error shows.
const LAST_WORDS: usize = 4096;

impl Transport {
    pub(super) fn open(socket: &Path) -> Result<Self, WorkerError> {
        let connect = || {
            let stream = UnixStream::connect(socket)?;
            Ok(Self::new(stream.try_clone()?, stream.try_clone()?, Source::Socket(stream), None))
        };
        connect().map_err(|source| WorkerError::Connect { socket: socket.to_owned(), source })
    }

    pub(super) fn start(mut command: Command) -> Result<Self, WorkerError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut start = || {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let (Some(input), Some(output), Some(errors)) =
                (child.stdin.take(), child.stdout.take(), child.stderr.take())
            else {
                return Err(io::Error::other("a pipe is missing"));
            };
            let said = std::thread::Builder::new().name("nix-daemon".to_owned()).spawn(|| listen(errors))?;
            let source = Source::Pipe(output.as_fd().try_clone_to_owned()?);
            Ok(Self::new(output, input, source, Some(Process { child, said: Some(said) })))
        };
        start().map_err(|source| WorkerError::Start { program, source })
    }

    fn new(
        from: impl Read + Send + 'static,
        to: impl Write + Send + 'static,
        source: Source,
        process: Option<Process>,
    ) -> Self {
        Self {
            from: Reader(BufReader::with_capacity(BUFFER, Box::new(from))),
            to: BufWriter::with_capacity(BUFFER, Box::new(to)),
            source: Some(source),
            process,
        }
    }

    /// Whether something of the other side can be read at once.
    pub(super) fn has_come(&self) -> Result<bool, WorkerError> {
        if !self.from.0.buffer().is_empty() {
            return Ok(true);
        }
        let fd = match &self.source {
            Some(Source::Socket(stream)) => stream.as_fd(),
            Some(Source::Pipe(pipe)) => pipe.as_fd(),
            None => return Ok(false),
        };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::ZERO).map_err(|error| wire::lost(error.into()))?;
        Ok(ready > 0)
    }

    /// Ends the daemon's process, and gives the end of what it has said on standard error. Empty if there is none.
    pub(super) fn last_words(&mut self) -> String {
        self.close();
        let said = self.process.as_mut().and_then(|process| {
            let _ = process.child.wait();
            process.said.take()
        });
        said.and_then(|said| said.join().ok()).unwrap_or_default()
    }

    /// Hangs up. What was written and not sent is not sent any more, so that the other side takes no half for a whole.
    pub(super) fn close(&mut self) {
        let nowhere: Box<dyn Write + Send> = Box::new(io::sink());
        let (_, _unsent) = std::mem::replace(&mut self.to, BufWriter::new(nowhere)).into_parts();
        self.from = Reader(BufReader::new(Box::new(io::empty())));
        if let Some(Source::Socket(stream)) = self.source.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Transport {
    /// A daemon ends when nobody is there any more; it is waited for, so that none is left behind.
    fn drop(&mut self) {
        self.close();
        if let Some(process) = &mut self.process {
            let _ = process.child.wait();
        }
    }
}

/// Reads to the end, and keeps the last part.
fn listen(mut errors: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = errors.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..length]);
        if kept.len() > 2 * LAST_WORDS {
            kept.drain(..kept.len() - LAST_WORDS);
        }
    }
    String::from_utf8_lossy(&kept[kept.len().saturating_sub(LAST_WORDS)..]).into_owned()
}
