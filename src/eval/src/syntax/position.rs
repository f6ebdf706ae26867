//! Byte offsets to lines and columns.

use super::ast::Pos;
use memchr::memchr2_iter;

/// Where the lines of a text start. A line ends with `\n`, `\r\n` or a lone `\r`, as Nix counts.
#[derive(Clone, Debug)]
pub struct LineIndex {
    starts: Box<[u32]>,
}

/// Calls `each` with the start of every line but the first.
fn for_each_line_start(source: &[u8], mut each: impl FnMut(usize)) {
    for end in memchr2_iter(b'\n', b'\r', source) {
        if source[end] == b'\n' || source.get(end + 1) != Some(&b'\n') {
            each(end + 1);
        }
    }
}

impl LineIndex {
    /// The index of `source`.
    pub fn new(source: &[u8]) -> Self {
        let mut starts = vec![0];
        for_each_line_start(source, |start| starts.push(start as u32));
        LineIndex { starts: starts.into() }
    }

    /// The line and the column of the byte at `offset`, both counted from 1, the column in bytes.
    pub fn line_column(&self, offset: Pos) -> (u32, u32) {
        let line = self.starts.partition_point(|&start| start <= offset);
        (line as u32, offset - self.starts[line - 1] + 1)
    }
}

/// The line and the column of one byte of `source`; for several of them make a [`LineIndex`].
pub fn line_column(source: &[u8], offset: Pos) -> (u32, u32) {
    let (mut line, mut line_start) = (1, 0);
    for_each_line_start(source, |start| {
        if start as u32 <= offset {
            line += 1;
            line_start = start as u32;
        }
    });
    (line, offset - line_start + 1)
}
