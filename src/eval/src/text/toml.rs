//! TOML: reading it into the caller's values (`fromTOML`).
//!
//! Nix uses toml11 restricted to TOML 1.0. The `toml` crate reads 1.1 too, so what 1.1 added is looked for and refused
//! beforehand: newlines, comments and trailing commas in inline tables, the escapes `\e` and `\x`, times without
//! seconds.

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use toml::value::{Date, Datetime, Offset, Time};
use toml_parser::decoder::Encoding;
use toml_parser::parser::{Event, EventKind, RecursionGuard, parse_document};
use toml_parser::{ErrorSink, ParseError, Source};

use super::builder::{self, Builder};

/// How deep tables and arrays may nest, dotted keys included: it bounds the recursion over them.
const MAX_DEPTH: usize = 256;

/// How deep brackets and braces may nest; the `toml` crate's own limit.
const MAX_BRACKETS: u32 = 80;

/// Why a document could not be read. `Display` gives Nix's text, but for the details of a syntax error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TomlError {
    /// It is not TOML 1.0, or a number is out of range.
    #[error("while parsing TOML: {0}")]
    Parse(String),
    /// It has a date or time, and timestamps were not asked for.
    #[error("while parsing TOML: Dates and times are not supported")]
    Timestamp,
    /// A string or name that contains NUL. Nix repeats the whole of its own error here.
    #[error(
        "while parsing TOML: error: input string '{}' cannot be represented as Nix string because it contains null bytes",
        builder::show_nul(.0)
    )]
    Nul(Vec<u8>),
}

/// Reads the TOML document `text`.
///
/// With `timestamps` (Nix's experimental feature `parse-toml-timestamps`) dates and times become
/// `{ _type = "timestamp"; value = "…"; }`.
///
/// # Errors
/// See [`TomlError`].
pub fn parse<B: Builder>(text: &[u8], timestamps: bool, builder: &mut B) -> Result<B::Value, TomlError> {
    let text = std::str::from_utf8(text).map_err(|error| TomlError::Parse(format!("invalid UTF-8: {error}")))?;
    refuse_later_syntax(text)?;
    let document = DeTable::parse(text).map_err(|error| TomlError::Parse(error.to_string().trim_end().to_owned()))?;
    Walk { builder, timestamps, values: Vec::new(), attrs: Vec::new() }.table(document.get_ref())
}

/// Collects the first error.
struct FirstError(Option<String>);

impl ErrorSink for FirstError {
    fn report_error(&mut self, error: ParseError) {
        self.0.get_or_insert_with(|| error.description().to_owned());
    }
}

/// A bracket or brace that is open, and how much depth it and its key add.
struct Open {
    inline_table: bool,
    depth: usize,
}

/// Refuses what TOML 1.0 does not have and what nests too deep. Other errors are left to the parser.
fn refuse_later_syntax(text: &str) -> Result<(), TomlError> {
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let mut open: Vec<Open> = Vec::new();
    let mut depth = 0;
    let mut key_parts = 0;
    let mut after_comma = false;
    let mut fault = None;
    let mut check = |event: Event| {
        let in_table = open.last().is_some_and(|o| o.inline_table);
        match event.kind() {
            EventKind::Newline | EventKind::Comment if in_table => {
                fault.get_or_insert("newlines and comments are not allowed in inline tables in TOML 1.0");
            }
            EventKind::InlineTableClose if after_comma => {
                fault.get_or_insert("a trailing comma is not allowed in inline tables in TOML 1.0");
            }
            EventKind::SimpleKey | EventKind::Scalar
                if matches!(event.encoding(), Some(Encoding::BasicString | Encoding::MlBasicString)) =>
            {
                let raw = source.get(event.span()).map_or("", |raw| raw.as_str());
                if has_later_escape(raw.as_bytes()) {
                    fault.get_or_insert("the escapes \\e and \\x do not exist in TOML 1.0");
                }
            }
            _ => {}
        }
        match event.kind() {
            EventKind::StdTableOpen | EventKind::ArrayTableOpen => key_parts = 0,
            EventKind::Newline if open.is_empty() => key_parts = 0,
            EventKind::SimpleKey => key_parts += 1,
            EventKind::ValueSep => key_parts = 0,
            kind @ (EventKind::InlineTableOpen | EventKind::ArrayOpen) => {
                open.push(Open { inline_table: kind == EventKind::InlineTableOpen, depth: key_parts + 1 });
                depth += key_parts + 1;
                key_parts = 0;
            }
            EventKind::InlineTableClose | EventKind::ArrayClose => {
                depth -= open.pop().map_or(0, |o| o.depth);
                key_parts = 0;
            }
            _ => {}
        }
        if depth + key_parts > MAX_DEPTH {
            fault.get_or_insert("tables and arrays are nested too deep");
        }
        if !matches!(event.kind(), EventKind::Whitespace | EventKind::Newline | EventKind::Comment) {
            after_comma = event.kind() == EventKind::ValueSep;
        }
    };
    let mut errors = FirstError(None);
    let mut guarded = RecursionGuard::new(&mut check, MAX_BRACKETS);
    parse_document(&tokens, &mut guarded, &mut errors);
    match fault {
        // After a syntax error the events are guesses, and the parser's message is the better one.
        Some(fault) if errors.0.is_none() => Err(TomlError::Parse(fault.to_owned())),
        _ => Ok(()),
    }
}

/// Whether a quoted string, as it is written, has an escape that came after TOML 1.0.
fn has_later_escape(raw: &[u8]) -> bool {
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'\\' && matches!(bytes.next(), Some(b'e' | b'x')) {
            return true;
        }
    }
    false
}

/// Turns the parsed document into the caller's values. Recursion is bounded by [`MAX_DEPTH`].
struct Walk<'b, B: Builder> {
    builder: &'b mut B,
    timestamps: bool,
    values: Vec<B::Value>,
    attrs: Vec<(B::Key, B::Value)>,
}

impl<B: Builder> Walk<'_, B> {
    fn table(&mut self, table: &DeTable<'_>) -> Result<B::Value, TomlError> {
        let start = self.attrs.len();
        for (key, value) in table {
            let key = key.get_ref();
            let key = self.builder.key(without_nul(key)?);
            let value = self.value(value)?;
            self.attrs.push((key, value));
        }
        builder::settle(&mut self.attrs, start);
        Ok(self.builder.attrs(self.attrs.drain(start..)))
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>) -> Result<B::Value, TomlError> {
        Ok(match value.get_ref() {
            DeValue::String(string) => self.builder.string(without_nul(string)?),
            DeValue::Integer(number) => {
                let value = i64::from_str_radix(number.as_str(), number.radix())
                    .map_err(|_| TomlError::Parse(format!("integer '{number}' does not fit 64 bits")))?;
                self.builder.int(value)
            }
            DeValue::Float(number) => {
                let text = number.as_str();
                let value = parse_float(text)
                    .ok_or_else(|| TomlError::Parse(format!("floating-point number '{text}' is out of range")))?;
                self.builder.float(value)
            }
            DeValue::Boolean(value) => self.builder.bool(*value),
            DeValue::Datetime(datetime) => self.timestamp(datetime)?,
            DeValue::Array(items) => {
                let start = self.values.len();
                for item in items {
                    let value = self.value(item)?;
                    self.values.push(value);
                }
                self.builder.list(self.values.drain(start..))
            }
            DeValue::Table(table) => self.table(table)?,
        })
    }

    fn timestamp(&mut self, datetime: &Datetime) -> Result<B::Value, TomlError> {
        let text =
            show_datetime(datetime).ok_or_else(|| TomlError::Parse(format!("the time '{datetime}' has no seconds")))?;
        if !self.timestamps {
            return Err(TomlError::Timestamp);
        }
        let start = self.attrs.len();
        for (name, value) in [("_type", "timestamp"), ("value", &text)] {
            let key = self.builder.key(name.as_bytes());
            let value = self.builder.string(value.as_bytes());
            self.attrs.push((key, value));
        }
        builder::settle(&mut self.attrs, start);
        Ok(self.builder.attrs(self.attrs.drain(start..)))
    }
}

fn without_nul<'s>(string: &'s DeString<'_>) -> Result<&'s [u8], TomlError> {
    let bytes = string.as_bytes();
    if bytes.contains(&0) { Err(TomlError::Nul(bytes.to_vec())) } else { Ok(bytes) }
}

/// The value of a TOML float, without underscores; `None` where a finite literal overflows.
fn parse_float(text: &str) -> Option<f64> {
    match text.strip_prefix(['+', '-']).unwrap_or(text) {
        "inf" | "nan" => {
            let value = if text.ends_with("inf") { f64::INFINITY } else { f64::NAN };
            Some(value.copysign(if text.starts_with('-') { -1.0 } else { 1.0 }))
        }
        _ => text.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

/// A date or time as RFC 3339 has it, with a fraction of 0, 3, 6 or 9 digits. `None` if the seconds are missing.
fn show_datetime(datetime: &Datetime) -> Option<String> {
    let mut out = String::new();
    if let Some(Date { year, month, day }) = datetime.date {
        out = format!("{year:04}-{month:02}-{day:02}");
    }
    if let Some(Time { hour, minute, second, nanosecond }) = datetime.time {
        if !out.is_empty() {
            out.push('T');
        }
        out.push_str(&format!("{hour:02}:{minute:02}:{:02}", second?));
        match nanosecond.unwrap_or(0) {
            0 => {}
            n if n % 1_000_000 == 0 => out.push_str(&format!(".{:03}", n / 1_000_000)),
            n if n % 1000 == 0 => out.push_str(&format!(".{:06}", n / 1000)),
            n => out.push_str(&format!(".{n:09}")),
        }
    }
    match datetime.offset {
        None => {}
        Some(Offset::Z | Offset::Custom { minutes: 0 }) => out.push('Z'),
        Some(Offset::Custom { minutes }) => {
            let sign = if minutes < 0 { '-' } else { '+' };
            let minutes = minutes.unsigned_abs();
            out.push_str(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
        }
    }
    Some(out)
}
