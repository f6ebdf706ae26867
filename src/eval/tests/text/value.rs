//! A plain tree of values, made through the library's builder and written with the library's writers.

use std::vec::Drain;

use bento_eval::text::builder::Builder;
use bento_eval::text::escape::{write_name, write_string};
use bento_eval::text::json::{write_json_float, write_json_string};
use bento_eval::text::number::write_float;

pub(crate) enum Tree {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(Vec<u8>),
    List(Vec<Tree>),
    Attrs(Vec<(Vec<u8>, Tree)>),
}

pub(crate) struct Trees;

impl Builder for Trees {
    type Value = Tree;
    type Key = Vec<u8>;

    fn null(&mut self) -> Tree {
        Tree::Null
    }
    fn bool(&mut self, value: bool) -> Tree {
        Tree::Bool(value)
    }
    fn int(&mut self, value: i64) -> Tree {
        Tree::Int(value)
    }
    fn float(&mut self, value: f64) -> Tree {
        Tree::Float(value)
    }
    fn string(&mut self, value: &[u8]) -> Tree {
        Tree::String(value.to_vec())
    }
    fn key(&mut self, name: &[u8]) -> Vec<u8> {
        name.to_vec()
    }
    fn list(&mut self, items: Drain<'_, Tree>) -> Tree {
        Tree::List(items.collect())
    }
    fn attrs(&mut self, items: Drain<'_, (Vec<u8>, Tree)>) -> Tree {
        let attrs: Vec<_> = items.collect();
        assert!(attrs.is_sorted_by(|a, b| a.0 < b.0), "attributes come sorted and unique");
        Tree::Attrs(attrs)
    }
}

impl Tree {
    /// As `nix-instantiate --json` writes it.
    pub(crate) fn to_json(&self) -> String {
        let mut out = Vec::new();
        self.write_json(&mut out);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Tree::Null => out.extend(b"null"),
            Tree::Bool(value) => out.extend(value.to_string().as_bytes()),
            Tree::Int(value) => out.extend(value.to_string().as_bytes()),
            Tree::Float(value) => write_json_float(out, *value),
            Tree::String(value) => write_json_string(out, value).expect("the string is UTF-8"),
            Tree::List(items) => {
                out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    out.extend(if i > 0 { b",".as_slice() } else { b"" });
                    item.write_json(out);
                }
                out.push(b']');
            }
            Tree::Attrs(attrs) => {
                out.push(b'{');
                for (i, (name, value)) in attrs.iter().enumerate() {
                    out.extend(if i > 0 { b",".as_slice() } else { b"" });
                    write_json_string(out, name).expect("the name is UTF-8");
                    out.push(b':');
                    value.write_json(out);
                }
                out.push(b'}');
            }
        }
    }

    /// As `nix-instantiate --eval --strict` prints it.
    pub(crate) fn printed(&self) -> String {
        let mut out = Vec::new();
        self.print(&mut out);
        String::from_utf8(out).expect("the value is UTF-8")
    }

    fn print(&self, out: &mut Vec<u8>) {
        match self {
            Tree::Null => out.extend(b"null"),
            Tree::Bool(value) => out.extend(value.to_string().as_bytes()),
            Tree::Int(value) => out.extend(value.to_string().as_bytes()),
            Tree::Float(value) => write_float(out, *value),
            Tree::String(value) => write_string(out, value),
            Tree::List(items) => {
                out.extend(b"[ ");
                for item in items {
                    item.print(out);
                    out.push(b' ');
                }
                out.push(b']');
            }
            Tree::Attrs(attrs) => {
                out.extend(b"{ ");
                for (name, value) in attrs {
                    write_name(out, name);
                    out.extend(b" = ");
                    value.print(out);
                    out.extend(b"; ");
                }
                out.push(b'}');
            }
        }
    }
}
