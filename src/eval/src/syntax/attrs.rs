//! The bindings of attribute sets and of `let`, and how Nix merges those that share a name.

use super::ast::{AttrDef, AttrKind, AttrName, Attrs, DynamicAttrDef, Expr, NO_POS, Node, Pos};
use super::error::{ParseError, Result, fail};
use super::parser::Parser;
use super::show::show_identifier;
use super::strings::Text;
use super::token::Token;
use crate::symbol::Symbol;
use bumpalo::collections::Vec as BumpVec;
use hashbrown::{HashMap, HashSet};
use rustc_hash::FxBuildHasher;
use std::cell::{Cell, RefCell};

/// Up to this many attributes are searched one by one, more are indexed.
const SMALL: usize = 24;

/// The bindings that are being read. A set's own attributes wait on these stacks until its end, so that a large set is
/// allocated once; what lies below them (`a.b = …`) is a finished set already.
#[derive(Default)]
pub(super) struct Bindings<'p> {
    attrs: Vec<AttrDef<'p>>,
    dynamic: Vec<DynamicAttrDef<'p>>,
    inherit_from: Vec<Node<'p>>,
    /// The names of an `inherit` that is being read.
    inherited: Vec<(Symbol, Pos)>,
    frames: u64,
    /// Where an attribute of a large set stands; the set is named by [`Target::key`].
    index: HashMap<(u64, Symbol), u32, FxBuildHasher>,
    /// The finished sets that are in the index.
    indexed: HashSet<u64, FxBuildHasher>,
    moved: HashMap<usize, Moved<'p>, FxBuildHasher>,
}

/// An [`Expr::InheritFrom`] that a merge has moved to another set.
struct Moved<'p> {
    from: &'p Cell<u32>,
    /// The set that it is in now.
    set: &'p Attrs<'p>,
    /// Where its expression really is in that set.
    index: u32,
}

/// A set that is being read: where its part of each stack starts.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    attrs: usize,
    dynamic: usize,
    inherit_from: usize,
    number: u64,
}

/// Where an attribute is put.
#[derive(Clone, Copy)]
enum Target<'p> {
    Frame(Frame),
    Set(&'p Attrs<'p>),
}

impl Target<'_> {
    /// A number that no other target has: odd for frames, an (even) address for sets.
    fn key(self) -> u64 {
        match self {
            Target::Frame(frame) => frame.number << 1 | 1,
            Target::Set(set) => std::ptr::from_ref(set).addr() as u64,
        }
    }
}

impl<'p> Bindings<'p> {
    /// Starts a set.
    pub(super) fn open(&mut self) -> Frame {
        self.frames += 1;
        Frame {
            attrs: self.attrs.len(),
            dynamic: self.dynamic.len(),
            inherit_from: self.inherit_from.len(),
            number: self.frames,
        }
    }

    /// The position and the value of an attribute.
    fn find(&mut self, target: Target<'p>, name: Symbol) -> Option<(Pos, Node<'p>)> {
        let key = target.key();
        let set;
        let attrs = match target {
            Target::Frame(frame) => &self.attrs[frame.attrs..],
            Target::Set(attrs) => {
                set = attrs.attrs.borrow();
                if set.len() > SMALL && self.indexed.insert(key) {
                    self.index.extend(set.iter().enumerate().map(|(n, def)| ((key, def.name), n as u32)));
                }
                &set[..]
            }
        };
        let found = if attrs.len() <= SMALL {
            attrs.iter().find(|def| def.name == name)
        } else {
            self.index.get(&(key, name)).map(|&n| &attrs[n as usize])
        };
        found.map(|def| (def.pos, def.value))
    }

    /// Adds an attribute that isn't there yet.
    fn push(&mut self, target: Target<'p>, def: AttrDef<'p>) {
        let key = target.key();
        let name = def.name;
        match target {
            Target::Frame(frame) => {
                self.attrs.push(def);
                let attrs = &self.attrs[frame.attrs..];
                if attrs.len() == SMALL + 1 {
                    self.index.extend(attrs.iter().enumerate().map(|(n, def)| ((key, def.name), n as u32)));
                } else if attrs.len() > SMALL {
                    self.index.insert((key, name), attrs.len() as u32 - 1);
                }
            }
            Target::Set(set) => {
                let mut attrs = set.attrs.borrow_mut();
                if self.indexed.contains(&key) {
                    self.index.insert((key, name), attrs.len() as u32);
                }
                attrs.push(def);
            }
        }
    }

    fn push_dynamic(&mut self, target: Target<'p>, def: DynamicAttrDef<'p>) {
        match target {
            Target::Frame(_) => self.dynamic.push(def),
            Target::Set(set) => set.dynamic.borrow_mut().push(def),
        }
    }

    /// Notes the sources of `inherit (e) …` that go from `set` to `into`, and moves their indices as Nix does: by the number of
    /// sources before them *for each attribute* that they give, which is too far if there are several. Where that leads to
    /// another source, Nix's result is that one's.
    fn move_inherit_from(&mut self, set: &'p Attrs<'p>, into: &'p Attrs<'p>) {
        let before = into.inherit_from.borrow().len() as u32;
        if before == 0 && self.moved.is_empty() {
            return;
        }
        for def in set.attrs.borrow().iter().filter(|def| def.kind == AttrKind::InheritedFrom) {
            let Expr::Select { subject: Expr::InheritFrom { index, .. }, .. } = def.value else { continue };
            let right = index.get();
            let moved =
                self.moved.entry(std::ptr::from_ref(index).addr()).or_insert(Moved { from: index, set, index: right });
            if !std::ptr::eq(moved.set, into) {
                moved.set = into;
                moved.index += before;
            }
            index.set(index.get().saturating_add(before));
        }
    }

    /// Nix stops with a failed assertion if an index has been moved beyond the last source; here it is put right.
    pub(super) fn finish(&mut self) {
        for moved in self.moved.values() {
            if moved.from.get() as usize >= moved.set.inherit_from.borrow().len() {
                moved.from.set(moved.index);
            }
        }
    }
}

/// Gives a function the name of the attribute that it is the value of, and also the functions that it returns directly.
fn set_name(mut value: Node<'_>, name: Symbol) {
    while let Expr::Lambda(lambda) = value {
        lambda.name.set(Some(name));
        value = lambda.body;
    }
}

impl<'p> Parser<'p, '_, '_> {
    /// An empty set.
    pub(super) fn new_set(&self, pos: Pos) -> &'p Attrs<'p> {
        self.arena.alloc(Attrs {
            pos: Cell::new(pos),
            recursive: Cell::new(false),
            attrs: RefCell::new(BumpVec::new_in(self.arena)),
            dynamic: RefCell::new(BumpVec::new_in(self.arena)),
            inherit_from: RefCell::new(BumpVec::new_in(self.arena)),
        })
    }

    /// Makes a set of what has been bound since `frame` was opened.
    pub(super) fn close_set(&mut self, frame: Frame, pos: Pos, recursive: bool) -> &'p Attrs<'p> {
        let arena = self.arena;
        let bindings = &mut self.bindings;
        arena.alloc(Attrs {
            pos: Cell::new(pos),
            recursive: Cell::new(recursive),
            attrs: RefCell::new(BumpVec::from_iter_in(bindings.attrs.drain(frame.attrs..), arena)),
            dynamic: RefCell::new(BumpVec::from_iter_in(bindings.dynamic.drain(frame.dynamic..), arena)),
            inherit_from: RefCell::new(BumpVec::from_iter_in(bindings.inherit_from.drain(frame.inherit_from..), arena)),
        })
    }

    /// `binds`: as many bindings as there are. The name that the first one starts with may have been read already.
    /// Sets the height to that of a set with these bindings.
    pub(super) fn binds(&mut self, frame: Frame, mut first: Option<(Pos, Symbol)>) -> Result<()> {
        let mut height = 0;
        loop {
            match self.token() {
                _ if first.is_some() => {}
                Token::Id | Token::OrKeyword | Token::Quote | Token::DollarCurly => {}
                Token::Inherit => {
                    self.inherit(frame)?;
                    height = height.max(self.height);
                    continue;
                }
                _ => break,
            }
            let pos = first.map_or_else(|| self.lexer.pos(), |(pos, _)| pos);
            let base = self.names.len();
            self.attr_names(first.take().map(|(_, name)| name))?;
            height = height.max(self.height);
            if self.token() != Token::Equals {
                return self.unexpected(&[Token::Dot, Token::Equals]);
            }
            self.advance()?;
            let value = self.expr()?;
            // a path of several names puts the value into as many sets
            self.grow(self.height, (self.names.len() - base) as u32 - 1)?;
            height = height.max(self.height);
            self.require(Token::Semicolon)?;
            self.bind(frame, base, pos, value)?;
            self.names.truncate(base);
            self.advance()?;
        }
        self.grow(height, 1)
    }

    /// `attrpath`, onto the stack of names; the first name may have been read already. Sets the height to that of the highest
    /// dynamic name.
    pub(super) fn attr_names(&mut self, mut first: Option<Symbol>) -> Result<()> {
        let mut height = 0;
        loop {
            let name = match first.take() {
                Some(name) => AttrName::Static(name),
                None => match self.token() {
                    Token::Id | Token::OrKeyword | Token::Quote | Token::DollarCurly => self.attr_name()?,
                    _ => {
                        return self.unexpected(&[Token::Id, Token::OrKeyword, Token::DollarCurly, Token::Quote]);
                    }
                },
            };
            if let AttrName::Dynamic(_) = name {
                height = height.max(self.height);
            }
            self.names.push(name);
            if self.token() != Token::Dot {
                self.height = height;
                return Ok(());
            }
            self.advance()?;
        }
    }

    /// One name, which the current token starts.
    fn attr_name(&mut self) -> Result<AttrName<'p>> {
        match self.token() {
            Token::Quote => match self.string()? {
                Text::Source(text) => Ok(AttrName::Static(self.intern(text))),
                Text::Buffer => Ok(AttrName::Static(self.intern(&self.buffer))),
                Text::Node(node) => Ok(AttrName::Dynamic(node)),
            },
            Token::DollarCurly => {
                self.advance()?;
                let node = self.expr()?;
                self.expect(Token::BraceClose)?;
                match node {
                    Expr::Str(text) => Ok(AttrName::Static(self.intern(text))),
                    _ => Ok(AttrName::Dynamic(node)),
                }
            }
            _ => {
                let name = self.intern(self.lexer.text());
                self.advance()?;
                Ok(AttrName::Static(name))
            }
        }
    }

    /// `inherit …;` and `inherit (e) …;`
    fn inherit(&mut self, frame: Frame) -> Result<()> {
        self.advance()?;
        let mut height = 0;
        let mut from = None;
        if self.token() == Token::ParenOpen {
            self.advance()?;
            let pos = self.lexer.pos();
            from = Some((pos, self.expr()?));
            height = self.height;
            self.expect(Token::ParenClose)?;
        }
        let base = self.bindings.inherited.len();
        while self.token() != Token::Semicolon {
            let pos = self.lexer.pos();
            match self.token() {
                Token::Id | Token::OrKeyword | Token::Quote | Token::DollarCurly => {}
                _ => return self.unexpected(&[]),
            }
            match self.attr_name()? {
                AttrName::Static(name) => self.bindings.inherited.push((name, pos)),
                AttrName::Dynamic(_) => return fail(pos, "dynamic attributes not allowed in inherit"),
            }
        }
        let source = from.map(|(pos, node)| {
            let index = (self.bindings.inherit_from.len() - frame.inherit_from) as u32;
            self.bindings.inherit_from.push(node);
            // one node for all the names: see `move_inherit_from`
            self.node(Expr::InheritFrom { pos, index: Cell::new(index) })
        });
        for n in base..self.bindings.inherited.len() {
            let (name, pos) = self.bindings.inherited[n];
            let target = Target::Frame(frame);
            if let Some((previous, _)) = self.bindings.find(target, name) {
                return self.duplicate(&[AttrName::Static(name)], pos, previous);
            }
            let (kind, value) = match source {
                None => (AttrKind::Inherited, self.node(Expr::Var { pos, name })),
                Some(subject) => {
                    let path = self.arena.alloc_slice_copy(&[AttrName::Static(name)]);
                    (AttrKind::InheritedFrom, self.node(Expr::Select { pos, subject, path, default: None }))
                }
            };
            self.bindings.push(target, AttrDef { name, pos, kind, value });
        }
        self.bindings.inherited.truncate(base);
        self.advance()?;
        self.grow(height.max(1), 0)
    }

    /// Binds `value` to the path of names from `base` on.
    fn bind(&mut self, frame: Frame, base: usize, pos: Pos, value: Node<'p>) -> Result<()> {
        let mut target = Target::Frame(frame);
        let last = self.names.len() - 1;
        for n in base..last {
            let existing = match self.names[n] {
                AttrName::Static(name) => self.bindings.find(target, name),
                AttrName::Dynamic(_) => None,
            };
            let set = match existing {
                Some((_, Expr::Attrs(set))) => *set,
                Some((previous, _)) => return self.duplicate(&self.names[base..=n], pos, previous),
                None => {
                    let set = self.new_set(NO_POS);
                    let value = self.node(Expr::Attrs(set));
                    match self.names[n] {
                        AttrName::Static(name) => {
                            self.bindings.push(target, AttrDef { name, pos, kind: AttrKind::Plain, value });
                        }
                        AttrName::Dynamic(name) => {
                            self.bindings.push_dynamic(target, DynamicAttrDef { name, value, pos });
                        }
                    }
                    set
                }
            };
            target = Target::Set(set);
        }
        match self.names[last] {
            AttrName::Static(name) => self.insert(target, base, AttrDef { name, pos, kind: AttrKind::Plain, value }),
            AttrName::Dynamic(name) => {
                self.bindings.push_dynamic(target, DynamicAttrDef { name, value, pos });
                Ok(())
            }
        }
    }

    /// Adds an attribute; if there is one of its name, both must be sets, which become one. The path to it, for messages, is
    /// what stands on the stack of names from `base` on.
    fn insert(&mut self, target: Target<'p>, base: usize, def: AttrDef<'p>) -> Result<()> {
        match (self.bindings.find(target, def.name), def.value) {
            (None, _) => {
                set_name(def.value, def.name);
                self.bindings.push(target, def);
                Ok(())
            }
            (Some((_, Expr::Attrs(into))), Expr::Attrs(set)) => self.merge(into, set, base),
            (Some((previous, _)), _) => self.duplicate(&self.names[base..], def.pos, previous),
        }
    }

    /// Moves everything from `set` into `into`. Whether `set` is recursive is forgotten, as in Nix.
    fn merge(&mut self, into: &'p Attrs<'p>, set: &'p Attrs<'p>, base: usize) -> Result<()> {
        self.bindings.move_inherit_from(set, into);
        let mut attrs: Vec<AttrDef<'p>> = set.attrs.borrow_mut().drain(..).collect();
        // Nix goes through them by symbol; it decides which of several duplicates is reported
        attrs.sort_unstable_by_key(|def| def.name);
        for def in attrs {
            self.names.push(AttrName::Static(def.name));
            self.insert(Target::Set(into), base, def)?;
            self.names.pop();
        }
        into.dynamic.borrow_mut().append(&mut set.dynamic.borrow_mut());
        into.inherit_from.borrow_mut().append(&mut set.inherit_from.borrow_mut());
        Ok(())
    }

    #[cold]
    fn duplicate(&self, path: &[AttrName<'p>], pos: Pos, previous: Pos) -> Result<()> {
        let mut text = Vec::new();
        for (n, name) in path.iter().enumerate() {
            if n > 0 {
                text.push(b'.');
            }
            // below a dynamic name everything is new, so that nothing there can be a duplicate
            if let AttrName::Static(name) = name {
                show_identifier(self.symbols.text(*name), &mut text);
            }
        }
        let message = format!("attribute '{}' already defined", String::from_utf8_lossy(&text));
        Err(Box::new(ParseError { pos, message, previous: Some(previous) }))
    }
}
