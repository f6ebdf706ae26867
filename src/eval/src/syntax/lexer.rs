//! Bytes to tokens.
//!
//! Nix's lexer is a set of regular expressions of which the longest match wins. Here the first byte picks the candidates.
//! What lies inside of strings and of interpolated paths is asked for by the parser, which knows where it is.

use super::ast::Pos;
use super::error::{Result, fail};
use super::token::Token;

const ID_START: u8 = 1;
const ID: u8 = 2;
const PATH: u8 = 4;
const URI: u8 = 8;
const SPACE: u8 = 16;
const DIGIT: u8 = 32;
/// What ends a run of plain text in a string, or must be changed in it.
const STRING_SPECIAL: u8 = 64;

static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        let mut class = 0;
        if b.is_ascii_alphabetic() || b == b'_' {
            class |= ID_START | ID | PATH | URI;
        }
        if b.is_ascii_digit() {
            class |= ID | PATH | URI | DIGIT;
        }
        if matches!(b, b'\'' | b'-') {
            class |= ID;
        }
        if matches!(b, b'.' | b'-' | b'+') {
            class |= PATH;
        }
        if matches!(
            b,
            b'%' | b'/'
                | b'?'
                | b':'
                | b'@'
                | b'&'
                | b'='
                | b'+'
                | b'$'
                | b','
                | b'-'
                | b'.'
                | b'!'
                | b'~'
                | b'*'
                | b'\''
        ) {
            class |= URI;
        }
        if matches!(b, b' ' | b'\t' | b'\r' | b'\n') {
            class |= SPACE;
        }
        if matches!(b, b'"' | b'\\' | b'$' | b'\r' | 0) {
            class |= STRING_SPECIAL;
        }
        table[i] = class;
        i += 1;
    }
    table
}

/// One piece of a `"…"` string.
pub(super) enum StringPiece {
    /// Text up to the next interpolation or the end; `plain` if it stands for itself.
    Text { start: usize, end: usize, plain: bool },
    /// `${`
    Interpolation,
    /// `"`
    End,
    /// The text ended.
    Eof,
}

/// One piece of a `''…''` string.
#[derive(Clone, Copy)]
pub(super) enum IndentedPiece {
    /// Text as it stands.
    Text { start: usize, end: usize },
    /// Escaped text: up to two bytes.
    Escaped { bytes: [u8; 2], length: u8 },
    /// `${`
    Interpolation,
    /// `''`
    End,
    /// The text ended.
    Eof,
}

/// One piece of what follows a path's first token.
pub(super) enum PathPiece {
    /// Text as it stands.
    Text { start: usize, end: usize },
    /// `${`
    Interpolation,
    /// The path has ended.
    End,
}

/// A run of path characters that has been measured already, so that `a.b.c.d` isn't measured four times.
#[derive(Clone, Copy)]
struct Run {
    end: usize,
    /// After the last `_` of the run; a URI's scheme can start here at the earliest.
    scheme_from: usize,
}

/// The lexer: the current token and where the next one is looked for.
pub(super) struct Lexer<'s> {
    source: &'s [u8],
    pipe_operators: bool,
    /// The current token.
    pub(super) token: Token,
    /// Its first byte.
    pub(super) start: usize,
    /// After its last byte.
    pub(super) end: usize,
    /// The value of [`Token::Int`].
    pub(super) int: i64,
    /// The value of [`Token::Float`].
    pub(super) float: f64,
    run: Run,
    /// The start of the token before the current one, inside of a path.
    path_before: usize,
}

impl<'s> Lexer<'s> {
    /// A lexer before the first token.
    pub(super) fn new(source: &'s [u8], pipe_operators: bool) -> Self {
        Lexer {
            source,
            pipe_operators,
            token: Token::Eof,
            start: 0,
            end: 0,
            int: 0,
            float: 0.0,
            run: Run { end: 0, scheme_from: 0 },
            path_before: 0,
        }
    }

    #[inline]
    fn byte(&self, at: usize) -> u8 {
        // a NUL is no part of any token, so it can stand for the end
        self.source.get(at).copied().unwrap_or(0)
    }

    #[inline]
    fn is(&self, at: usize, class: u8) -> bool {
        CLASS[usize::from(self.byte(at))] & class != 0
    }

    #[inline]
    fn skip(&self, mut at: usize, class: u8) -> usize {
        while self.is(at, class) {
            at += 1;
        }
        at
    }

    /// The text of the current token.
    pub(super) fn text(&self) -> &'s [u8] {
        &self.source[self.start..self.end]
    }

    /// The text between two offsets.
    pub(super) fn slice(&self, start: usize, end: usize) -> &'s [u8] {
        &self.source[start..end]
    }

    /// The current token's position.
    #[inline]
    pub(super) fn pos(&self) -> Pos {
        self.start as Pos
    }

    /// Where Nix sees an error at the current token: an unexpected end is after the last token.
    pub(super) fn error_pos(&self) -> Pos {
        if self.token == Token::Eof { self.end as Pos } else { self.start as Pos }
    }

    #[inline]
    fn set(&mut self, token: Token, length: usize) -> Result<()> {
        self.token = token;
        self.end = self.start + length;
        Ok(())
    }

    /// Goes to the next token.
    pub(super) fn advance(&mut self) -> Result<()> {
        let mut at = self.end;
        loop {
            at = self.skip(at, SPACE);
            match self.byte(at) {
                b'#' => at = memchr::memchr2(b'\n', b'\r', &self.source[at..]).map_or(self.source.len(), |n| at + n),
                b'/' if self.byte(at + 1) == b'*' => match comment_end(&self.source[at + 2..]) {
                    Some(length) => at += 2 + length,
                    None => break,
                },
                _ => break,
            }
        }
        self.start = at;
        let next = self.byte(at + 1);
        match self.byte(at) {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.word(),
            b'0'..=b'9' => self.number(),
            b'.' => {
                if next == b'.' && self.byte(at + 2) == b'.' {
                    if self.path(false)? { Ok(()) } else { self.set(Token::Ellipsis, 3) }
                } else if next.is_ascii_digit() {
                    self.number()
                } else if self.is(at + 1, PATH) || next == b'/' {
                    if self.path(false)? { Ok(()) } else { self.set(Token::Dot, 1) }
                } else {
                    self.set(Token::Dot, 1)
                }
            }
            b'-' if next == b'>' => self.set(Token::Impl, 2),
            b'-' => {
                if self.path(false)? {
                    Ok(())
                } else {
                    self.set(Token::Minus, 1)
                }
            }
            b'+' => {
                if self.path(false)? {
                    Ok(())
                } else if next == b'+' {
                    self.set(Token::Concat, 2)
                } else {
                    self.set(Token::Plus, 1)
                }
            }
            b'/' => {
                if next == b'/' {
                    self.set(Token::Update, 2)
                } else if self.path(false)? {
                    Ok(())
                } else {
                    self.set(Token::Slash, 1)
                }
            }
            b'~' => {
                if next == b'/' && self.path(true)? {
                    Ok(())
                } else {
                    self.set(Token::Invalid, 1)
                }
            }
            b'<' => match next {
                b'=' => self.set(Token::LessEq, 2),
                b'|' => self.pipe(Token::PipeFrom),
                _ => self.search_path(),
            },
            b'>' if next == b'=' => self.set(Token::GreaterEq, 2),
            b'>' => self.set(Token::Greater, 1),
            b'=' if next == b'=' => self.set(Token::EqEq, 2),
            b'=' => self.set(Token::Equals, 1),
            b'!' if next == b'=' => self.set(Token::NotEq, 2),
            b'!' => self.set(Token::Bang, 1),
            b'&' if next == b'&' => self.set(Token::AndAnd, 2),
            b'|' if next == b'|' => self.set(Token::OrOr, 2),
            b'|' if next == b'>' => self.pipe(Token::PipeInto),
            b'$' if next == b'{' => self.set(Token::DollarCurly, 2),
            b'\'' if next == b'\'' => {
                let text = self.skip_spaces(at + 2);
                let length = if self.byte(text) == b'\n' { text + 1 - at } else { 2 };
                self.set(Token::IndStringOpen, length)
            }
            b'"' => self.set(Token::Quote, 1),
            b'{' => self.set(Token::BraceOpen, 1),
            b'}' => self.set(Token::BraceClose, 1),
            b'(' => self.set(Token::ParenOpen, 1),
            b')' => self.set(Token::ParenClose, 1),
            b'[' => self.set(Token::BracketOpen, 1),
            b']' => self.set(Token::BracketClose, 1),
            b';' => self.set(Token::Semicolon, 1),
            b':' => self.set(Token::Colon, 1),
            b',' => self.set(Token::Comma, 1),
            b'@' => self.set(Token::At, 1),
            b'?' => self.set(Token::Question, 1),
            b'*' => self.set(Token::Star, 1),
            // bison takes a NUL byte for the end of the text
            0 => self.set(Token::Eof, usize::from(at < self.source.len())),
            _ => self.set(Token::Invalid, 1),
        }
    }

    fn skip_spaces(&self, mut at: usize) -> usize {
        while self.byte(at) == b' ' {
            at += 1;
        }
        at
    }

    #[cold]
    fn pipe(&mut self, token: Token) -> Result<()> {
        if self.pipe_operators {
            return self.set(token, 2);
        }
        fail(
            self.pos(),
            "experimental Nix feature 'pipe-operators' is disabled; \
             add '--extra-experimental-features pipe-operators' to enable it",
        )
    }

    /// An identifier, a keyword, a path or a URI.
    fn word(&mut self) -> Result<()> {
        let end = self.skip(self.start + 1, ID);
        if matches!(self.byte(end), b'.' | b'+' | b'/' | b':') && (self.path(false)? || self.uri()) {
            return Ok(());
        }
        self.end = end;
        self.token = keyword(&self.source[self.start..end]);
        Ok(())
    }

    /// The run of path characters at the current token.
    fn run(&mut self) -> Run {
        if self.start >= self.run.end {
            let end = self.skip(self.start, PATH);
            let scheme_from = memchr::memrchr(b'_', &self.source[self.start..end]).map_or(0, |n| self.start + n + 1);
            self.run = Run { end, scheme_from };
        }
        self.run
    }

    fn uri(&mut self) -> bool {
        let Run { end, scheme_from } = self.run();
        if self.byte(end) == b':' && self.start >= scheme_from && self.is(end + 1, URI) {
            self.token = Token::Uri;
            self.end = self.skip(end + 1, URI);
            return true;
        }
        false
    }

    /// Takes a path if there is one: segments with slashes between them, or one segment, a slash and an interpolation.
    fn path(&mut self, home: bool) -> Result<bool> {
        let slash = if home { self.start + 1 } else { self.run().end };
        if self.byte(slash) != b'/' {
            return Ok(false);
        }
        let token = if home { Token::HomePath } else { Token::Path };
        if self.is(slash + 1, PATH) {
            self.end = self.segments(slash);
        } else if self.byte(slash + 1) == b'$' && self.byte(slash + 2) == b'{' {
            self.end = slash + 1;
        } else {
            return Ok(false);
        }
        self.token = token;
        Ok(true)
    }

    /// The end of `(/CHAR+)+/?` from a slash that a path character follows.
    fn segments(&self, slash: usize) -> usize {
        let mut at = slash;
        while self.byte(at) == b'/' && self.is(at + 1, PATH) {
            at = self.skip(at + 1, PATH);
        }
        if self.byte(at) == b'/' { at + 1 } else { at }
    }

    fn search_path(&mut self) -> Result<()> {
        let mut at = self.start + 1;
        while self.is(at, PATH) {
            at = self.skip(at, PATH);
            match self.byte(at) {
                b'/' => at += 1,
                b'>' => return self.set(Token::SearchPath, at + 1 - self.start),
                _ => break,
            }
        }
        self.set(Token::Less, 1)
    }

    /// An integer, a floating-point number or a path. The current byte is a digit or a dot before a digit.
    fn number(&mut self) -> Result<()> {
        let digits = self.skip(self.start, DIGIT);
        if matches!(self.byte(digits), b'.' | b'+' | b'-' | b'/' | b'_' | b'a'..=b'z' | b'A'..=b'Z')
            && self.path(false)?
        {
            return Ok(());
        }
        let whole = &self.source[self.start..digits];
        if self.byte(digits) == b'.' {
            let fraction = self.skip(digits + 1, DIGIT);
            let is_float = match whole {
                [] | b"0" => fraction > digits + 1,
                [first, ..] => *first != b'0',
            };
            if is_float {
                return self.float(fraction);
            }
        }
        self.end = digits;
        let text = String::from_utf8_lossy(whole);
        match text.parse() {
            Ok(value) => {
                self.token = Token::Int;
                self.int = value;
                Ok(())
            }
            Err(_) => fail(self.pos(), format!("invalid integer '{text}'")),
        }
    }

    fn float(&mut self, fraction: usize) -> Result<()> {
        self.end = fraction;
        if matches!(self.byte(fraction), b'e' | b'E') {
            let sign = usize::from(matches!(self.byte(fraction + 1), b'+' | b'-'));
            if self.is(fraction + 1 + sign, DIGIT) {
                self.end = self.skip(fraction + 1 + sign, DIGIT);
            }
        }
        self.token = Token::Float;
        let text = String::from_utf8_lossy(self.text());
        let zero = !text.split(['e', 'E']).next().unwrap_or("").bytes().any(|b| matches!(b, b'1'..=b'9'));
        match text.parse::<f64>() {
            // strtod reports a range error for what it had to round to infinity, to zero or to a subnormal number
            Ok(value) if value.is_normal() || zero => {
                self.float = value;
                Ok(())
            }
            _ => fail(self.pos(), format!("invalid float '{text}'")),
        }
    }

    /// The next piece of a `"…"` string, after the current token.
    pub(super) fn string_piece(&mut self) -> StringPiece {
        self.start = self.end;
        let mut at = self.start;
        let mut plain = true;
        let end = loop {
            while !self.is(at, STRING_SPECIAL) {
                at += 1;
            }
            match self.byte(at) {
                b'"' => break at,
                b'\\' if at + 1 < self.source.len() => {
                    plain = false;
                    at += 2;
                }
                b'$' => match self.byte(at + 1) {
                    b'{' => break at,
                    b'"' => at += 1,
                    // the backslash and what it escapes
                    b'\\' if at + 2 < self.source.len() => {
                        plain = false;
                        at += 3;
                    }
                    // the second of two dollars starts no interpolation
                    _ if at + 1 < self.source.len() && self.byte(at + 1) != b'\\' => {
                        plain &= !matches!(self.byte(at + 1), b'\r' | 0);
                        at += 2;
                    }
                    _ => break self.source.len(),
                },
                b'\r' | 0 if at < self.source.len() => {
                    plain = false;
                    at += 1;
                }
                _ => break self.source.len(),
            }
        };
        if end >= self.source.len() {
            self.token = Token::Eof;
            self.end = self.source.len();
            return StringPiece::Eof;
        }
        if end > self.start {
            self.token = Token::Str;
            self.end = end;
            StringPiece::Text { start: self.start, end, plain }
        } else if self.byte(end) == b'"' {
            self.token = Token::Quote;
            self.end = end + 1;
            StringPiece::End
        } else {
            self.token = Token::DollarCurly;
            self.end = end + 2;
            StringPiece::Interpolation
        }
    }

    /// Whether a string ends after the current token.
    pub(super) fn at_quote(&self) -> bool {
        self.byte(self.end) == b'"'
    }

    /// The next piece of a `''…''` string, after the current token.
    pub(super) fn indented_piece(&mut self) -> IndentedPiece {
        self.start = self.end;
        let length = self.source.len();
        let mut at = self.start;
        loop {
            let Some(n) = memchr::memchr2(b'$', b'\'', &self.source[at..]) else {
                at = length;
                break;
            };
            at += n;
            let dollar = self.source[at] == b'$';
            let stop = match self.source.get(at + 1) {
                None | Some(b'\'') => true,
                Some(b'{') => dollar,
                Some(b'$') => !dollar,
                Some(_) => false,
            };
            if stop {
                break;
            }
            at += 2;
        }
        let start = self.start;
        if at > start {
            self.token = Token::IndStr;
            self.end = at;
            return IndentedPiece::Text { start, end: at };
        }
        if at >= length {
            self.token = Token::Eof;
            self.end = length;
            return IndentedPiece::Eof;
        }
        let (token, piece, size) = match (self.byte(at), self.byte(at + 1), self.byte(at + 2)) {
            (b'$', b'{', _) => (Token::DollarCurly, IndentedPiece::Interpolation, 2),
            (b'$', _, _) => (Token::IndStr, IndentedPiece::Escaped { bytes: [b'$', 0], length: 1 }, 1),
            (_, b'\'', b'$') => (Token::IndStr, IndentedPiece::Escaped { bytes: [b'$', 0], length: 1 }, 3),
            (_, b'\'', b'\'') => (Token::IndStr, IndentedPiece::Escaped { bytes: *b"''", length: 2 }, 3),
            (_, b'\'', b'\\') if at + 3 < length => {
                let byte = unescape(self.byte(at + 3));
                (Token::IndStr, IndentedPiece::Escaped { bytes: [byte, 0], length: 1 }, 4)
            }
            (_, b'\'', _) => (Token::IndStringClose, IndentedPiece::End, 2),
            _ => (Token::IndStr, IndentedPiece::Escaped { bytes: [b'\'', 0], length: 1 }, 1),
        };
        self.token = token;
        self.end = at + size;
        piece
    }

    /// The next piece of a path, after the current token, which is a path, some text of it or the end of an interpolation.
    pub(super) fn path_piece(&mut self) -> Result<PathPiece> {
        let at = self.end;
        let after_slash = self.token != Token::BraceClose && self.source[at - 1] == b'/';
        if self.byte(at) == b'$' && self.byte(at + 1) == b'{' {
            self.start = at;
            self.set(Token::DollarCurly, 2)?;
            return Ok(PathPiece::Interpolation);
        }
        let run = self.skip(at, PATH);
        let end = match self.byte(run) {
            b'/' if self.is(run + 1, PATH) => self.segments(run),
            b'/' => run + 1,
            _ => run,
        };
        if end > at {
            self.path_before = self.start;
            self.start = at;
            self.set(Token::Str, end - at)?;
            return Ok(PathPiece::Text { start: at, end });
        }
        // Nix's lexer gives the end of a path the position of the last token, and the one before that at the end of the text
        let last = self.start;
        let at_end = at >= self.source.len();
        if after_slash {
            return fail(if at_end { last } else { at } as Pos, "path has a trailing slash");
        }
        self.start = if at_end { self.path_before } else { last };
        self.path_before = last;
        self.end = at;
        self.token = Token::PathEnd;
        Ok(PathPiece::End)
    }

    /// Steps over the end of a path.
    pub(super) fn advance_after_path(&mut self) -> Result<()> {
        let at_end = self.end >= self.source.len();
        self.advance()?;
        if at_end {
            // see `path_piece`: an error about the missing rest is reported before the path's last token
            (self.start, self.end) = (self.path_before, self.path_before);
        }
        Ok(())
    }
}

/// What a backslash makes of `byte`.
pub(super) fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => other,
    }
}

/// The length of a comment after its `/*`.
fn comment_end(rest: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'/', rest).find(|&n| n > 0 && rest[n - 1] == b'*').map(|n| n + 1)
}

fn keyword(text: &[u8]) -> Token {
    match text {
        b"if" => Token::If,
        b"in" => Token::In,
        b"or" => Token::OrKeyword,
        b"let" => Token::Let,
        b"rec" => Token::Rec,
        b"then" => Token::Then,
        b"else" => Token::Else,
        b"with" => Token::With,
        b"assert" => Token::Assert,
        b"inherit" => Token::Inherit,
        _ => Token::Id,
    }
}
