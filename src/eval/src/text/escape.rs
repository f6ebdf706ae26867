//! Strings in the syntaxes that values are printed in: the language's own, and XML.

/// The words that cannot be attribute names without quotes. `or` can.
const RESERVED: [&[u8]; 9] = [b"if", b"then", b"else", b"assert", b"with", b"let", b"in", b"rec", b"inherit"];

/// Writes `string` as a literal of the language.
pub fn write_string(out: &mut Vec<u8>, string: &[u8]) {
    write_string_limited(out, string, usize::MAX);
}

/// Writes `string` as a literal of the language, of at most `limit` bytes of it; what was left out is counted after
/// the literal (`"abc" «2 bytes elided»`).
pub fn write_string_limited(out: &mut Vec<u8>, string: &[u8], limit: usize) {
    let shown = &string[..limit.min(string.len())];
    out.push(b'"');
    for (i, &byte) in shown.iter().enumerate() {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            b'$' if string.get(i + 1) == Some(&b'{') => out.extend(b"\\$"),
            byte => out.push(byte),
        }
    }
    out.push(b'"');
    let elided = string.len() - shown.len();
    if elided > 0 {
        let unit = if elided == 1 { "byte" } else { "bytes" };
        out.extend(format!(" «{elided} {unit} elided»").into_bytes());
    }
}

/// Whether `name` needs no quotes as an attribute name.
pub fn is_plain_name(name: &[u8]) -> bool {
    name.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_')
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'\''))
        && !RESERVED.contains(&name)
}

/// Writes an attribute name, quoted if it must be.
pub fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    if is_plain_name(name) {
        out.extend(name);
    } else {
        write_string(out, name);
    }
}

/// An attribute name as messages show it.
pub fn shown_name(name: &[u8]) -> String {
    let mut shown = Vec::new();
    write_name(&mut shown, name);
    String::from_utf8_lossy(&shown).into_owned()
}

/// Writes an XML document the way `builtins.toXML` lays it out: one element per line, two spaces per level.
#[derive(Debug)]
pub struct XmlWriter<'o> {
    out: &'o mut Vec<u8>,
    open: Vec<&'static str>,
}

impl<'o> XmlWriter<'o> {
    /// Starts a document at the end of `out` with the XML declaration.
    pub fn new(out: &'o mut Vec<u8>) -> XmlWriter<'o> {
        out.extend(b"<?xml version='1.0' encoding='utf-8'?>\n");
        XmlWriter { out, open: Vec::new() }
    }

    /// Writes an opening tag. Attributes come out in the order of their names.
    pub fn open(&mut self, name: &'static str, attributes: &[(&str, &[u8])]) {
        self.tag(name, attributes);
        self.out.extend(b">\n");
        self.open.push(name);
    }

    /// Writes the closing tag of the innermost open element, if there is one.
    pub fn close(&mut self) {
        if let Some(name) = self.open.pop() {
            self.indent();
            self.out.extend(b"</");
            self.out.extend(name.as_bytes());
            self.out.extend(b">\n");
        }
    }

    /// Writes an element without content. Attributes come out in the order of their names.
    pub fn empty(&mut self, name: &str, attributes: &[(&str, &[u8])]) {
        self.tag(name, attributes);
        self.out.extend(b" />\n");
    }

    fn indent(&mut self) {
        self.out.resize(self.out.len() + 2 * self.open.len(), b' ');
    }

    fn tag(&mut self, name: &str, attributes: &[(&str, &[u8])]) {
        self.indent();
        self.out.push(b'<');
        self.out.extend(name.as_bytes());
        let mut sorted: Vec<_> = attributes.iter().collect();
        sorted.sort_by_key(|(name, _)| *name);
        for (name, value) in sorted {
            self.out.push(b' ');
            self.out.extend(name.as_bytes());
            self.out.extend(b"=\"");
            write_xml_text(self.out, value);
            self.out.push(b'"');
        }
    }
}

/// Writes the text of an attribute's value. Newlines are escaped so that XML readers don't turn them into spaces.
fn write_xml_text(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' => out.extend(b"&quot;"),
            b'<' => out.extend(b"&lt;"),
            b'>' => out.extend(b"&gt;"),
            b'&' => out.extend(b"&amp;"),
            b'\n' => out.extend(b"&#xA;"),
            byte => out.push(byte),
        }
    }
}
