//! Values as documents: XML, JSON and TOML.

use super::PrimOp;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::eval::{Coerce, Evaluated, Evaluator, placed};
use crate::position::{Location, Origin};
use crate::print::shows_as_thunk;
use crate::symbol::{Symbol, sym};
use crate::text::builder::Builder;
use crate::text::escape::{XmlWriter, shown_name};
use crate::text::json::{self, JsonError, JsonStringError, write_json_float, write_json_string};
use crate::text::number::write_float;
use crate::text::toml;
use crate::value::{Attrs, Closure, Heap, Kind, List, Pos, Slot, Value};
use rustc_hash::FxHashSet;
use std::vec::Drain;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("__toXML", 1, 1, to_xml),
    PrimOp::strict("__toJSON", 1, 1, to_json),
    PrimOp::lazy("__fromJSON", 1, from_json),
    PrimOp::lazy("fromTOML", 1, from_toml),
];

fn to_xml<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let (mut out, mut context) = (Vec::new(), 0);
    write_xml(ev, args[0], true, false, &mut out, &mut context, pos)?;
    Ok(ev.heap.string_with_context(&out, context))
}

fn to_json<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let (mut out, mut context) = (Vec::new(), 0);
    write_json(ev, args[0], true, &mut out, &mut context, true, pos)?;
    Ok(ev.heap.string_with_context(&out, context))
}

fn from_json<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.fromJSON";
    let text = ev.force_string_no_context(args[0], pos, what)?;
    json::parse(text, &mut ValueBuilder(ev)).map_err(|error| {
        let message = Error::eval(Pos::NONE, error.to_string());
        match error {
            JsonError::Parse(_) => message.traced(pos, "while decoding a JSON string"),
            JsonError::IntegerRange(_) | JsonError::Nul(_) => message,
        }
    })
}

fn from_toml<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.fromTOML";
    let text = ev.force_string_no_context(args[0], pos, what)?;
    toml::parse(text, ev.settings.parse_toml_timestamps, &mut ValueBuilder(ev))
        .map_err(|error| Error::eval(pos, error.to_string()))
}

/// Makes values of what is read. Nothing in them has a position or a context.
struct ValueBuilder<'e, 'a>(&'e Evaluator<'a>);

impl<'a> ValueBuilder<'_, 'a> {
    fn heap(&self) -> &Heap<'a> {
        &self.0.heap
    }
}

impl<'a> Builder for ValueBuilder<'_, 'a> {
    type Value = Value<'a>;
    type Key = Symbol;

    fn null(&mut self) -> Value<'a> {
        Value::NULL
    }

    fn bool(&mut self, value: bool) -> Value<'a> {
        Value::bool(value)
    }

    fn int(&mut self, value: i64) -> Value<'a> {
        self.heap().int(value)
    }

    fn float(&mut self, value: f64) -> Value<'a> {
        self.heap().float(value)
    }

    fn string(&mut self, value: &[u8]) -> Value<'a> {
        self.heap().string(value)
    }

    fn key(&mut self, name: &[u8]) -> Symbol {
        self.0.symbols.intern(name)
    }

    fn list(&mut self, items: Drain<'_, Value<'a>>) -> Value<'a> {
        self.heap().list(items.as_slice()).into()
    }

    fn attrs(&mut self, items: Drain<'_, (Symbol, Value<'a>)>) -> Value<'a> {
        let items = items.as_slice();
        let keys = self.heap().keys(items.iter().map(|&(name, _)| (name, Pos::NONE)));
        self.heap().attrs_with_keys(keys, |index| items[index].1).into()
    }
}

/// An attribute on its way out.
type Named<'a> = (&'a [u8], Pos, &'a Slot<'a>);

/// Attributes in the order of their names. Nested sets take turns on one stack.
struct Sorted<'a>(Vec<Named<'a>>);

impl<'a> Sorted<'a> {
    /// Puts a set's attributes onto the stack; gives the range that they take. [`Sorted::pop`] takes them off again.
    fn push(&mut self, ev: &Evaluator<'a>, attrs: Attrs<'a>) -> std::ops::Range<usize> {
        let start = self.0.len();
        self.0.extend(ev.heap.flat(attrs).iter().map(|(name, pos, cell)| (ev.symbols.text(name), pos, cell)));
        self.0[start..].sort_unstable_by_key(|&(name, _, _)| name);
        start..self.0.len()
    }

    fn pop(&mut self, range: std::ops::Range<usize>) {
        self.0.truncate(range.start);
    }
}

/// A value to write: evaluated if `strict`, else as far as it is evaluated already. `pos` is where it was asked for.
fn to_write<'a>(ev: &Evaluator<'a>, value: Value<'a>, strict: bool, pos: Pos) -> Evaluated<'a> {
    if strict { ev.force(value).map_err(|error| placed(error, pos)) } else { Ok(value.resolved()) }
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

/// Appends a value as JSON to `out`, and the context of all strings in it to `context` (Nix's `printValueAsJSON`).
///
/// Sets with `__toString` or `outPath` become what these give. Paths are copied to the store if `copy_to_store`, and become
/// their store paths then. Unless `strict` nothing is evaluated that was not before. `pos` is where it was asked for.
///
/// # Errors
/// When there is something without a form in JSON: a function, an unevaluated value, a string that is not UTF-8. What
/// evaluation gives. `out` then holds a part.
pub(crate) fn write_json<'a>(
    ev: &Evaluator<'a>,
    value: Value<'a>,
    strict: bool,
    out: &mut Vec<u8>,
    context: &mut Context,
    copy_to_store: bool,
    pos: Pos,
) -> Result<()> {
    let mut printer = JsonPrinter { ev, strict, copy_to_store, out, context, sorted: Sorted(Vec::new()), fault: None };
    printer.value(value, pos)?;
    // Nix makes the text when everything is evaluated, so any other error comes before this one.
    printer.fault.map_or(Ok(()), |fault| Err(Error::eval(Pos::NONE, fault.to_string())))
}

struct JsonPrinter<'p, 'a> {
    ev: &'p Evaluator<'a>,
    strict: bool,
    copy_to_store: bool,
    out: &'p mut Vec<u8>,
    context: &'p mut Context,
    sorted: Sorted<'a>,
    /// The first string that is not UTF-8.
    fault: Option<JsonStringError>,
}

impl<'a> JsonPrinter<'_, 'a> {
    fn value(&mut self, value: Value<'a>, pos: Pos) -> Result<()> {
        self.ev.nested(pos, || self.evaluated(value, pos))
    }

    fn evaluated(&mut self, value: Value<'a>, pos: Pos) -> Result<()> {
        let ev = self.ev;
        let value = to_write(ev, value, self.strict, pos)?;
        match value.kind() {
            Kind::Null => self.out.extend_from_slice(b"null"),
            Kind::Bool(true) => self.out.extend_from_slice(b"true"),
            Kind::Bool(false) => self.out.extend_from_slice(b"false"),
            Kind::Int(number) => self.out.extend_from_slice(number.to_string().as_bytes()),
            Kind::Float(number) => write_json_float(self.out, number),
            Kind::Str(text) => {
                *self.context = ev.contexts.union(*self.context, text.context());
                self.string(text.bytes());
            }
            Kind::Path(path) if self.copy_to_store => {
                let (copied, element) = ev.copy_to_store(path.bytes(), pos)?;
                *self.context = ev.contexts.union(*self.context, element);
                self.string(copied.as_bytes());
            }
            Kind::Path(path) => self.string(path.bytes()),
            Kind::List(list) => return self.list(list, pos),
            Kind::Attrs(attrs) => return self.attrs(value, attrs, pos),
            Kind::Lambda(closure) => return Err(self.not_json(value, closure.lambda().pos)),
            Kind::Thunk(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_) => return Err(self.not_json(value, pos)),
        }
        Ok(())
    }

    #[cold]
    fn not_json(&self, value: Value<'a>, pos: Pos) -> Box<Error> {
        Error::eval(pos, format!("cannot convert {} to JSON", self.ev.type_of(value)))
    }

    fn string(&mut self, text: &[u8]) {
        if let Err(fault) = write_json_string(self.out, text) {
            self.fault.get_or_insert(fault);
        }
    }

    fn list(&mut self, list: List<'a>, pos: Pos) -> Result<()> {
        self.out.push(b'[');
        for (index, cell) in list.slots().iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.value(cell.get(), pos)
                .map_err(|error| error.traced(pos, format!("while evaluating list element at index {index}")))?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn attrs(&mut self, value: Value<'a>, attrs: Attrs<'a>, pos: Pos) -> Result<()> {
        let ev = self.ev;
        if let Some(convert) = attrs.get(sym::TO_STRING) {
            let result = ev.call(ev.force_slot(convert)?, &[value], pos)?;
            let mut text = Vec::new();
            let what = "while evaluating the result of the `__toString` attribute";
            ev.coerce_to_string(result, &mut text, self.context, Coerce::PLAIN, pos, what)?;
            self.string(&text);
            return Ok(());
        }
        if let Some((out_path, out_path_pos)) = attrs.find(sym::OUT_PATH) {
            return self.value(out_path.get(), out_path_pos);
        }
        self.out.push(b'{');
        let range = self.sorted.push(ev, attrs);
        for index in range.clone() {
            let (name, attr_pos, cell) = self.sorted.0[index];
            if index > range.start {
                self.out.push(b',');
            }
            self.string(name);
            self.out.push(b':');
            self.value(cell.get(), attr_pos).map_err(|error| {
                error.traced(attr_pos, format!("while evaluating attribute '{}'", shown_name(name)))
            })?;
        }
        self.sorted.pop(range);
        self.out.push(b'}');
        Ok(())
    }
}

// ---- XML ------------------------------------------------------------------------------------------------------------

/// Appends a value as an XML document to `out`, and the context of all strings in it to `context` (Nix's
/// `printValueAsXML`).
///
/// Elements say where they were defined if `location`. Unless `strict` nothing is evaluated that was not before. `pos` is
/// where it was asked for.
///
/// # Errors
/// What evaluation gives; `out` then holds a part.
pub(crate) fn write_xml<'a>(
    ev: &Evaluator<'a>,
    value: Value<'a>,
    strict: bool,
    location: bool,
    out: &mut Vec<u8>,
    context: &mut Context,
    pos: Pos,
) -> Result<()> {
    let mut doc = XmlWriter::new(out);
    doc.open("expr", &[]);
    let (sorted, seen) = (Sorted(Vec::new()), FxHashSet::default());
    let mut printer = XmlPrinter { ev, strict, location, doc, context, sorted, seen };
    printer.value(value, pos)?;
    printer.doc.close();
    Ok(())
}

struct XmlPrinter<'p, 'o, 'a> {
    ev: &'p Evaluator<'a>,
    strict: bool,
    location: bool,
    doc: XmlWriter<'o>,
    context: &'p mut Context,
    sorted: Sorted<'a>,
    /// The `drvPath` of every derivation so far: each is written out only once.
    seen: FxHashSet<&'a [u8]>,
}

impl<'a> XmlPrinter<'_, '_, 'a> {
    fn value(&mut self, value: Value<'a>, pos: Pos) -> Result<()> {
        let ev = self.ev;
        let value = to_write(ev, value, self.strict, pos)?;
        match value.kind() {
            Kind::Null => self.doc.empty("null", &[]),
            Kind::Bool(truth) => self.scalar("bool", if truth { b"true" } else { b"false" }),
            Kind::Int(number) => self.scalar("int", number.to_string().as_bytes()),
            Kind::Float(number) => {
                let mut text = Vec::new();
                write_float(&mut text, number);
                self.scalar("float", &text);
            }
            Kind::Str(text) => {
                *self.context = ev.contexts.union(*self.context, text.context());
                self.scalar("string", text.bytes());
            }
            Kind::Path(path) => self.scalar("path", path.bytes()),
            Kind::List(list) => {
                self.doc.open("list", &[]);
                ev.nested(pos, || list.iter().try_for_each(|element| self.nested(element, pos)))?;
                self.doc.close();
            }
            Kind::Attrs(attrs) => return ev.nested(pos, || self.set(attrs)),
            Kind::Lambda(closure) => self.function(closure),
            Kind::PrimOp(_) | Kind::PrimOpApp(_) | Kind::Thunk(_) => self.doc.empty("unevaluated", &[]),
        }
        Ok(())
    }

    /// What is in a list or a set.
    fn nested(&mut self, handle: Value<'a>, pos: Pos) -> Result<()> {
        if !self.strict && shows_as_thunk(handle) {
            self.doc.empty("unevaluated", &[]);
            return Ok(());
        }
        self.value(handle, pos)
    }

    fn scalar(&mut self, name: &str, value: &[u8]) {
        self.doc.empty(name, &[("value", value)]);
    }

    fn set(&mut self, attrs: Attrs<'a>) -> Result<()> {
        if !self.ev.is_derivation(attrs)? {
            self.doc.open("attrs", &[]);
            self.attrs(attrs)?;
            self.doc.close();
            return Ok(());
        }
        let drv_path = self.path(attrs, sym::DRV_PATH)?;
        let out_path = self.path(attrs, sym::OUT_PATH)?;
        let mut xml_attrs: Vec<(&str, &[u8])> = Vec::new();
        xml_attrs.extend(drv_path.map(|path| ("drvPath", path)));
        xml_attrs.extend(out_path.map(|path| ("outPath", path)));
        self.doc.open("derivation", &xml_attrs);
        match drv_path {
            Some(path) if !path.is_empty() && self.seen.insert(path) => self.attrs(attrs)?,
            _ => self.doc.empty("repeated", &[]),
        }
        self.doc.close();
        Ok(())
    }

    /// The string that an attribute of a derivation is, if it is one.
    fn path(&self, attrs: Attrs<'a>, name: Symbol) -> Result<Option<&'a [u8]>> {
        let Some(cell) = attrs.get(name) else { return Ok(None) };
        match to_write(self.ev, cell.get(), self.strict, Pos::NONE)?.kind() {
            Kind::Str(text) => Ok(Some(text.bytes())),
            _ => Ok(None),
        }
    }

    fn attrs(&mut self, attrs: Attrs<'a>) -> Result<()> {
        let range = self.sorted.push(self.ev, attrs);
        for index in range.clone() {
            let (name, pos, cell) = self.sorted.0[index];
            let place = if pos == Pos::NONE { None } else { self.place(pos) };
            self.open("attr", &[("name", name)], place);
            self.nested(cell.get(), pos)?;
            self.doc.close();
        }
        self.sorted.pop(range);
        Ok(())
    }

    /// A position, if positions are asked for.
    fn place(&self, pos: Pos) -> Option<Location> {
        if self.location { self.ev.locate(pos) } else { None }
    }

    fn open(&mut self, element: &'static str, attributes: &[(&str, &[u8])], place: Option<Location>) {
        let Some(Location { origin, line, column }) = place else {
            self.doc.open(element, attributes);
            return;
        };
        let (line, column) = (line.to_string(), column.to_string());
        let mut attributes = attributes.to_vec();
        if let Origin::File(path) = &origin {
            attributes.push(("path", &**path));
        }
        attributes.push(("line", line.as_bytes()));
        attributes.push(("column", column.as_bytes()));
        self.doc.open(element, &attributes);
    }

    fn function(&mut self, closure: &'a Closure<'a>) {
        let lambda = closure.lambda();
        let place = self.place(lambda.pos);
        self.open("function", &[], place);
        let name = lambda.arg.map(|name| self.ev.symbols.text(name));
        match &lambda.formals {
            None => self.doc.empty("varpat", &[("name", name.unwrap_or_default())]),
            Some(formals) => {
                let mut attributes: Vec<(&str, &[u8])> = Vec::new();
                attributes.extend(name.map(|name| ("name", name)));
                if formals.ellipsis {
                    attributes.push(("ellipsis", b"1"));
                }
                self.doc.open("attrspat", &attributes);
                let mut names: Vec<&[u8]> =
                    formals.formals.iter().map(|formal| self.ev.symbols.text(formal.name)).collect();
                names.sort_unstable();
                for name in names {
                    self.doc.empty("attr", &[("name", name)]);
                }
                self.doc.close();
            }
        }
        self.doc.close();
    }
}
