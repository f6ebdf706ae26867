//! Values as text: what `nix-instantiate --eval` prints, and what messages show of a value.

use crate::builtins::structured::{write_json, write_xml};
use crate::context::{Derived, Element};
use crate::error::{Error, ErrorKind, Result};
use crate::eval::Evaluator;
use crate::symbol::{Symbol, sym};
use crate::text::escape::{write_name, write_string, write_string_limited};
use crate::text::number::write_float;
use crate::value::{Attrs, Kind, List, Pos, Slot, ThunkState, Value};
use rustc_hash::FxHashSet;

/// How much is shown of a value.
#[derive(Clone, Copy)]
struct Limits {
    /// How deep it is shown.
    depth: usize,
    /// How many attributes, in all sets together.
    attrs: usize,
    /// How many list items, in all lists together.
    items: usize,
    /// How many bytes of each string.
    bytes: usize,
}

impl Limits {
    /// What errors show (C++ Nix's `errorPrintOptions`).
    const ERROR: Limits = Limits { depth: 10, attrs: 10, items: 10, bytes: 1024 };
}

/// What a place in a list or a set shows, seen without evaluating anything.
enum Seen<'a> {
    Value(Value<'a>),
    Unevaluated,
    BlackHole,
}

/// Whether C++ Nix has a thunk where a list or a set has this handle, although it needs no evaluation here: functions and
/// empty sets are values from the start.
pub(crate) fn shows_as_thunk(handle: Value<'_>) -> bool {
    match handle.kind() {
        Kind::Lambda(_) => true,
        Kind::Attrs(attrs) => attrs.is_empty(),
        _ => false,
    }
}

/// What a handle shows.
fn look<'a>(handle: Value<'a>) -> Seen<'a> {
    let Some(thunk) = handle.as_thunk() else {
        return if shows_as_thunk(handle) { Seen::Unevaluated } else { Seen::Value(handle) };
    };
    if let Some(value) = thunk.value() {
        return Seen::Value(value);
    }
    let (state, saved) = thunk.enter();
    thunk.restore(saved);
    if matches!(state, ThunkState::BlackHole) { Seen::BlackHole } else { Seen::Unevaluated }
}

impl<'a> Evaluator<'a> {
    /// The attributes of a set in the order of their names' texts, as everything that prints sets needs them.
    pub(crate) fn lexicographic(&self, attrs: Attrs<'a>) -> Vec<(Symbol, Pos, &'a Slot<'a>)> {
        let mut entries: Vec<_> = self.heap.flat(attrs).iter().collect();
        entries.sort_by_key(|(symbol, _, _)| self.symbols.text(*symbol));
        entries
    }

    /// A value as error messages show it: nothing is evaluated for it, and what is large is cut.
    pub(crate) fn show_for_error(&self, value: Value<'a>) -> String {
        self.show(value, Limits::ERROR)
    }

    /// A value as `builtins.trace` shows it: nothing is evaluated for it, and nothing is cut above the depth that calls may
    /// have.
    pub(crate) fn show_for_trace(&self, value: Value<'a>) -> String {
        let depth = self.settings.max_call_depth as usize;
        self.show(value, Limits { depth, attrs: usize::MAX, items: usize::MAX, bytes: usize::MAX })
    }

    fn show(&self, value: Value<'a>, limits: Limits) -> String {
        let mut printer =
            MessagePrinter { evaluator: self, limits, out: Vec::new(), seen: FxHashSet::default(), attrs: 0, items: 0 };
        match value.as_thunk() {
            Some(_) => printer.place(value, 0),
            None => printer.value(value, value, 0),
        }
        String::from_utf8_lossy(&printer.out).into_owned()
    }

    /// An evaluated value as `nix-instantiate --eval` prints it, without a newline at the end. What is not evaluated shows as
    /// `<CODE>`; with `strict` the caller has evaluated everything in the value.
    ///
    /// # Errors
    /// When the value is nested more deeply than calls may be.
    pub fn print(&self, value: Value<'a>, strict: bool) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut seen = FxHashSet::default();
        // what is asked for is no place that what is in it could refer to
        self.print_value(value.resolved(), None, strict, &mut seen, &mut out)?;
        Ok(out)
    }

    /// A value as JSON, as `nix-instantiate --eval --json` prints it: paths are copied to the store. Without a newline at the
    /// end.
    ///
    /// # Errors
    /// When something in it has no form in JSON, is not evaluated (unless `strict` lets it be), or what evaluating it gives.
    pub fn print_json(&self, value: Value<'a>, strict: bool) -> Result<Vec<u8>> {
        let (mut out, mut context) = (Vec::new(), 0);
        write_json(self, value, strict, &mut out, &mut context, true, Pos::NONE)?;
        Ok(out)
    }

    /// A value as XML, as `nix-instantiate --eval --xml` prints it, the newline at the end included. With `location`
    /// attributes and functions say where they are defined; with `strict` everything is evaluated.
    ///
    /// # Errors
    /// What evaluating it gives.
    pub fn print_xml(&self, value: Value<'a>, strict: bool, location: bool) -> Result<Vec<u8>> {
        let (mut out, mut context) = (Vec::new(), 0);
        write_xml(self, value, strict, location, &mut out, &mut context, Pos::NONE)?;
        Ok(out)
    }

    fn print_place(
        &self,
        handle: Value<'a>,
        strict: bool,
        seen: &mut FxHashSet<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let shown = if strict && handle.as_thunk().is_none() { Seen::Value(handle) } else { look(handle) };
        match shown {
            Seen::Value(value) => {
                self.nested(Pos::NONE, || self.print_value(value, Some(handle), strict, seen, out))?;
            }
            Seen::Unevaluated => out.extend_from_slice(b"<CODE>"),
            Seen::BlackHole => out.extend_from_slice("«potential infinite recursion»".as_bytes()),
        }
        Ok(())
    }

    fn print_value(
        &self,
        value: Value<'a>,
        handle: Option<Value<'a>>,
        strict: bool,
        seen: &mut FxHashSet<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match value.kind() {
            Kind::Attrs(attrs) => {
                if !attrs.is_empty() && !seen.insert(value.address()) {
                    out.extend_from_slice("«repeated»".as_bytes());
                    return Ok(());
                }
                out.extend_from_slice(b"{ ");
                for (name, _, cell) in self.lexicographic(attrs) {
                    write_name(out, self.symbols.text(name));
                    out.extend_from_slice(b" = ");
                    self.print_place(cell.get(), strict, seen, out)?;
                    out.extend_from_slice(b"; ");
                }
                out.push(b'}');
            }
            Kind::List(list) => {
                // A list is known again by the place that it was evaluated in.
                if !list.is_empty() && handle.is_some_and(|handle| !seen.insert(handle.address())) {
                    out.extend_from_slice("«repeated»".as_bytes());
                    return Ok(());
                }
                out.extend_from_slice(b"[ ");
                for element in list.iter() {
                    self.print_place(element, strict, seen, out)?;
                    out.push(b' ');
                }
                out.push(b']');
            }
            Kind::Str(text) => write_string(out, text.bytes()),
            Kind::Lambda(_) => out.extend_from_slice(b"<LAMBDA>"),
            Kind::PrimOp(_) => out.extend_from_slice(b"<PRIMOP>"),
            Kind::PrimOpApp(_) => out.extend_from_slice(b"<PRIMOP-APP>"),
            Kind::Thunk(_) => out.extend_from_slice(b"<CODE>"),
            kind => write_plain(kind, out),
        }
        Ok(())
    }

    /// Fails if two evaluated values, of which the caller knows that they are not equal, differ in a way that can be told:
    /// the error says where they do.
    ///
    /// # Errors
    /// The difference, of kind [`ErrorKind::Assert`], or what evaluating elements gives.
    pub(crate) fn assert_equal(&self, left: Value<'a>, right: Value<'a>) -> Result<()> {
        let differ = |message: String| Err(Error::new(ErrorKind::Assert, Pos::NONE, message));
        let (shown_left, shown_right) = (|| self.show_for_error(left), || self.show_for_error(right));
        let (type_left, type_right) = (self.type_of(left), self.type_of(right));
        match (left.kind(), right.kind()) {
            (Kind::Int(_) | Kind::Float(_), Kind::Int(_) | Kind::Float(_)) => {
                if self.equal_values(left, right, Pos::NONE)? {
                    return Ok(());
                }
                differ(format!(
                    "{type_left} with value '{}' is not equal to {type_right} with value '{}'",
                    shown_left(),
                    shown_right()
                ))
            }
            (Kind::Null, Kind::Null) => Ok(()),
            (Kind::Bool(a), Kind::Bool(b)) if a == b => Ok(()),
            (Kind::Bool(_), Kind::Bool(_)) => {
                differ(format!("boolean '{}' is not equal to boolean '{}'", shown_left(), shown_right()))
            }
            (Kind::Str(a), Kind::Str(b)) if a.bytes() == b.bytes() => Ok(()),
            (Kind::Str(_), Kind::Str(_)) => {
                differ(format!("string '{}' is not equal to string '{}'", shown_left(), shown_right()))
            }
            (Kind::Path(a), Kind::Path(b)) if a.bytes() == b.bytes() => Ok(()),
            (Kind::Path(_), Kind::Path(_)) => {
                differ(format!("path '{}' is not equal to path '{}'", shown_left(), shown_right()))
            }
            (Kind::List(a), Kind::List(b)) if a.len() != b.len() => differ(format!(
                "list of size '{}' is not equal to list of size '{}', left hand side is '{}', right hand side is '{}'",
                a.len(),
                b.len(),
                shown_left(),
                shown_right()
            )),
            (Kind::List(a), Kind::List(b)) => {
                for (index, (a, b)) in a.iter().zip(b.iter()).enumerate() {
                    self.assert_places_equal(a, b)
                        .map_err(|error| error.traced(Pos::NONE, format!("while comparing list element {index}")))?;
                }
                Ok(())
            }
            (Kind::Attrs(a), Kind::Attrs(b)) => self.assert_attrs_equal(a, b),
            (
                Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_),
                Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_),
            ) => differ(
                "distinct functions and immediate comparisons of identical functions compare as unequal".to_owned(),
            ),
            _ => differ(format!(
                "{type_left} of value '{}' is not equal to {type_right} of value '{}'",
                shown_left(),
                shown_right()
            )),
        }
    }

    fn assert_places_equal(&self, left: Value<'a>, right: Value<'a>) -> Result<()> {
        self.nested(Pos::NONE, || {
            let (forced_left, forced_right) = (self.force(left)?, self.force(right)?);
            // The same function in the same place is equal to itself, which only this comparison sees.
            if matches!(forced_left.kind(), Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_))
                && self.equal(left, right, Pos::NONE)?
            {
                return Ok(());
            }
            self.assert_equal(forced_left, forced_right)
        })
    }

    fn assert_attrs_equal(&self, left: Attrs<'a>, right: Attrs<'a>) -> Result<()> {
        if Value::from(left).same(right.into()) {
            return Ok(());
        }
        if self.is_derivation(left)?
            && self.is_derivation(right)?
            && let (Some(a), Some(b)) = (left.get(sym::OUT_PATH), right.get(sym::OUT_PATH))
        {
            return self
                .assert_places_equal(a.get(), b.get())
                .map_err(|error| error.traced(Pos::NONE, "while comparing a derivation by its 'outPath' attribute"));
        }
        let (a, b) = (self.heap.flat(left), self.heap.flat(right));
        let show = |attrs: Attrs<'a>| self.show_for_error(attrs.into());
        if a.len() != b.len() {
            let message = format!(
                "attribute names of attribute set '{}' differs from attribute set '{}'",
                show(left),
                show(right)
            );
            return Err(Error::new(ErrorKind::Assert, Pos::NONE, message));
        }
        for ((a_name, a_pos, a_cell), (b_name, b_pos, b_cell)) in a.iter().zip(b.iter()) {
            if a_name != b_name {
                let message = if right.get(a_name).is_none() {
                    format!(
                        "attribute name '{}' is contained in '{}', but not in '{}'",
                        self.attr_name(a_name),
                        show(left),
                        show(right)
                    )
                } else {
                    format!(
                        "attribute name '{}' is missing in '{}', but is contained in '{}'",
                        self.attr_name(b_name),
                        show(left),
                        show(right)
                    )
                };
                return Err(Error::new(ErrorKind::Assert, Pos::NONE, message));
            }
            self.assert_places_equal(a_cell.get(), b_cell.get()).map_err(|mut error| {
                if b_pos != Pos::NONE {
                    error = error.traced(b_pos, "where right hand side is");
                }
                if a_pos != Pos::NONE {
                    error = error.traced(a_pos, "where left hand side is");
                }
                error.traced(Pos::NONE, format!("while comparing attribute '{}'", self.attr_name(a_name)))
            })?;
        }
        Ok(())
    }

    /// What a string refers to, as messages name it.
    pub(crate) fn show_context_element(&self, element: &Element) -> String {
        let store = self.store.as_str();
        match element {
            Element::Opaque(path) => format!("{store}/{path}"),
            Element::DrvDeep(path) => format!("{store}/{path} (deep)"),
            Element::Built { drv, output } => format!("{}^{output}", self.show_derived(drv)),
        }
    }

    /// A derivation as error messages show it.
    pub(crate) fn show_derived(&self, derived: &Derived) -> String {
        match derived {
            Derived::Path(path) => format!("{}/{path}", self.store.as_str()),
            Derived::Output(drv, output) => format!("{}^{output}", self.show_derived(drv)),
        }
    }
}

/// Writes a value that looks the same wherever it is printed.
fn write_plain(kind: Kind<'_>, out: &mut Vec<u8>) {
    match kind {
        Kind::Null => out.extend_from_slice(b"null"),
        Kind::Bool(true) => out.extend_from_slice(b"true"),
        Kind::Bool(false) => out.extend_from_slice(b"false"),
        Kind::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Kind::Float(number) => write_float(out, number),
        Kind::Path(path) => out.extend_from_slice(path.bytes()),
        Kind::Str(_) | Kind::List(_) | Kind::Attrs(_) => {}
        Kind::Thunk(_) | Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_) => {}
    }
}

/// Prints values for messages.
struct MessagePrinter<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    limits: Limits,
    out: Vec<u8>,
    seen: FxHashSet<usize>,
    /// Attributes printed so far, in all sets together.
    attrs: usize,
    /// List items printed so far, in all lists together.
    items: usize,
}

impl<'a> MessagePrinter<'_, 'a> {
    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn elided(&mut self, count: usize, one: &str, many: &str) {
        let unit = if count == 1 { one } else { many };
        self.text(&format!("«{count} {unit} elided»"));
    }

    fn place(&mut self, handle: Value<'a>, depth: usize) {
        match look(handle) {
            Seen::Value(value) => self.value(value, handle, depth),
            Seen::Unevaluated => self.text("«thunk»"),
            Seen::BlackHole => self.text("«potential infinite recursion»"),
        }
    }

    fn value(&mut self, value: Value<'a>, handle: Value<'a>, depth: usize) {
        match value.kind() {
            Kind::Str(text) => write_string_limited(&mut self.out, text.bytes(), self.limits.bytes),
            Kind::Attrs(attrs) => {
                if !self.seen.insert(value.address()) {
                    self.text("«repeated»");
                } else if depth < self.limits.depth {
                    self.attrs(attrs, depth);
                } else {
                    self.text("{ ... }");
                }
            }
            Kind::List(list) => {
                if !list.is_empty() && !self.seen.insert(handle.address()) {
                    self.text("«repeated»");
                } else if depth < self.limits.depth {
                    self.list(list, depth);
                } else {
                    self.text("[ ... ]");
                }
            }
            Kind::Lambda(closure) => {
                let name = closure.lambda().name.map(|name| format!(" {}", self.evaluator.name(name)));
                let pos = self.evaluator.show_pos(closure.lambda().pos);
                self.text(&format!("«lambda{} @ {pos}»", name.unwrap_or_default()));
            }
            Kind::PrimOp(index) => self.text(&format!("«primop {}»", crate::builtins::get(index).short_name())),
            Kind::PrimOpApp(app) => {
                self.text(&format!("«partially applied primop {}»", crate::builtins::get(app.prim_op).short_name()));
            }
            Kind::Thunk(_) => self.text("«thunk»"),
            kind => write_plain(kind, &mut self.out),
        }
    }

    fn attrs(&mut self, attrs: Attrs<'a>, depth: usize) {
        let mut entries = self.evaluator.lexicographic(attrs);
        // Where not everything is shown, what says the most about a set comes first.
        if self.limits.attrs < usize::MAX {
            entries.sort_by_key(|(name, _, _)| !matches!(self.evaluator.symbols.text(*name), b"type" | b"_type"));
        }
        self.text("{");
        for (index, (name, _, cell)) in entries.iter().enumerate() {
            self.text(" ");
            if self.attrs >= self.limits.attrs {
                self.elided(entries.len() - index, "attribute", "attributes");
                break;
            }
            write_name(&mut self.out, self.evaluator.symbols.text(*name));
            self.text(" = ");
            self.place(cell.get(), depth + 1);
            self.text(";");
            self.attrs += 1;
        }
        self.text(" }");
    }

    fn list(&mut self, list: List<'a>, depth: usize) {
        self.text("[");
        for (index, element) in list.iter().enumerate() {
            self.text(" ");
            if self.items >= self.limits.items {
                self.elided(list.len() - index, "item", "items");
                break;
            }
            self.place(element, depth + 1);
            self.items += 1;
        }
        self.text(" ]");
    }
}
