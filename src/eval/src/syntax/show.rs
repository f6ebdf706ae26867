//! Prints a tree as `nix-instantiate --parse` does: fully bracketed, attributes in the order of their names.

use super::ast::{AttrKind, AttrName, Attrs, BinaryOp, Expr, Lambda, Node};
use crate::symbol::{Symbol, SymbolTable};

/// Appends `node` to `out`. Recurses as deep as the tree is high.
pub fn show(node: Node<'_>, symbols: &SymbolTable<'_>, out: &mut Vec<u8>) {
    Printer { symbols, out }.node(node);
}

/// Appends an attribute's name to `out`, in quotes if it is no identifier.
pub fn show_identifier(name: &[u8], out: &mut Vec<u8>) {
    const KEYWORDS: [&[u8]; 9] = [b"if", b"then", b"else", b"assert", b"with", b"let", b"in", b"rec", b"inherit"];
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'\'' | b'-');
    let starts_plain = name.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_');
    if starts_plain && name.iter().all(plain) && !KEYWORDS.contains(&name) {
        out.extend_from_slice(name);
    } else {
        show_string(name, out);
    }
}

fn show_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for (n, &byte) in text.iter().enumerate() {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            b'$' if text.get(n + 1) == Some(&b'{') => out.extend(b"\\$"),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// A number as C++ streams print it: six significant digits, no trailing zeros (`%g`).
fn show_float(value: f64, out: &mut Vec<u8>) {
    // literals are finite, so there always is an exponent
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    let text = if (-4..6).contains(&exponent) {
        trim(&format!("{value:.*}", (5 - exponent) as usize))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    };
    out.extend_from_slice(text.as_bytes());
}

struct Printer<'a, 't> {
    symbols: &'a SymbolTable<'t>,
    out: &'a mut Vec<u8>,
}

impl Printer<'_, '_> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn symbol(&mut self, symbol: Symbol) {
        show_identifier(self.symbols.text(symbol), self.out);
    }

    /// `before`, the node, `after`.
    fn around(&mut self, before: &str, node: Node<'_>, after: &str) {
        self.text(before);
        self.node(node);
        self.text(after);
    }

    fn path(&mut self, path: &[AttrName<'_>]) {
        for (n, name) in path.iter().enumerate() {
            if n > 0 {
                self.text(".");
            }
            match name {
                AttrName::Static(name) => self.symbol(*name),
                AttrName::Dynamic(name) => self.around("\"${", name, "}\""),
            }
        }
    }

    fn node(&mut self, node: Node<'_>) {
        match node {
            Expr::Int(value) => self.text(&value.to_string()),
            Expr::Float(value) => show_float(*value, self.out),
            Expr::Str(text) => show_string(text, self.out),
            Expr::Path(path) => self.out.extend_from_slice(path),
            Expr::Var { name, .. } => self.symbol(*name),
            Expr::CurPos(_) => self.text("__curPos"),
            Expr::Select { subject, path, default, .. } => {
                self.around("(", subject, ").");
                self.path(path);
                if let Some(default) = default {
                    self.around(" or (", default, ")");
                }
            }
            Expr::HasAttr { subject, path } => {
                self.around("((", subject, ") ? ");
                self.path(path);
                self.text(")");
            }
            Expr::Attrs(attrs) => {
                self.text(if attrs.recursive.get() { "rec { " } else { "{ " });
                self.bindings(attrs);
                self.text("}");
            }
            Expr::List(elements) => {
                self.text("[ ");
                for element in *elements {
                    self.around("(", element, ") ");
                }
                self.text("]");
            }
            Expr::Lambda(lambda) => self.lambda(lambda),
            Expr::Call { function, args, .. } => {
                self.around("(", function, "");
                for arg in *args {
                    self.around(" ", arg, "");
                }
                self.text(")");
            }
            Expr::Let { bindings, body } => {
                self.text("(let ");
                self.bindings(bindings);
                self.around("in ", body, ")");
            }
            Expr::With { scope, body, .. } => {
                self.around("(with ", scope, "; ");
                self.around("", body, ")");
            }
            Expr::If { condition, then, otherwise, .. } => {
                self.around("(if ", condition, " then ");
                self.around("", then, " else ");
                self.around("", otherwise, ")");
            }
            Expr::Assert { condition, body, .. } => {
                self.around("assert ", condition, "; ");
                self.node(body);
            }
            Expr::Not(operand) => self.around("(! ", operand, ")"),
            Expr::Binary { op, left, right, .. } => {
                let operator = match op {
                    BinaryOp::Eq => " == ",
                    BinaryOp::NotEq => " != ",
                    BinaryOp::And => " && ",
                    BinaryOp::Or => " || ",
                    BinaryOp::Impl => " -> ",
                    BinaryOp::Update => " // ",
                    BinaryOp::ConcatLists => " ++ ",
                };
                self.around("(", left, operator);
                self.around("", right, ")");
            }
            Expr::ConcatStrings { parts, .. } => {
                for (n, (_, part)) in parts.iter().enumerate() {
                    self.around(if n == 0 { "(" } else { " + " }, part, "");
                }
                self.text(")");
            }
            // printed by the set that it stands in
            Expr::InheritFrom { .. } => {}
        }
    }

    fn lambda(&mut self, lambda: &Lambda<'_>) {
        self.text("(");
        if let Some(formals) = lambda.formals {
            self.text("{ ");
            let mut sorted: Vec<_> = formals.formals.iter().collect();
            sorted.sort_by_key(|formal| self.symbols.text(formal.name));
            for (n, formal) in sorted.iter().enumerate() {
                if n > 0 {
                    self.text(", ");
                }
                self.symbol(formal.name);
                if let Some(default) = formal.default {
                    self.around(" ? ", default, "");
                }
            }
            if formals.ellipsis {
                self.text(if sorted.is_empty() { "..." } else { ", ..." });
            }
            self.text(if lambda.arg.is_some() { " } @ " } else { " }" });
        }
        if let Some(arg) = lambda.arg {
            self.symbol(arg);
        }
        self.around(": ", lambda.body, ")");
    }

    fn bindings(&mut self, attrs: &Attrs<'_>) {
        let defs = attrs.attrs.borrow();
        let mut sorted: Vec<_> = defs.iter().collect();
        sorted.sort_by_key(|def| self.symbols.text(def.name));
        let mut inherited = false;
        for def in sorted.iter().filter(|def| def.kind == AttrKind::Inherited) {
            self.text(if inherited { " " } else { "inherit " });
            inherited = true;
            self.symbol(def.name);
        }
        if inherited {
            self.text("; ");
        }
        let mut from: Vec<(u32, Symbol)> = Vec::new();
        for def in &sorted {
            if let Expr::Select { subject: Expr::InheritFrom { index, .. }, .. } = def.value {
                from.push((index.get(), def.name));
            }
        }
        from.sort_by_key(|(index, _)| *index);
        for group in from.chunk_by(|a, b| a.0 == b.0) {
            if let Some(source) = attrs.inherit_from.borrow().get(group[0].0 as usize) {
                self.around("inherit (", source, ")");
            }
            for (_, name) in group {
                self.text(" ");
                self.symbol(*name);
            }
            self.text("; ");
        }
        for def in sorted.iter().filter(|def| def.kind == AttrKind::Plain) {
            self.symbol(def.name);
            self.around(" = ", def.value, "; ");
        }
        for def in attrs.dynamic.borrow().iter() {
            self.around("\"${", def.name, "}\" = ");
            self.around("", def.value, "; ");
        }
    }
}
