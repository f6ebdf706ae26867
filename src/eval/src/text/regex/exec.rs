//! Running a program over an input.
//!
//! Every step consumes one byte, so the stack of steps taken is also the position, and the way that led to a match is
//! the stack itself.

use std::ops::Range;

use super::nfa::ByteSet;
use super::program::{ACCEPT, AT_BEGIN, AT_END, Decision, END, Mark, Program};
use super::{Captures, Failure, Regex, RegexError};

/// How much the bookkeeping may take, in bytes.
const MAX_BYTES: usize = 1 << 30;

/// The size at which the tables' pages aim, in entries.
const PAGE_ENTRIES: usize = 1 << 12;

/// A table of one entry per position and place, in pages that exist once touched and go once passed.
struct Table<T> {
    pages: Vec<Option<Box<[T]>>>,
    /// Each page covers two to the power of this many positions.
    shift: u32,
    places: usize,
    dropped: usize,
    live_bytes: usize,
}

impl<T: Copy + Default> Table<T> {
    /// `per_entry` is how many places one entry can hold.
    fn new(program: &Program, text_len: usize, per_entry: usize) -> Table<T> {
        let places = program.roots.len().max(1);
        let positions = (PAGE_ENTRIES * per_entry / places).clamp(1, text_len.max(1));
        Table { pages: Vec::new(), shift: positions.ilog2(), places, dropped: 0, live_bytes: 0 }
    }

    /// The page of `position` and the index of `place` in it, not yet divided by what an entry holds.
    fn locate(&mut self, position: usize, place: u32, per_entry: usize) -> Result<(&mut [T], usize), Failure> {
        let page = position >> self.shift;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let length = (self.places << self.shift).div_ceil(per_entry);
        let slot = &mut self.pages[page];
        if slot.is_none() {
            self.live_bytes += length * size_of::<T>();
            if self.live_bytes > MAX_BYTES {
                return Err(Failure::MemoryLimit);
            }
        }
        let entries = slot.get_or_insert_with(|| vec![T::default(); length].into_boxed_slice());
        let within = position & ((1 << self.shift) - 1);
        Ok((entries, within * self.places + place as usize))
    }

    /// Forgets everything before `position`.
    fn forget(&mut self, position: usize) {
        let end = (position >> self.shift).min(self.pages.len());
        while self.dropped < end {
            if let Some(page) = self.pages[self.dropped].take() {
                self.live_bytes -= size_of_val(&*page);
            }
            self.dropped += 1;
        }
    }
}

impl Table<u64> {
    /// Sets the bit; says whether it was set before.
    fn test_and_set(&mut self, position: usize, place: u32) -> Result<bool, Failure> {
        let (page, index) = self.locate(position, place, 64)?;
        let (word, bit) = (&mut page[index / 64], 1 << (index % 64));
        let before = *word & bit != 0;
        *word |= bit;
        Ok(before)
    }
}

/// Where a match must end, and what the start of the attempt allows.
#[derive(Clone, Copy)]
struct Attempt {
    start: usize,
    /// The match must end where the input does.
    whole: bool,
    /// `^` holds at the start.
    at_begin: bool,
    /// An empty match does not count.
    not_empty: bool,
}

impl Attempt {
    /// Whether a decision's conditions hold at `position`.
    fn allows(&self, decision: &Decision, position: usize, text: &[u8]) -> bool {
        (decision.conditions & AT_BEGIN == 0 || self.at_begin)
            && (decision.conditions & AT_END == 0 || position == text.len())
    }

    fn accepts(&self, position: usize, text: &[u8]) -> bool {
        if self.whole { position == text.len() } else { !self.not_empty || position > self.start }
    }
}

pub(super) fn full_match(program: &Program, text: &[u8]) -> Result<Option<Captures>, Failure> {
    let attempt = Attempt { start: 0, whole: true, at_begin: true, not_empty: false };
    // Where the next byte leaves no choice nothing is tried twice.
    let mut settled = (!program.deterministic).then(|| Table::new(program, text.len(), 64));
    let mut path = Vec::with_capacity(text.len().min(1 << 10) + 1);
    Ok(first_match(program, text, attempt, settled.as_mut(), &mut path)?.then(|| captures(program, 0, &path)))
}

/// Finds the first way in the order of decisions, and leaves it in `path`.
///
/// `settled` holds the places from which nothing was found, for any attempt over the same text.
fn first_match(
    program: &Program,
    text: &[u8],
    attempt: Attempt,
    mut settled: Option<&mut Table<u64>>,
    path: &mut Vec<u32>,
) -> Result<bool, Failure> {
    path.clear();
    let mut current = program.start;
    loop {
        if current == END {
            let Some(last) = path.pop() else { return Ok(false) };
            current = program.decisions[last as usize].on_failure;
            continue;
        }
        let decision = &program.decisions[current as usize];
        let position = attempt.start + path.len();
        if attempt.allows(decision, position, text) {
            if decision.target == ACCEPT {
                if attempt.accepts(position, text) {
                    path.push(current);
                    return Ok(true);
                }
            } else if takes(program, decision, text, position) {
                let tried = match &mut settled {
                    Some(table) => table.test_and_set(position, decision.target)?,
                    None => false,
                };
                if !tried {
                    path.push(current);
                    current = program.roots[decision.target as usize];
                    continue;
                }
            }
        }
        current = decision.on_failure;
    }
}

fn takes(program: &Program, decision: &Decision, text: &[u8], position: usize) -> bool {
    text.get(position).is_some_and(|&byte| program.sets[decision.set as usize].contains(byte))
}

/// The values of the table for [`longest_match`]: unknown, no match, or `NO_MATCH + 1` plus the length of the longest.
const UNKNOWN: usize = 0;
const NO_MATCH: usize = 1;

/// A place on the way of [`longest_match`].
struct Frame {
    /// The decision being followed.
    current: u32,
    /// The best value so far.
    best: usize,
}

/// Finds the longest match by the order of decisions, the first of equally long ones, and leaves it in `path`.
///
/// `lengths` holds, for any attempt over the same text, the best value of each place that was settled.
fn longest_match(
    program: &Program,
    text: &[u8],
    attempt: Attempt,
    lengths: &mut Table<usize>,
    path: &mut Vec<u32>,
) -> Result<bool, Failure> {
    path.clear();
    let mut frames = vec![Frame { current: program.start, best: NO_MATCH }];
    let mut finished = None;
    while let Some(frame) = frames.last() {
        let position = attempt.start + frames.len() - 1;
        let (current, best) = (frame.current, frame.best);
        let value = if let Some(value) = finished.take() {
            value
        } else if current == END {
            frames.pop();
            let Some(caller) = frames.last() else {
                if best == NO_MATCH {
                    return Ok(false);
                }
                break;
            };
            let place = program.decisions[caller.current as usize].target;
            let (page, index) = lengths.locate(position - 1, place, 1)?;
            page[index] = best;
            finished = Some(best);
            continue;
        } else {
            match value_of(program, text, attempt, lengths, current, position)? {
                UNKNOWN => {
                    let target = program.decisions[current as usize].target;
                    frames.push(Frame { current: program.roots[target as usize], best: NO_MATCH });
                    continue;
                }
                value => value,
            }
        };
        let decision = &program.decisions[current as usize];
        // A value counts from the place after the decision's byte; the caller's from before it.
        let value = if value == NO_MATCH || decision.target == ACCEPT { value } else { value + 1 };
        let matched = value != NO_MATCH;
        if let Some(frame) = frames.last_mut() {
            frame.best = best.max(value);
            frame.current = if matched { decision.on_match } else { decision.on_failure };
        }
    }
    // Everything on the way of the winner is settled now: follow it.
    let mut current = program.start;
    let mut best = (NO_MATCH, END);
    loop {
        let position = attempt.start + path.len();
        while current != END {
            let decision = &program.decisions[current as usize];
            let value = match value_of(program, text, attempt, lengths, current, position)? {
                UNKNOWN | NO_MATCH => NO_MATCH,
                value if decision.target == ACCEPT => value,
                value => value + 1,
            };
            if value > best.0 {
                best = (value, current);
            }
            current = if value == NO_MATCH { decision.on_failure } else { decision.on_match };
        }
        path.push(best.1);
        match program.decisions[best.1 as usize].target {
            ACCEPT => return Ok(true),
            place => current = program.roots[place as usize],
        }
        best = (NO_MATCH, END);
    }
}

/// The value of a decision if it is known: for the end of the pattern that of an empty match, otherwise that of the
/// place behind the byte.
fn value_of(
    program: &Program,
    text: &[u8],
    attempt: Attempt,
    lengths: &mut Table<usize>,
    decision: u32,
    position: usize,
) -> Result<usize, Failure> {
    let decision = &program.decisions[decision as usize];
    if !attempt.allows(decision, position, text) {
        return Ok(NO_MATCH);
    }
    if decision.target == ACCEPT {
        return Ok(if attempt.accepts(position, text) { NO_MATCH + 1 } else { NO_MATCH });
    }
    if !takes(program, decision, text, position) {
        return Ok(NO_MATCH);
    }
    let (page, index) = lengths.locate(position, decision.target, 1)?;
    Ok(page[index])
}

/// Replays a way for its groups.
fn captures(program: &Program, start: usize, path: &[u32]) -> Captures {
    let mut groups: Vec<Option<Range<usize>>> = vec![None; program.groups];
    let mut opened = vec![0; program.groups];
    if program.groups > 0 {
        for (position, &decision) in (start..).zip(path) {
            for mark in program.marks(&program.decisions[decision as usize]) {
                match *mark {
                    Mark::Open(group) => opened[group as usize] = position,
                    Mark::Close(group) => groups[group as usize] = Some(opened[group as usize]..position),
                }
            }
        }
    }
    // The last step of a way consumes nothing.
    Captures { whole: start..start + path.len() - 1, groups }
}

/// The successive matches in a text; see [`Regex::find_iter`].
pub struct Matches<'r, 't> {
    regex: &'r Regex,
    text: &'t [u8],
    /// The end of the match before, and whether that was empty; `None` at first.
    last: Option<(usize, bool)>,
    done: bool,
    /// Whether the next search is known not to start at the start of the input.
    past_begin: bool,
    settled: Table<u64>,
    lengths: Table<usize>,
    path: Vec<u32>,
}

impl<'r, 't> Matches<'r, 't> {
    pub(super) fn new(regex: &'r Regex, text: &'t [u8]) -> Matches<'r, 't> {
        Matches {
            regex,
            text,
            last: None,
            done: false,
            past_begin: false,
            settled: Table::new(&regex.program, text.len(), 64),
            lengths: Table::new(&regex.program, text.len(), 1),
            path: Vec::new(),
        }
    }

    fn try_at(&mut self, start: usize, at_begin: bool, not_empty: bool) -> Result<Option<Captures>, Failure> {
        let program = &self.regex.program;
        let attempt = Attempt { start, whole: false, at_begin, not_empty };
        let found = if program.compares {
            longest_match(program, self.text, attempt, &mut self.lengths, &mut self.path)?
        } else {
            first_match(program, self.text, attempt, Some(&mut self.settled), &mut self.path)?
        };
        Ok(found.then(|| captures(program, start, &self.path)))
    }

    fn search(&mut self, start: usize) -> Result<Option<Captures>, Failure> {
        let program = &self.regex.program;
        let first = program.first;
        let single = first.as_ref().and_then(ByteSet::single);
        let mut at = start;
        loop {
            match (single, first) {
                (Some(byte), _) => match memchr::memchr(byte, &self.text[at..]) {
                    Some(offset) => at += offset,
                    None => return Ok(None),
                },
                (None, Some(first)) => match self.text[at..].iter().position(|&b| first.contains(b)) {
                    Some(offset) => at += offset,
                    None => return Ok(None),
                },
                (None, None) => {}
            }
            let at_begin = at == start && !self.past_begin;
            if at_begin || !program.anchored {
                self.settled.forget(at);
                self.lengths.forget(at);
                if let Some(found) = self.try_at(at, at_begin, false)? {
                    return Ok(Some(found));
                }
            }
            if at == self.text.len() || program.anchored {
                return Ok(None);
            }
            at += 1;
        }
    }

    fn find_next(&mut self) -> Result<Option<Captures>, Failure> {
        let mut start = 0;
        if let Some((end, was_empty)) = self.last {
            start = end;
            if was_empty {
                if end == self.text.len() {
                    return Ok(None);
                }
                // First a match of something right here, then the next byte.
                if let Some(found) = self.try_at(end, !self.past_begin, true)? {
                    return Ok(Some(found));
                }
                start += 1;
            }
            self.past_begin = true;
        }
        self.search(start)
    }
}

impl Iterator for Matches<'_, '_> {
    type Item = Result<Captures, RegexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.find_next() {
            Ok(Some(found)) => {
                self.last = Some((found.whole.end, found.whole.is_empty()));
                Some(Ok(found))
            }
            Ok(None) => {
                self.done = true;
                None
            }
            Err(failure) => {
                self.done = true;
                Some(Err(failure.of(&self.regex.pattern)))
            }
        }
    }
}
