//! The primitives of the protocol: 64-bit little-endian numbers, and byte strings padded to a multiple of eight.

use std::io::{self, Read, Write};

use super::WorkerError;

/// Reads what a daemon writes.
pub(super) struct Reader<R>(pub(super) R);

impl<R: Read> Reader<R> {
    pub(super) fn number(&mut self) -> Result<u64, WorkerError> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).map_err(lost)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn bool(&mut self) -> Result<bool, WorkerError> {
        Ok(self.number()? != 0)
    }

    /// A byte string. Memory is taken as the bytes arrive, whatever length is announced.
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, WorkerError> {
        let length = self.number()?;
        let mut bytes = Vec::new();
        let read = (&mut self.0).take(length).read_to_end(&mut bytes).map_err(lost)?;
        if read as u64 != length {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut padding = [0; 8];
        let padding = &mut padding[..padding_of(length)];
        self.0.read_exact(padding).map_err(lost)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(WorkerError::Protocol("padding that is not zero".into()));
        }
        Ok(bytes)
    }

    /// Text; what is not UTF-8 in it is replaced.
    pub(super) fn text(&mut self) -> Result<String, WorkerError> {
        let bytes = self.bytes()?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Text that the daemon means for a terminal: without colours, and without `error:` at its start.
    pub(super) fn message(&mut self) -> Result<String, WorkerError> {
        let text = plain(&self.text()?);
        let text = text.trim();
        Ok(text.strip_prefix("error:").unwrap_or(text).trim_start().to_owned())
    }

    pub(super) fn texts<C: FromIterator<String>>(&mut self) -> Result<C, WorkerError> {
        let count = self.number()?;
        (0..count).map(|_| self.text()).collect()
    }
}

/// Where bytes of the protocol are written to.
pub(super) trait WriteWire: Write {
    fn number(&mut self, number: u64) -> io::Result<()> {
        self.write_all(&number.to_le_bytes())
    }

    fn bool(&mut self, truth: bool) -> io::Result<()> {
        self.number(u64::from(truth))
    }

    fn string(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        let bytes = text.as_ref();
        self.number(bytes.len() as u64)?;
        self.write_all(bytes)?;
        self.write_all(&[0; 8][..padding_of(bytes.len() as u64)])
    }

    fn strings<S: AsRef<[u8]>>(&mut self, strings: impl ExactSizeIterator<Item = S>) -> io::Result<()> {
        self.number(strings.len() as u64)?;
        strings.into_iter().try_for_each(|string| self.string(string))
    }
}

impl<W: Write + ?Sized> WriteWire for W {}

/// Takes escape sequences (`ESC [ … m`) out.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(0, |end| end + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

fn padding_of(length: u64) -> usize {
    ((8 - length % 8) % 8) as usize
}

/// The error for a connection that ended or broke.
pub(super) fn lost(source: io::Error) -> WorkerError {
    WorkerError::Lost { source, said: String::new() }
}

/// Cuts what is written into frames: a length, then as many bytes; a length of zero ends them.
pub(super) struct Frames<'w, W: Write> {
    to: &'w mut W,
    buffer: Vec<u8>,
}

/// As many bytes as a frame has. C++ Nix writes frames of this size.
const FRAME: usize = 32 * 1024;

impl<'w, W: Write> Frames<'w, W> {
    pub(super) fn new(to: &'w mut W) -> Self {
        Self { to, buffer: Vec::with_capacity(FRAME) }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        // frames are not padded
        self.to.number(self.buffer.len() as u64)?;
        self.to.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.send()?;
        self.to.number(0)?;
        self.to.flush()
    }
}

impl<W: Write> Write for Frames<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(FRAME - self.buffer.len())];
        self.buffer.extend_from_slice(part);
        if self.buffer.len() == FRAME {
            self.send()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()?;
        self.to.flush()
    }
}
