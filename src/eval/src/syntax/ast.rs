//! The syntax tree, already desugared the way C++ Nix's parser does it.
//!
//! A tree lives in the parser's arena only until names are resolved; see the `resolve` module.

use crate::symbol::Symbol;
use bumpalo::collections::Vec as BumpVec;
use std::cell::{Cell, RefCell};

/// A byte offset into the file, or [`NO_POS`] for what the parser made up.
pub type Pos = u32;

/// No position.
pub const NO_POS: Pos = u32::MAX;

/// A reference to a node.
pub type Node<'p> = &'p Expr<'p>;

/// One expression. Operators that Nix desugars to calls of `__sub`, `__lessThan`, `__mul`, `__div`, `__findFile` are calls
/// here too (through a plain [`Expr::Var`], so that a user's definition of these names wins as it does in Nix).
pub enum Expr<'p> {
    /// An integer literal.
    Int(i64),
    /// A floating-point literal.
    Float(f64),
    /// A string without interpolation (also an indented one and a URI).
    Str(&'p [u8]),
    /// A path literal, made absolute against the file's directory; may end in `/` as first part of an interpolated path.
    Path(&'p [u8]),
    /// A variable; `pos` is [`NO_POS`] for the names that the parser made up.
    Var { pos: Pos, name: Symbol },
    /// `__curPos`.
    CurPos(Pos),
    /// `subject.a.b or default`.
    Select { pos: Pos, subject: Node<'p>, path: &'p [AttrName<'p>], default: Option<Node<'p>> },
    /// `subject ? a.b`.
    HasAttr { subject: Node<'p>, path: &'p [AttrName<'p>] },
    /// `{ … }` and `rec { … }`.
    Attrs(&'p Attrs<'p>),
    /// `[ … ]`.
    List(&'p [Node<'p>]),
    /// A function.
    Lambda(&'p Lambda<'p>),
    /// A call with one or more arguments: `f a b` is one node.
    Call { pos: Pos, function: Node<'p>, args: &'p [Node<'p>] },
    /// `let … in body`; the bindings are recursive, never dynamic.
    Let { bindings: &'p Attrs<'p>, body: Node<'p> },
    /// `with scope; body`.
    With { pos: Pos, scope: Node<'p>, body: Node<'p> },
    /// `if condition then … else …`.
    If { pos: Pos, condition: Node<'p>, then: Node<'p>, otherwise: Node<'p> },
    /// `assert condition; body`.
    Assert { pos: Pos, condition: Node<'p>, body: Node<'p> },
    /// `!e`.
    Not(Node<'p>),
    /// `==`, `!=`, `&&`, `||`, `->`, `//`, `++`; `pos` is the operator's ([`NO_POS`] for `==` and `!=`, as in Nix).
    Binary { pos: Pos, op: BinaryOp, left: Node<'p>, right: Node<'p> },
    /// String interpolation (`force_string`), path interpolation and `+`; each part with its position.
    ConcatStrings { pos: Pos, force_string: bool, parts: &'p [(Pos, Node<'p>)] },
    /// The `from` of `inherit (from) …`: index into [`Attrs::inherit_from`] of the attribute set that it stands in.
    /// A cell, because merging two sets moves the indices. Occurs only as the subject of a [`Expr::Select`].
    InheritFrom { pos: Pos, index: Cell<u32> },
}

/// The binary operators that stay operators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BinaryOp {
    /// `==`
    Eq,
    /// `!=`
    NotEq,
    /// `&&`
    And,
    /// `||`
    Or,
    /// `->`
    Impl,
    /// `//`
    Update,
    /// `++`
    ConcatLists,
}

/// One step of an attribute path.
#[derive(Clone, Copy)]
pub enum AttrName<'p> {
    /// `a` or `"a"`.
    Static(Symbol),
    /// `${e}` or an interpolated string.
    Dynamic(Node<'p>),
}

/// How an attribute was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttrKind {
    /// `a = e;`
    Plain,
    /// `inherit a;`: the value is a [`Expr::Var`] that is looked up *outside* of the set.
    Inherited,
    /// `inherit (e) a;`: the value is a [`Expr::Select`] from a [`Expr::InheritFrom`].
    InheritedFrom,
}

/// A static attribute.
pub struct AttrDef<'p> {
    /// Its name.
    pub name: Symbol,
    /// Where its attribute path starts.
    pub pos: Pos,
    /// How it was written.
    pub kind: AttrKind,
    /// Its value.
    pub value: Node<'p>,
}

/// `${name} = value;`
pub struct DynamicAttrDef<'p> {
    /// The name's expression.
    pub name: Node<'p>,
    /// The value.
    pub value: Node<'p>,
    /// Where the attribute path starts.
    pub pos: Pos,
}

/// An attribute set or the bindings of a `let`, duplicates merged or rejected as Nix does. Cells, because the parser
/// still merges into a set that it has already handed out; whoever reads the finished tree only reads.
pub struct Attrs<'p> {
    /// The position of the brace ([`NO_POS`] for sets that an attribute path implied).
    pub pos: Cell<Pos>,
    /// `rec { … }` or `let { … }`.
    pub recursive: Cell<bool>,
    /// Static attributes in the order in which Nix keeps them does not matter here; no name occurs twice.
    pub attrs: RefCell<BumpVec<'p, AttrDef<'p>>>,
    /// Dynamic attributes, in order.
    pub dynamic: RefCell<BumpVec<'p, DynamicAttrDef<'p>>>,
    /// The `e` of each `inherit (e) …`, in order; they are evaluated inside the set's scope if it is recursive.
    pub inherit_from: RefCell<BumpVec<'p, Node<'p>>>,
}

/// A function.
pub struct Lambda<'p> {
    /// The position of its first token.
    pub pos: Pos,
    /// The name that an attribute or a `let` gave to it, for messages.
    pub name: Cell<Option<Symbol>>,
    /// `x:` or the `x` of `x@{ … }:`.
    pub arg: Option<Symbol>,
    /// `{ … }:`.
    pub formals: Option<&'p Formals<'p>>,
    /// The body.
    pub body: Node<'p>,
}

/// The formal arguments of a `{ … }:` function.
pub struct Formals<'p> {
    /// In source order; no name occurs twice.
    pub formals: &'p [Formal<'p>],
    /// Whether `...` was written.
    pub ellipsis: bool,
}

/// One formal argument.
pub struct Formal<'p> {
    /// Its position.
    pub pos: Pos,
    /// Its name.
    pub name: Symbol,
    /// `? default`.
    pub default: Option<Node<'p>>,
}
