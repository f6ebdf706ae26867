//! Strings: `"…"` with its escapes, `''…''` with its indentation.

use super::ast::{Expr, Node, Pos};
use super::error::{Result, fail};
use super::lexer::{IndentedPiece, StringPiece, unescape};
use super::parser::Parser;
use super::token::Token;

/// A `"…"` string: text as long as it isn't known whether a node is wanted.
pub(super) enum Text<'p, 's> {
    /// Text that stands so in the source.
    Source(&'s [u8]),
    /// Text in the parser's buffer.
    Buffer,
    /// A string with interpolations.
    Node(Node<'p>),
}

/// A part of a `''…''` string.
#[derive(Clone, Copy)]
pub(super) enum IndentedPart<'p> {
    /// Text as it stands in the source.
    Text { start: usize, end: usize },
    /// Escaped text, which ends the indentation of its line.
    Escaped { bytes: [u8; 2], length: u8 },
    /// An interpolation.
    Node(Node<'p>),
}

/// Nix strings cannot hold NUL bytes.
#[cold]
fn null_byte<T>(text: &[u8], pos: Pos) -> Result<T> {
    let text = String::from_utf8_lossy(text).replace('\0', "␀");
    fail(pos, format!("input string '{text}' cannot be represented as Nix string because it contains null bytes"))
}

/// Undoes escapes and makes `\r\n` and a lone `\r` a `\n`.
fn unescape_into(buffer: &mut Vec<u8>, text: &[u8], pos: Pos) -> Result<()> {
    buffer.clear();
    buffer.reserve(text.len());
    let mut null = false;
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            // the lexer ends no text between a backslash and what it escapes
            b'\\' => buffer.extend(bytes.next().map(unescape)),
            b'\r' => {
                buffer.push(b'\n');
                bytes.next_if_eq(&b'\n');
            }
            _ => {
                null |= byte == 0;
                buffer.push(byte);
            }
        }
    }
    if null { null_byte(buffer, pos) } else { Ok(()) }
}

impl<'p, 's> Parser<'p, 's, '_> {
    /// The string that the current token, its quote, starts.
    pub(super) fn string(&mut self) -> Result<Text<'p, 's>> {
        let base = self.parts.len();
        let mut height = 0;
        let mut only_text = None;
        loop {
            match self.lexer.string_piece() {
                StringPiece::Text { start, end, plain } => {
                    let pos = start as Pos;
                    let source = self.lexer.slice(start, end);
                    if !plain {
                        unescape_into(&mut self.buffer, source, pos)?;
                    }
                    // most strings are one text; that needs no node if it is an attribute's name
                    if self.parts.len() == base && self.lexer.at_quote() {
                        only_text = Some(if plain { Text::Source(source) } else { Text::Buffer });
                    } else {
                        let text = self.arena.alloc_slice_copy(if plain { source } else { &self.buffer });
                        let text = self.node(Expr::Str(text));
                        self.parts.push((pos, text));
                    }
                }
                StringPiece::Interpolation => {
                    let pos = self.lexer.pos();
                    self.advance()?;
                    let node = self.expr()?;
                    height = height.max(self.height);
                    self.require(Token::BraceClose)?;
                    self.parts.push((pos, node));
                }
                StringPiece::End => break,
                StringPiece::Eof => return self.unexpected(&[Token::Quote]),
            }
        }
        self.advance()?;
        self.height = 0;
        let Some(&(pos, _)) = self.parts.get(base) else {
            return Ok(only_text.unwrap_or(Text::Source(&[])));
        };
        self.grow(height, 1)?;
        let parts = self.arena.alloc_slice_copy(&self.parts[base..]);
        self.parts.truncate(base);
        Ok(Text::Node(self.node(Expr::ConcatStrings { pos, force_string: true, parts })))
    }

    /// The string that the current token, its quote, starts, as an expression.
    pub(super) fn string_expr(&mut self) -> Result<Node<'p>> {
        let text = match self.string()? {
            Text::Source(text) => text,
            Text::Buffer => &self.buffer,
            Text::Node(node) => return Ok(node),
        };
        Ok(self.node(Expr::Str(self.arena.alloc_slice_copy(text))))
    }

    /// The `''…''` string that the current token starts.
    pub(super) fn indented_string(&mut self) -> Result<Node<'p>> {
        let string_pos = self.lexer.pos();
        let base = self.indented.len();
        let mut height = 0;
        loop {
            let piece = self.lexer.indented_piece();
            let pos = self.lexer.pos();
            let part = match piece {
                IndentedPiece::Text { start, end } => {
                    let text = self.lexer.slice(start, end);
                    if memchr::memchr(0, text).is_some() {
                        return null_byte(text, pos);
                    }
                    IndentedPart::Text { start, end }
                }
                IndentedPiece::Escaped { bytes, length } => IndentedPart::Escaped { bytes, length },
                IndentedPiece::Interpolation => {
                    self.advance()?;
                    let node = self.expr()?;
                    height = height.max(self.height);
                    self.require(Token::BraceClose)?;
                    IndentedPart::Node(node)
                }
                IndentedPiece::End => break,
                IndentedPiece::Eof => {
                    return self.unexpected(&[Token::IndStr, Token::DollarCurly, Token::IndStringClose]);
                }
            };
            self.indented.push((pos, part));
        }
        self.advance()?;
        self.strip_indentation(string_pos, base, height)
    }

    /// Makes an expression of the parts from `base` on, without the indentation that their lines share.
    fn strip_indentation(&mut self, string_pos: Pos, base: usize, height: u32) -> Result<Node<'p>> {
        let indentation = self.shared_indentation(base);
        let parts_base = self.parts.len();
        let mut line_start = true;
        let mut dropped = 0;
        for n in base..self.indented.len() {
            let (pos, part) = self.indented[n];
            let escaped;
            let text = match part {
                IndentedPart::Node(node) => {
                    line_start = false;
                    dropped = 0;
                    self.parts.push((pos, node));
                    continue;
                }
                IndentedPart::Text { start, end } => self.lexer.slice(start, end),
                IndentedPart::Escaped { bytes, length } => {
                    escaped = bytes;
                    &escaped[..usize::from(length)]
                }
            };
            self.buffer.clear();
            let mut rest = text;
            while let [first, after @ ..] = rest {
                if !line_start {
                    let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |n| n + 1);
                    self.buffer.extend_from_slice(&rest[..line]);
                    line_start = rest[line - 1] == b'\n';
                    rest = &rest[line..];
                    continue;
                }
                match first {
                    b' ' => {
                        if dropped >= indentation {
                            self.buffer.push(b' ');
                        }
                        dropped += 1;
                    }
                    _ => {
                        dropped = 0;
                        line_start = *first == b'\n';
                        self.buffer.push(*first);
                    }
                }
                rest = after;
            }
            if n + 1 == self.indented.len() {
                // a last line of spaces is only there to indent the end of the string
                let last_line = memchr::memrchr(b'\n', &self.buffer).map(|n| n + 1);
                if let Some(start) = last_line.filter(|&start| self.buffer[start..].iter().all(|&b| b == b' ')) {
                    self.buffer.truncate(start);
                }
            }
            if !self.buffer.is_empty() {
                let text = self.node(Expr::Str(self.arena.alloc_slice_copy(&self.buffer)));
                self.parts.push((pos, text));
            }
        }
        self.indented.truncate(base);
        self.height = 0;
        let node = match self.parts[parts_base..] {
            [] => self.node(Expr::Str(&[])),
            [(_, node @ Expr::Str(_))] => node,
            _ => {
                self.grow(height, 1)?;
                let parts = self.arena.alloc_slice_copy(&self.parts[parts_base..]);
                self.node(Expr::ConcatStrings { pos: string_pos, force_string: true, parts })
            }
        };
        self.parts.truncate(parts_base);
        Ok(node)
    }

    /// The number of spaces that all lines start with. Lines of spaces only don't count, nor does the last line.
    fn shared_indentation(&self, base: usize) -> usize {
        // Nix's own stand-in for infinity
        let mut shared = 1_000_000;
        let mut line_start = true;
        let mut current = 0;
        for (_, part) in &self.indented[base..] {
            let IndentedPart::Text { start, end } = *part else {
                if line_start {
                    line_start = false;
                    shared = shared.min(current);
                }
                continue;
            };
            let mut rest = self.lexer.slice(start, end);
            while let [first, after @ ..] = rest {
                if !line_start {
                    let Some(line) = memchr::memchr(b'\n', rest) else { break };
                    line_start = true;
                    current = 0;
                    rest = &rest[line + 1..];
                    continue;
                }
                match first {
                    b' ' => current += 1,
                    b'\n' => current = 0,
                    _ => {
                        line_start = false;
                        shared = shared.min(current);
                    }
                }
                rest = after;
            }
        }
        shared
    }
}
