//! JSON: reading it into the caller's values (`fromJSON`), and writing strings (`toJSON`).
//!
//! Nix uses the library nlohmann/json; what that accepts and what its errors say is the rule here. The parser keeps its
//! own stack, so the depth of the input does not matter.

use std::ops::Range;
use std::vec::Drain;

use super::builder::{self, Builder};

pub use super::number::write_json_float;

/// Why a document could not be read. `Display` gives Nix's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is not JSON, or a number overflows. Nix adds "while decoding a JSON string" to the trace of this one only.
    #[error("{0}")]
    Parse(String),
    /// A positive integer that fits 64 bits without a sign, but not with one.
    #[error("unsigned json number {0} outside of Nix integer range")]
    IntegerRange(u64),
    /// A string or name that contains NUL.
    #[error("input string '{}' cannot be represented as Nix string because it contains null bytes", builder::show_nul(.0))]
    Nul(Vec<u8>),
}

/// Reads the JSON document `text`.
///
/// Integers beyond 64 bits become floats, of equal names the last wins.
///
/// # Errors
/// See [`JsonError`].
pub fn parse<B: Builder>(text: &[u8], builder: &mut B) -> Result<B::Value, JsonError> {
    let mut lexer = Lexer::new(text);
    lexer.skip_mark()?;
    let mut open: Vec<Open<B::Key>> = Vec::new();
    let mut values: Vec<B::Value> = Vec::new();
    let mut attrs: Vec<(B::Key, B::Value)> = Vec::new();
    let mut token = lexer.next()?;
    loop {
        // A value starts at `token`.
        let mut value = match token {
            Token::BeginArray => {
                token = lexer.next_in("value", "")?;
                if token != Token::EndArray {
                    open.push(Open::List { start: values.len() });
                    continue;
                }
                builder.list(values.drain(values.len()..))
            }
            Token::BeginObject => {
                token = lexer.next_in("object key", "string literal")?;
                if token != Token::EndObject {
                    let key = lexer.key(token, builder)?;
                    open.push(Open::Attrs { start: attrs.len(), key });
                    token = lexer.next_in("value", "")?;
                    continue;
                }
                builder.attrs(attrs.drain(attrs.len()..))
            }
            Token::Null => builder.null(),
            Token::True => builder.bool(true),
            Token::False => builder.bool(false),
            Token::String => builder.string(lexer.string_value()?),
            Token::Int(value) => builder.int(value),
            Token::Unsigned(value) => builder.unsigned(value)?,
            Token::Float(value) => builder.float(value),
            Token::TooLarge => {
                let number = String::from_utf8_lossy(lexer.token_text());
                return Err(JsonError::Parse(format!(
                    "[json.exception.out_of_range.406] number overflow parsing '{number}'"
                )));
            }
            Token::End if lexer.text.is_empty() => {
                return Err(lexer.error(
                    "attempting to parse an empty input; check that your input string or stream contains the \
                     expected JSON",
                ));
            }
            token => return Err(lexer.unexpected(token, "value", "'[', '{', or a literal")),
        };
        // A value is complete: it may complete those around it.
        loop {
            match open.pop() {
                None => {
                    return match lexer.next_in("value", "end of input")? {
                        Token::End => Ok(value),
                        token => Err(lexer.unexpected(token, "value", "end of input")),
                    };
                }
                Some(Open::List { start }) => {
                    values.push(value);
                    match lexer.next_in("array", "']'")? {
                        Token::Comma => {
                            token = lexer.next_in("value", "")?;
                            open.push(Open::List { start });
                            break;
                        }
                        Token::EndArray => value = builder.list(values.drain(start..)),
                        token => return Err(lexer.unexpected(token, "array", "']'")),
                    }
                }
                Some(Open::Attrs { start, key }) => {
                    attrs.push((key, value));
                    match lexer.next_in("object", "'}'")? {
                        Token::Comma => {
                            token = lexer.next_in("object key", "string literal")?;
                            let key = lexer.key(token, builder)?;
                            open.push(Open::Attrs { start, key });
                            token = lexer.next_in("value", "")?;
                            break;
                        }
                        Token::EndObject => {
                            builder::settle(&mut attrs, start);
                            value = builder.attrs(attrs.drain(start..));
                        }
                        token => return Err(lexer.unexpected(token, "object", "'}'")),
                    }
                }
            }
        }
    }
}

/// Rewrites the JSON object `text` as nlohmann/json writes it: without white space, names in the order of their bytes, the
/// last of equal ones only, numbers in their shortest form.
///
/// # Errors
/// See [`JsonError`]; it is no object.
pub fn normalise_object(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    let (kind, written) = parse(text, &mut Rewriter)?;
    if kind == "object" {
        return Ok(written);
    }
    Err(JsonError::Parse(format!("[json.exception.type_error.302] type must be object, but is {kind}")))
}

/// Makes of each value what kind it is and its text.
struct Rewriter;

impl Rewriter {
    fn joined<'v>(
        brackets: [u8; 2],
        items: impl Iterator<Item = (Option<&'v Vec<u8>>, &'v (&'static str, Vec<u8>))>,
    ) -> Vec<u8> {
        let mut out = vec![brackets[0]];
        for (index, (name, (_, value))) in items.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if let Some(name) = name {
                out.extend_from_slice(&Self::quoted(name));
                out.push(b':');
            }
            out.extend_from_slice(value);
        }
        out.push(brackets[1]);
        out
    }

    fn quoted(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 2);
        // the reader has let nothing through that is not UTF-8
        let _ = write_json_string(&mut out, text);
        out
    }
}

impl Builder for Rewriter {
    type Value = (&'static str, Vec<u8>);
    type Key = Vec<u8>;

    fn null(&mut self) -> Self::Value {
        ("null", b"null".to_vec())
    }

    fn bool(&mut self, value: bool) -> Self::Value {
        ("boolean", value.to_string().into_bytes())
    }

    fn int(&mut self, value: i64) -> Self::Value {
        ("number", value.to_string().into_bytes())
    }

    fn unsigned(&mut self, value: u64) -> Result<Self::Value, JsonError> {
        Ok(("number", value.to_string().into_bytes()))
    }

    fn float(&mut self, value: f64) -> Self::Value {
        let mut out = Vec::new();
        write_json_float(&mut out, value);
        ("number", out)
    }

    fn string(&mut self, value: &[u8]) -> Self::Value {
        ("string", Self::quoted(value))
    }

    fn key(&mut self, name: &[u8]) -> Vec<u8> {
        name.to_vec()
    }

    fn list(&mut self, items: Drain<'_, Self::Value>) -> Self::Value {
        ("array", Self::joined([b'[', b']'], items.as_slice().iter().map(|item| (None, item))))
    }

    fn attrs(&mut self, items: Drain<'_, (Vec<u8>, Self::Value)>) -> Self::Value {
        ("object", Self::joined([b'{', b'}'], items.as_slice().iter().map(|(name, value)| (Some(name), value))))
    }
}

/// A list or a set that is being read.
enum Open<K> {
    List { start: usize },
    Attrs { start: usize, key: K },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    BeginArray,
    EndArray,
    BeginObject,
    EndObject,
    Colon,
    Comma,
    Null,
    True,
    False,
    /// Its text is in [`Lexer::string`].
    String,
    Int(i64),
    /// Does not fit an `i64`.
    Unsigned(u64),
    Float(f64),
    /// A number whose float would be infinite.
    TooLarge,
    End,
}

impl Token {
    /// What error texts call it.
    fn name(self) -> &'static str {
        match self {
            Token::BeginArray => "'['",
            Token::EndArray => "']'",
            Token::BeginObject => "'{'",
            Token::EndObject => "'}'",
            Token::Colon => "':'",
            Token::Comma => "','",
            Token::Null => "null literal",
            Token::True => "true literal",
            Token::False => "false literal",
            Token::String => "string literal",
            Token::Int(_) | Token::Unsigned(_) | Token::Float(_) | Token::TooLarge => "number literal",
            Token::End => "end of input",
        }
    }
}

/// What a string token holds.
enum Text {
    /// A part of the input without escapes.
    Plain(Range<usize>),
    /// Put together in [`Lexer::buffer`].
    Unescaped,
}

struct Lexer<'t> {
    text: &'t [u8],
    /// The number of bytes read.
    at: usize,
    /// Whether the end of the input was read as if it were a byte.
    past_end: bool,
    /// Whether the byte at `at` was read and put back.
    put_back: bool,
    /// Where the last string or number starts, or the input; error texts show the input from there.
    mark: usize,
    string: Text,
    buffer: Vec<u8>,
    /// What the parser is at, and what it expects, for error texts.
    context: &'static str,
    expected: &'static str,
}

impl<'t> Lexer<'t> {
    fn new(text: &'t [u8]) -> Lexer<'t> {
        Lexer {
            text,
            at: 0,
            past_end: false,
            put_back: false,
            mark: 0,
            string: Text::Unescaped,
            buffer: Vec::new(),
            context: "value",
            expected: "",
        }
    }

    /// Skips a byte-order mark.
    fn skip_mark(&mut self) -> Result<(), JsonError> {
        if self.text.first() == Some(&0xef) {
            for expected in b"\xef\xbb\xbf" {
                if self.read() != Some(*expected) {
                    return Err(self.malformed("invalid BOM; must be 0xEF 0xBB 0xBF if given"));
                }
            }
        }
        Ok(())
    }

    fn next_in(&mut self, context: &'static str, expected: &'static str) -> Result<Token, JsonError> {
        (self.context, self.expected) = (context, expected);
        self.next()
    }

    fn next(&mut self) -> Result<Token, JsonError> {
        self.put_back = false;
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
        Ok(match self.read() {
            // The library takes a NUL for the end.
            None | Some(0) => Token::End,
            Some(b'[') => Token::BeginArray,
            Some(b']') => Token::EndArray,
            Some(b'{') => Token::BeginObject,
            Some(b'}') => Token::EndObject,
            Some(b':') => Token::Colon,
            Some(b',') => Token::Comma,
            Some(b'n') => self.literal(b"ull", Token::Null)?,
            Some(b't') => self.literal(b"rue", Token::True)?,
            Some(b'f') => self.literal(b"alse", Token::False)?,
            Some(b'"') => self.scan_string()?,
            Some(first @ (b'-' | b'0'..=b'9')) => self.scan_number(first)?,
            Some(_) => return Err(self.malformed("invalid literal")),
        })
    }

    fn read(&mut self) -> Option<u8> {
        let byte = self.text.get(self.at).copied();
        match byte {
            Some(_) => self.at += 1,
            None => self.past_end = true,
        }
        byte
    }

    fn literal(&mut self, rest: &[u8], token: Token) -> Result<Token, JsonError> {
        for expected in rest {
            if self.read() != Some(*expected) {
                return Err(self.malformed("invalid literal"));
            }
        }
        Ok(token)
    }

    fn scan_number(&mut self, first: u8) -> Result<Token, JsonError> {
        self.mark = self.at - 1;
        let mut lead = first;
        if first == b'-' {
            lead = match self.read() {
                Some(digit @ b'0'..=b'9') => digit,
                _ => return Err(self.malformed("invalid number; expected digit after '-'")),
            };
        }
        if lead != b'0' {
            self.skip_digits();
        }
        let mut integer = true;
        if self.text.get(self.at) == Some(&b'.') {
            integer = false;
            self.at += 1;
            self.digit("invalid number; expected digit after '.'")?;
            self.skip_digits();
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
                self.digit("invalid number; expected digit after exponent sign")?;
            } else {
                self.digit("invalid number; expected '+', '-', or digit after exponent")?;
            }
            self.skip_digits();
        }
        // The library reads on to see where a number ends, and puts that byte back.
        self.put_back = true;
        let text = String::from_utf8_lossy(self.token_text());
        if integer {
            if let Ok(value) = text.parse::<i64>() {
                return Ok(Token::Int(value));
            }
            if let Ok(value) = text.parse::<u64>() {
                return Ok(Token::Unsigned(value));
            }
        }
        Ok(match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Token::Float(value),
            _ => Token::TooLarge,
        })
    }

    fn digit(&mut self, otherwise: &str) -> Result<(), JsonError> {
        match self.read() {
            Some(b'0'..=b'9') => Ok(()),
            _ => Err(self.malformed(otherwise)),
        }
    }

    fn skip_digits(&mut self) {
        while let Some(b'0'..=b'9') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    /// The text of the last string or number so far.
    fn token_text(&self) -> &'t [u8] {
        &self.text[self.mark..self.at]
    }

    fn scan_string(&mut self) -> Result<Token, JsonError> {
        self.mark = self.at - 1;
        let start = self.at;
        let mut plain = true;
        loop {
            let from = self.at;
            let stop = |b: &u8| matches!(b, b'"' | b'\\' | 0..=0x1f);
            let length = self.text[from..].iter().position(stop).unwrap_or(self.text.len() - from);
            let run = &self.text[from..from + length];
            if let Some(bad) = utf8_fault(run) {
                // Where a sequence is cut short, the byte after the run is the wrong one.
                let offset = match bad {
                    Utf8Fault::Wrong(index) => index,
                    Utf8Fault::Incomplete => length,
                };
                self.at = from + offset;
                self.read();
                return Err(self.malformed("invalid string: ill-formed UTF-8 byte"));
            }
            self.at += length;
            match self.read() {
                Some(b'"') => {
                    if plain {
                        self.string = Text::Plain(start..self.at - 1);
                    } else {
                        self.buffer.extend_from_slice(run);
                        self.string = Text::Unescaped;
                    }
                    return Ok(Token::String);
                }
                Some(b'\\') => {
                    if plain {
                        self.buffer.clear();
                        plain = false;
                    }
                    self.buffer.extend_from_slice(run);
                    self.scan_escape()?;
                }
                Some(control) => return Err(self.control_character(control)),
                None => return Err(self.malformed("invalid string: missing closing quote")),
            }
        }
    }

    fn scan_escape(&mut self) -> Result<(), JsonError> {
        let byte = match self.read() {
            Some(b'u') => return self.scan_code_point(),
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            _ => return Err(self.malformed("invalid string: forbidden character after backslash")),
        };
        self.buffer.push(byte);
        Ok(())
    }

    fn scan_code_point(&mut self) -> Result<(), JsonError> {
        const LONELY_HIGH: &str = "invalid string: surrogate U+D800..U+DBFF must be followed by U+DC00..U+DFFF";
        let mut code = self.scan_hex()?;
        match code {
            0xd800..=0xdbff => {
                if self.read() != Some(b'\\') || self.read() != Some(b'u') {
                    return Err(self.malformed(LONELY_HIGH));
                }
                let low = self.scan_hex()?;
                if !(0xdc00..=0xdfff).contains(&low) {
                    return Err(self.malformed(LONELY_HIGH));
                }
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            0xdc00..=0xdfff => {
                return Err(self.malformed("invalid string: surrogate U+DC00..U+DFFF must follow U+D800..U+DBFF"));
            }
            _ => {}
        }
        // Surrogates are dealt with and pairs cannot exceed the last code point.
        if let Some(character) = char::from_u32(code) {
            self.buffer.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }

    fn scan_hex(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            match self.read().and_then(|b| char::from(b).to_digit(16)) {
                Some(digit) => code = code << 4 | digit,
                None => return Err(self.malformed("invalid string: '\\u' must be followed by 4 hex digits")),
            }
        }
        Ok(code)
    }

    fn control_character(&self, byte: u8) -> JsonError {
        const NAMES: [&str; 32] = [
            "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI",
            "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US",
        ];
        let name = NAMES.get(usize::from(byte)).copied().unwrap_or_default();
        let short = match byte {
            0x08 => " or \\b",
            b'\t' => " or \\t",
            b'\n' => " or \\n",
            0x0c => " or \\f",
            b'\r' => " or \\r",
            _ => "",
        };
        self.malformed(&format!(
            "invalid string: control character U+{byte:04X} ({name}) must be escaped to \\u{byte:04X}{short}"
        ))
    }

    /// The value of the last string.
    fn string_value(&self) -> Result<&[u8], JsonError> {
        let value = match &self.string {
            Text::Plain(range) => &self.text[range.clone()],
            Text::Unescaped => &self.buffer,
        };
        // Only an escape can bring one in: literal ones are control characters.
        if value.contains(&0) {
            return Err(JsonError::Nul(value.to_vec()));
        }
        Ok(value)
    }

    /// The name that `token` should be, and the colon after it.
    fn key<B: Builder>(&mut self, token: Token, builder: &mut B) -> Result<B::Key, JsonError> {
        if token != Token::String {
            return Err(self.unexpected(token, "object key", "string literal"));
        }
        let key = builder.key(self.string_value()?);
        match self.next_in("object separator", "':'")? {
            Token::Colon => Ok(key),
            token => Err(self.unexpected(token, "object separator", "':'")),
        }
    }

    /// An error at the place up to which the input was read.
    fn error(&self, what: &str) -> JsonError {
        let read = &self.text[..self.at];
        let line = read.iter().filter(|b| **b == b'\n').count() + 1;
        let line_start = read.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        let column = if self.put_back && self.text.get(self.at) == Some(&b'\n') {
            // Putting back a newline leaves the library at the start of the line that it ends.
            0
        } else {
            self.at - line_start + usize::from(self.past_end)
        };
        JsonError::Parse(format!(
            "[json.exception.parse_error.101] parse error at line {line}, column {column}: {what}"
        ))
    }

    /// An error inside a token.
    fn malformed(&self, what: &str) -> JsonError {
        let mut last = String::new();
        for part in self.token_text().utf8_chunks() {
            for character in part.valid().chars() {
                if character <= '\x1f' {
                    last.push_str(&format!("<U+{:04X}>", u32::from(character)));
                } else {
                    last.push(character);
                }
            }
            if !part.invalid().is_empty() {
                last.push(char::REPLACEMENT_CHARACTER);
            }
        }
        let expected = if self.expected.is_empty() { String::new() } else { format!("; expected {}", self.expected) };
        let context = self.context;
        self.error(&format!("syntax error while parsing {context} - {what}; last read: '{last}'{expected}"))
    }

    fn unexpected(&self, token: Token, context: &str, expected: &str) -> JsonError {
        let found = token.name();
        self.error(&format!("syntax error while parsing {context} - unexpected {found}; expected {expected}"))
    }
}

/// What is wrong with bytes that are not UTF-8.
enum Utf8Fault {
    /// The byte at this index cannot stand there.
    Wrong(usize),
    /// The last sequence is cut short.
    Incomplete,
}

fn utf8_fault(bytes: &[u8]) -> Option<Utf8Fault> {
    let error = std::str::from_utf8(bytes).err()?;
    let Some(length) = error.error_len() else { return Some(Utf8Fault::Incomplete) };
    let start = error.valid_up_to();
    // The wrong byte is the first one only if it cannot start a sequence.
    let starts = matches!(bytes.get(start), Some(0xc2..=0xf4));
    Some(Utf8Fault::Wrong(if starts { start + length } else { start }))
}

/// Why a string has no form in JSON: it is not UTF-8. `Display` gives Nix's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonStringError {
    /// The byte at this index is wrong.
    #[error(
        "JSON serialization error: [json.exception.type_error.316] invalid UTF-8 byte at index {index}: 0x{byte:02X}"
    )]
    InvalidByte {
        /// Where it stands.
        index: usize,
        /// What it is.
        byte: u8,
    },
    /// The string ends within a character, with this byte.
    #[error("JSON serialization error: [json.exception.type_error.316] incomplete UTF-8 string; last byte: 0x{0:02X}")]
    Incomplete(u8),
}

/// Writes `string` as a JSON string: characters beyond ASCII as they are, control characters escaped.
///
/// # Errors
/// [`JsonStringError`] if it is not UTF-8; then `out` is as it was.
pub fn write_json_string(out: &mut Vec<u8>, string: &[u8]) -> Result<(), JsonStringError> {
    match utf8_fault(string) {
        Some(Utf8Fault::Wrong(index)) => {
            let byte = string.get(index).copied().unwrap_or_default();
            return Err(JsonStringError::InvalidByte { index, byte });
        }
        Some(Utf8Fault::Incomplete) => {
            return Err(JsonStringError::Incomplete(string.last().copied().unwrap_or_default()));
        }
        None => {}
    }
    out.reserve(string.len() + 2);
    out.push(b'"');
    let mut rest = string;
    while let Some(index) = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)) {
        out.extend_from_slice(&rest[..index]);
        let byte = rest[index];
        rest = &rest[index + 1..];
        let short = match byte {
            b'"' | b'\\' => byte,
            0x08 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            0x0c => b'f',
            b'\r' => b'r',
            _ => {
                out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
                continue;
            }
        };
        out.extend_from_slice(&[b'\\', short]);
    }
    out.extend_from_slice(rest);
    out.push(b'"');
    Ok(())
}
