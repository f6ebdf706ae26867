//! Codes that a terminal obeys, in text from elsewhere: what evaluated code, a builder or a host says can contain them.

use unicode_width::UnicodeWidthChar;

/// A text without the codes that a terminal obeys, but those for colours if `colours` says so, and with spaces for tabs: what Nix
/// makes of all that it shows.
pub fn filter_escapes(text: &str, colours: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    // as Nix counts, a line goes on where the one before it ended
    let mut column = 0;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match c {
            '\x1b' => {
                let code = &rest[..code_length(rest.as_bytes())];
                if colours && code.starts_with("\x1b[") && code.ends_with('m') {
                    shown.push_str(code);
                }
                rest = &rest[code.len()..];
                continue;
            }
            '\t' => {
                let next = column / 8 * 8 + 8;
                shown.extend(std::iter::repeat_n(' ', next - column));
                column = next;
            }
            '\r' | '\x07' => {}
            c => {
                shown.push(c);
                column += c.width().unwrap_or(0);
            }
        }
        rest = &rest[c.len_utf8()..];
    }
    shown
}

/// How many bytes the code has that a text begins with: ESC and what belongs to it (ECMA-48, 5.4 and 5.6), which is ASCII, but for
/// commands to the operating system, which end with BEL or another code.
fn code_length(text: &[u8]) -> usize {
    let while_in = |from: usize, range: std::ops::RangeInclusive<u8>| {
        text[from..].iter().take_while(|b| range.contains(b)).count() + from
    };
    let has =
        |at: usize, range: std::ops::RangeInclusive<u8>| usize::from(text.get(at).is_some_and(|b| range.contains(b)));
    match text.get(1) {
        Some(b'[') => {
            let end = while_in(while_in(2, 0x30..=0x3f), 0x20..=0x2f);
            end + has(end, 0x40..=0x7e)
        }
        Some(b']') => {
            let Some(length) = text[2..].iter().position(|b| matches!(b, 0x1b | 0x07)) else { return text.len() };
            let end = 2 + length + 1;
            end + if text[end - 1] == 0x1b { has(end, b'\\'..=b'\\') } else { 0 }
        }
        _ => 1 + has(1, 0x40..=0x5f),
    }
}
