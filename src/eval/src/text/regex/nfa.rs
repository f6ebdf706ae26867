//! From a pattern to an automaton.
//!
//! The parser keeps its own stack of open groups. The automaton is built of the same pieces that libstdc++ builds,
//! because it counts them: more than 100,000 is its "memory limit exceeded".

use super::Failure;

/// A state's number.
pub(super) type StateId = u32;

/// Not linked yet.
const NONE: StateId = StateId::MAX;

/// libstdc++'s `_GLIBCXX_REGEX_STATE_LIMIT`.
const STATE_LIMIT: usize = 100_000;

/// A set of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct ByteSet([u64; 4]);

impl ByteSet {
    pub(super) fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    #[inline]
    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0
    }

    pub(super) fn union(&self, other: &ByteSet) -> ByteSet {
        ByteSet(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    pub(super) fn is_disjoint(&self, other: &ByteSet) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & b == 0)
    }

    /// The only member, if there is exactly one.
    pub(super) fn single(&self) -> Option<u8> {
        let mut members = (0..=255u8).filter(|&b| self.contains(b));
        match (members.next(), members.next()) {
            (Some(byte), None) => Some(byte),
            _ => None,
        }
    }

    fn complement(&self) -> ByteSet {
        ByteSet(self.0.map(|word| !word))
    }
}

/// What a state does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// Consumes one byte of the set.
    Byte(ByteSet),
    /// Opens a group (0 is the whole match).
    Open(u32),
    /// Closes a group.
    Close(u32),
    /// Goes once more through `alt`, or on to `next`.
    Repeat,
    /// Goes through `alt` and through `next`.
    Either,
    /// Holds at the start of the input.
    LineBegin,
    /// Holds at the end of the input.
    LineEnd,
    /// Does nothing.
    Empty,
    /// The end of the pattern.
    Accept,
}

/// A state and where it leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) op: Op,
    pub(super) next: StateId,
    pub(super) alt: StateId,
}

/// The automaton; state 0 is its start.
#[derive(Debug, Default)]
pub(super) struct Nfa {
    pub(super) states: Vec<State>,
    pub(super) groups: u32,
}

/// A part of the automaton under construction, whose `end` leads nowhere yet.
#[derive(Clone, Copy, Debug)]
struct Fragment {
    start: StateId,
    end: StateId,
}

impl Nfa {
    fn add(&mut self, op: Op, next: StateId, alt: StateId) -> Result<StateId, Failure> {
        if self.states.len() >= STATE_LIMIT {
            return Err(Failure::MemoryLimit);
        }
        self.states.push(State { op, next, alt });
        // The limit keeps the number far within range.
        Ok((self.states.len() - 1) as StateId)
    }

    fn single(&mut self, op: Op) -> Result<Fragment, Failure> {
        let id = self.add(op, NONE, NONE)?;
        Ok(Fragment { start: id, end: id })
    }

    fn chain(&mut self, first: Fragment, second: Fragment) -> Fragment {
        self.states[first.end as usize].next = second.start;
        Fragment { start: first.start, end: second.end }
    }

    /// Copies a fragment, groups included: the copies of a group share its number.
    fn copy(&mut self, fragment: Fragment) -> Result<Fragment, Failure> {
        let mut copies = rustc_hash::FxHashMap::default();
        let mut pending = vec![fragment.start];
        while let Some(old) = pending.pop() {
            if copies.contains_key(&old) {
                continue;
            }
            let state = self.states[old as usize];
            copies.insert(old, self.add(state.op, state.next, state.alt)?);
            if state.alt != NONE {
                pending.push(state.alt);
            }
            if old != fragment.end && state.next != NONE {
                pending.push(state.next);
            }
        }
        let moved = |id: StateId| if id == NONE { NONE } else { copies[&id] };
        for (&old, &new) in &copies {
            let state = &mut self.states[new as usize];
            state.next = if old == fragment.end { NONE } else { moved(state.next) };
            state.alt = moved(state.alt);
        }
        Ok(Fragment { start: copies[&fragment.start], end: copies[&fragment.end] })
    }

    fn star(&mut self, body: Fragment) -> Result<Fragment, Failure> {
        let id = self.add(Op::Repeat, NONE, body.start)?;
        let repeat = Fragment { start: id, end: id };
        self.chain(body, repeat);
        Ok(repeat)
    }

    fn plus(&mut self, body: Fragment) -> Result<Fragment, Failure> {
        let id = self.add(Op::Repeat, NONE, body.start)?;
        Ok(self.chain(body, Fragment { start: id, end: id }))
    }

    fn optional(&mut self, body: Fragment) -> Result<Fragment, Failure> {
        let end = self.single(Op::Empty)?;
        let id = self.add(Op::Repeat, end.start, body.start)?;
        self.chain(body, end);
        Ok(Fragment { start: id, end: end.end })
    }

    /// `body{min}`, `body{min,}` (`max` is `Some(None)`) or `body{min,max}`.
    fn interval(&mut self, body: Fragment, min: i32, max: Option<Option<i32>>) -> Result<Fragment, Failure> {
        let mut all = self.single(Op::Empty)?;
        for _ in 0..min {
            let copy = self.copy(body)?;
            all = self.chain(all, copy);
        }
        if let Some(None) = max {
            let copy = self.copy(body)?;
            let star = self.star(copy)?;
            return Ok(self.chain(all, star));
        }
        let more = max.flatten().unwrap_or(min).checked_sub(min).ok_or(Failure::Invalid)?;
        if more < 0 {
            return Err(Failure::Invalid);
        }
        let end = self.single(Op::Empty)?;
        for _ in 0..more {
            let copy = self.copy(body)?;
            let id = self.add(Op::Repeat, end.start, copy.start)?;
            all = self.chain(all, Fragment { start: id, end: copy.end });
        }
        Ok(self.chain(all, end))
    }

    /// Lets every link skip the states that do nothing.
    fn drop_empty(&mut self) {
        let resolve = |states: &[State], mut id: StateId| {
            while let Some(State { op: Op::Empty, next, .. }) = states.get(id as usize) {
                id = *next;
            }
            id
        };
        for i in 0..self.states.len() {
            self.states[i].next = resolve(&self.states, self.states[i].next);
            self.states[i].alt = resolve(&self.states, self.states[i].alt);
        }
    }
}

/// An open group, or the pattern as a whole.
struct Level {
    /// The state that opens it.
    open: Fragment,
    group: u32,
    /// The alternatives before the last `|`.
    before: Option<Fragment>,
    /// The alternative being read.
    current: Option<Fragment>,
}

struct Parser<'p> {
    pattern: &'p [u8],
    at: usize,
    nfa: Nfa,
}

/// Parses `pattern` by libstdc++'s extended grammar.
pub(super) fn parse(pattern: &[u8]) -> Result<Nfa, Failure> {
    let mut parser = Parser { pattern, at: 0, nfa: Nfa::default() };
    let mut levels = Vec::new();
    let mut level = parser.open()?;
    while let Some(byte) = parser.bump() {
        let atom = match byte {
            b'^' | b'$' => {
                let assertion = parser.nfa.single(if byte == b'^' { Op::LineBegin } else { Op::LineEnd })?;
                // An assertion takes no quantifier: what follows must start a term of its own.
                parser.append(&mut level, assertion);
                continue;
            }
            b'|' => {
                parser.end_alternative(&mut level)?;
                continue;
            }
            b'(' => {
                let inner = parser.open()?;
                levels.push(std::mem::replace(&mut level, inner));
                continue;
            }
            b')' => {
                let outer = levels.pop().ok_or(Failure::Invalid)?;
                let inner = std::mem::replace(&mut level, outer);
                parser.close(inner)?
            }
            b'.' => parser.nfa.single(Op::Byte(any()))?,
            b'[' => {
                let set = parser.bracket()?;
                parser.nfa.single(Op::Byte(set))?
            }
            b'\\' => {
                let escaped = parser.bump().filter(|b| b".[\\()*+?{|^$".contains(b)).ok_or(Failure::Invalid)?;
                parser.literal(escaped)?
            }
            b'*' | b'+' | b'?' | b'{' | 0 => return Err(Failure::Invalid),
            literal => parser.literal(literal)?,
        };
        let atom = parser.quantified(atom)?;
        parser.append(&mut level, atom);
    }
    if !levels.is_empty() {
        return Err(Failure::Invalid);
    }
    let all = parser.close(level)?;
    let accept = parser.nfa.single(Op::Accept)?;
    let mut nfa = parser.nfa;
    nfa.chain(all, accept);
    nfa.drop_empty();
    Ok(nfa)
}

/// What `.` matches.
fn any() -> ByteSet {
    let mut nul = ByteSet::default();
    nul.insert(0);
    nul.complement()
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn literal(&mut self, byte: u8) -> Result<Fragment, Failure> {
        let mut set = ByteSet::default();
        set.insert(byte);
        self.nfa.single(Op::Byte(set))
    }

    fn open(&mut self) -> Result<Level, Failure> {
        let group = self.nfa.groups;
        self.nfa.groups += 1;
        Ok(Level { open: self.nfa.single(Op::Open(group))?, group, before: None, current: None })
    }

    fn append(&mut self, level: &mut Level, term: Fragment) {
        level.current = Some(match level.current {
            Some(sofar) => self.nfa.chain(sofar, term),
            None => term,
        });
    }

    fn end_alternative(&mut self, level: &mut Level) -> Result<(), Failure> {
        let empty = self.nfa.single(Op::Empty)?;
        self.append(level, empty);
        let Some(right) = level.current.take() else { return Err(Failure::Invalid) };
        level.before = Some(match level.before {
            None => right,
            Some(left) => {
                let end = self.nfa.single(Op::Empty)?;
                self.nfa.chain(left, end);
                self.nfa.chain(right, end);
                let id = self.nfa.add(Op::Either, right.start, left.start)?;
                Fragment { start: id, end: end.end }
            }
        });
        Ok(())
    }

    fn close(&mut self, mut level: Level) -> Result<Fragment, Failure> {
        self.end_alternative(&mut level)?;
        let Some(inner) = level.before else { return Err(Failure::Invalid) };
        let close = self.nfa.single(Op::Close(level.group))?;
        let opened = self.nfa.chain(level.open, inner);
        Ok(self.nfa.chain(opened, close))
    }

    /// Applies the quantifiers that follow, one after the other.
    fn quantified(&mut self, mut atom: Fragment) -> Result<Fragment, Failure> {
        while let Some(byte) = self.peek() {
            atom = match byte {
                b'*' => self.nfa.star(atom)?,
                b'+' => self.nfa.plus(atom)?,
                b'?' => self.nfa.optional(atom)?,
                b'{' => {
                    self.at += 1;
                    let min = self.count()?.ok_or(Failure::Invalid)?;
                    let max = if self.peek() == Some(b',') {
                        self.at += 1;
                        Some(self.count()?)
                    } else {
                        None
                    };
                    if self.peek() != Some(b'}') {
                        return Err(Failure::Invalid);
                    }
                    self.nfa.interval(atom, min, max)?
                }
                _ => break,
            };
            self.at += 1;
        }
        Ok(atom)
    }

    fn count(&mut self) -> Result<Option<i32>, Failure> {
        let mut value = None;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let more = value.unwrap_or(0i32).checked_mul(10).and_then(|v| v.checked_add(i32::from(digit - b'0')));
            value = Some(more.ok_or(Failure::Invalid)?);
            self.at += 1;
        }
        Ok(value)
    }

    /// The rest of a bracket expression, after its `[`.
    fn bracket(&mut self) -> Result<ByteSet, Failure> {
        let negated = self.peek() == Some(b'^');
        if negated {
            self.at += 1;
        }
        let mut set = ByteSet::default();
        let mut last = match self.bracket_token(true)? {
            // These two are themselves in the first place.
            Token::Byte(byte) | Token::Collating(byte) => Last::Byte(byte),
            Token::Dash => Last::Byte(b'-'),
            Token::Class(class) => {
                set = set.union(&class);
                Last::Class
            }
            // A `]` in the first place is literal.
            Token::End => return Err(Failure::Invalid),
        };
        loop {
            match self.bracket_token(false)? {
                Token::End => break,
                Token::Byte(byte) | Token::Collating(byte) => {
                    set.insert_last(last);
                    last = Last::Byte(byte);
                }
                Token::Class(class) => {
                    set.insert_last(last);
                    set = set.union(&class);
                    last = Last::Class;
                }
                Token::Dash => match (last, self.bracket_token(false)?) {
                    (_, Token::End) => {
                        set.insert_last(last);
                        last = Last::Byte(b'-');
                        break;
                    }
                    (Last::Byte(from), Token::Byte(to)) => {
                        set.insert_range(from, to)?;
                        last = Last::Nothing;
                    }
                    (Last::Byte(from), Token::Dash) => {
                        set.insert_range(from, b'-')?;
                        last = Last::Nothing;
                    }
                    _ => return Err(Failure::Invalid),
                },
            }
        }
        set.insert_last(last);
        Ok(if negated { set.complement() } else { set })
    }

    fn bracket_token(&mut self, first: bool) -> Result<Token, Failure> {
        let byte = self.bump().ok_or(Failure::Invalid)?;
        Ok(match byte {
            b'-' => Token::Dash,
            b']' if !first => Token::End,
            b'[' => match self.peek().ok_or(Failure::Invalid)? {
                kind @ (b'.' | b':' | b'=') => {
                    self.at += 1;
                    self.bracket_name(kind)?
                }
                _ => Token::Byte(b'['),
            },
            byte => Token::Byte(byte),
        })
    }

    /// The rest of `[:name:]`, `[.name.]` or `[=name=]`, after the first two bytes.
    fn bracket_name(&mut self, kind: u8) -> Result<Token, Failure> {
        let start = self.at;
        let length = self.pattern[start..].iter().position(|&b| b == kind).ok_or(Failure::Invalid)?;
        let name = &self.pattern[start..start + length];
        self.at = start + length + 1;
        if self.bump() != Some(b']') {
            return Err(Failure::Invalid);
        }
        Ok(match kind {
            b'.' => Token::Collating(collating_element(name).ok_or(Failure::Invalid)?),
            b'=' => {
                let byte = collating_element(name).ok_or(Failure::Invalid)?;
                let mut set = ByteSet::default();
                set.insert(byte.to_ascii_lowercase());
                set.insert(byte.to_ascii_uppercase());
                Token::Class(set)
            }
            _ => Token::Class(class(name).ok_or(Failure::Invalid)?),
        })
    }
}

enum Token {
    Byte(u8),
    /// A named byte: it can start a range but not end one.
    Collating(u8),
    Class(ByteSet),
    Dash,
    End,
}

/// What stands before the current place in a bracket expression, and could start a range.
#[derive(Clone, Copy)]
enum Last {
    Nothing,
    Byte(u8),
    Class,
}

impl ByteSet {
    fn insert_last(&mut self, last: Last) {
        if let Last::Byte(byte) = last {
            self.insert(byte);
        }
    }

    /// Adds a range; C++'s `char` is signed here.
    fn insert_range(&mut self, from: u8, to: u8) -> Result<(), Failure> {
        let (from, to) = (from as i8, to as i8);
        if from > to {
            return Err(Failure::Invalid);
        }
        (from..=to).for_each(|b| self.insert(b as u8));
        Ok(())
    }
}

/// A named class in the C locale. Names are case-insensitive, and the one-letter ones of other grammars exist too.
fn class(name: &[u8]) -> Option<ByteSet> {
    let member: fn(&u8) -> bool = match name.to_ascii_lowercase().as_slice() {
        b"d" | b"digit" => u8::is_ascii_digit,
        b"w" => |b| b.is_ascii_alphanumeric() || *b == b'_',
        b"s" | b"space" => |b| matches!(b, b' ' | b'\t'..=b'\r'),
        b"alnum" => u8::is_ascii_alphanumeric,
        b"alpha" => u8::is_ascii_alphabetic,
        b"blank" => |b| matches!(b, b' ' | b'\t'),
        b"cntrl" => u8::is_ascii_control,
        b"graph" => u8::is_ascii_graphic,
        b"lower" => u8::is_ascii_lowercase,
        b"print" => |b| matches!(b, b' '..=b'~'),
        b"punct" => u8::is_ascii_punctuation,
        b"upper" => u8::is_ascii_uppercase,
        b"xdigit" => u8::is_ascii_hexdigit,
        _ => return None,
    };
    let mut set = ByteSet::default();
    (0..=255u8).filter(member).for_each(|b| set.insert(b));
    Some(set)
}

/// The byte that POSIX's portable character set calls `name`. Letters are their own names, nothing else is.
fn collating_element(name: &[u8]) -> Option<u8> {
    if let &[letter] = name {
        return letter.is_ascii_alphabetic().then_some(letter);
    }
    const CONTROLS: [&str; 32] = [
        "NUL",
        "SOH",
        "STX",
        "ETX",
        "EOT",
        "ENQ",
        "ACK",
        "alert",
        "backspace",
        "tab",
        "newline",
        "vertical-tab",
        "form-feed",
        "carriage-return",
        "SO",
        "SI",
        "DLE",
        "DC1",
        "DC2",
        "DC3",
        "DC4",
        "NAK",
        "SYN",
        "ETB",
        "CAN",
        "EM",
        "SUB",
        "ESC",
        "IS4",
        "IS3",
        "IS2",
        "IS1",
    ];
    const DIGITS: [&str; 10] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    const SIGNS: [(&str, u8); 33] = [
        ("space", b' '),
        ("exclamation-mark", b'!'),
        ("quotation-mark", b'"'),
        ("number-sign", b'#'),
        ("dollar-sign", b'$'),
        ("percent-sign", b'%'),
        ("ampersand", b'&'),
        ("apostrophe", b'\''),
        ("left-parenthesis", b'('),
        ("right-parenthesis", b')'),
        ("asterisk", b'*'),
        ("plus-sign", b'+'),
        ("comma", b','),
        ("hyphen", b'-'),
        ("period", b'.'),
        ("slash", b'/'),
        ("colon", b':'),
        ("semicolon", b';'),
        ("less-than-sign", b'<'),
        ("equals-sign", b'='),
        ("greater-than-sign", b'>'),
        ("question-mark", b'?'),
        ("commercial-at", b'@'),
        ("left-square-bracket", b'['),
        ("backslash", b'\\'),
        ("right-square-bracket", b']'),
        ("circumflex", b'^'),
        ("underscore", b'_'),
        ("grave-accent", b'`'),
        ("left-curly-bracket", b'{'),
        ("vertical-line", b'|'),
        ("right-curly-bracket", b'}'),
        ("tilde", b'~'),
    ];
    let index = |names: &[&str]| names.iter().position(|n| n.as_bytes() == name).map(|i| i as u8);
    index(&CONTROLS)
        .or_else(|| index(&DIGITS).map(|i| b'0' + i))
        .or_else(|| SIGNS.iter().find(|(n, _)| n.as_bytes() == name).map(|&(_, byte)| byte))
        .or_else(|| (name == b"DEL").then_some(0x7f))
}
