//! Positions: from an offset into everything that was read to a file, a line and a column.

use crate::syntax::LineIndex;
use crate::value::Pos;
use std::cell::RefCell;
use std::rc::Rc;

/// Where a text came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file: its path.
    File(Rc<[u8]>),
    /// An expression of the caller's, kept for excerpts.
    String(Rc<[u8]>),
    /// Standard input, likewise.
    Stdin(Rc<[u8]>),
}

struct Source {
    /// The position of its first byte.
    start: u32,
    origin: Origin,
    lines: Option<Rc<LineIndex>>,
}

/// A position that people understand.
#[derive(Clone, Debug)]
pub struct Location {
    /// The text.
    pub origin: Origin,
    /// Counted from 1.
    pub line: u32,
    /// Counted from 1, in bytes.
    pub column: u32,
}

/// All texts of an evaluation. Texts of files are not kept, but read again when a line number is asked for.
#[derive(Default)]
pub(crate) struct Positions {
    sources: RefCell<Vec<Source>>,
}

impl Positions {
    /// Takes a text up. Offset `n` of it has position `base + n` for the result `base`; `None` when 4 GiB are used up.
    pub(crate) fn add(&self, origin: Origin, len: usize) -> Option<u32> {
        let mut sources = self.sources.borrow_mut();
        let start = match sources.last() {
            // The last source's end is kept as the next one's start; see below.
            Some(last) => last.start,
            None => 1,
        };
        let end = start.checked_add(u32::try_from(len).ok()?)?.checked_add(1)?;
        match sources.last_mut() {
            Some(last) => *last = Source { start, origin, lines: None },
            None => sources.push(Source { start, origin, lines: None }),
        }
        // A sentinel that the next text replaces.
        sources.push(Source { start: end, origin: Origin::String(Rc::from(&b""[..])), lines: None });
        Some(start)
    }

    /// The text that a position lies in and the offset there.
    pub(crate) fn origin(&self, pos: Pos) -> Option<(Origin, u32)> {
        if pos == Pos::NONE {
            return None;
        }
        let sources = self.sources.borrow();
        let index = sources.partition_point(|source| source.start <= pos.0).checked_sub(1)?;
        Some((sources[index].origin.clone(), pos.0 - sources[index].start))
    }

    /// The location of a position; `read` reads a file.
    pub(crate) fn locate(&self, pos: Pos, read: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Option<Location> {
        let (origin, offset) = self.origin(pos)?;
        let index = self.sources.borrow().partition_point(|source| source.start <= pos.0).checked_sub(1)?;
        let known = self.sources.borrow()[index].lines.clone();
        let lines = match known {
            Some(lines) => lines,
            None => {
                let lines = match &origin {
                    Origin::File(path) => LineIndex::new(&read(path)?),
                    Origin::String(text) | Origin::Stdin(text) => LineIndex::new(text),
                };
                let lines = Rc::new(lines);
                self.sources.borrow_mut()[index].lines = Some(lines.clone());
                lines
            }
        };
        let (line, column) = lines.line_column(offset);
        Some(Location { origin, line, column })
    }
}
