//! The tree that is evaluated: names resolved to slots, constants made values.

use crate::symbol::Symbol;
use crate::value::{Keys, Pos, Value};

/// One expression, in two words.
#[derive(Clone, Copy)]
pub enum Expr<'a> {
    /// A literal or a builtin.
    Const(Value<'a>),
    /// A variable of the innermost environment: its slot.
    Local(Pos, u32),
    /// A variable further out.
    Var(&'a VarExpr),
    /// A variable that some `with` may bring.
    WithVar(&'a WithVarExpr<'a>),
    /// `subject.name` with one static name and no default.
    Select(&'a SelectExpr<'a>),
    /// Any other selection.
    SelectPath(&'a SelectPathExpr<'a>),
    /// `subject ? path`
    HasAttr(&'a HasAttrExpr<'a>),
    /// An attribute set without `rec`, dynamic names and `inherit (e)`.
    PlainAttrs(&'a PlainAttrsExpr<'a>),
    /// Any other attribute set.
    Attrs(&'a AttrsExpr<'a>),
    /// `[ … ]`
    List(&'a ListExpr<'a>),
    /// A function.
    Lambda(&'a LambdaExpr<'a>),
    /// `f a b`
    Call(&'a CallExpr<'a>),
    /// `let … in …`
    Let(&'a LetExpr<'a>),
    /// `with …; …`
    With(&'a WithExpr<'a>),
    /// `if … then … else …`
    If(Pos, &'a [Expr<'a>; 3]),
    /// `assert …; …`
    Assert(&'a AssertExpr<'a>),
    /// `!e`
    Not(&'a Expr<'a>),
    /// `a == b`
    Eq(Pos, &'a [Expr<'a>; 2]),
    /// `a != b`
    NotEq(Pos, &'a [Expr<'a>; 2]),
    /// `a && b`
    And(Pos, &'a [Expr<'a>; 2]),
    /// `a || b`
    Or(Pos, &'a [Expr<'a>; 2]),
    /// `a -> b`
    Impl(Pos, &'a [Expr<'a>; 2]),
    /// `a // b`
    Update(Pos, &'a [Expr<'a>; 2]),
    /// `a ++ b`
    ConcatLists(Pos, &'a [Expr<'a>; 2]),
    /// Interpolation, or `+`.
    ConcatStrings(&'a ConcatStringsExpr<'a>),
    /// `__curPos`
    CurPos(Pos),
}

impl Expr<'_> {
    /// Where it stands, as far as it is known (C++ Nix's `getPos`).
    pub fn pos(&self) -> Pos {
        match *self {
            Expr::Const(_) | Expr::Let(_) => Pos::NONE,
            Expr::Local(pos, _) | Expr::CurPos(pos) | Expr::If(pos, _) => pos,
            Expr::Var(variable) => variable.pos,
            Expr::WithVar(variable) => variable.pos,
            Expr::Select(select) => select.pos,
            Expr::SelectPath(select) => select.pos,
            Expr::HasAttr(has) => has.subject.pos(),
            Expr::PlainAttrs(set) => set.pos,
            Expr::Attrs(set) => set.pos,
            Expr::List(list) => list.items.first().map_or(Pos::NONE, Expr::pos),
            Expr::Lambda(lambda) => lambda.pos,
            Expr::Call(call) => call.pos,
            Expr::With(with) => with.pos,
            Expr::Assert(assert) => assert.pos,
            Expr::Not(operand) => operand.pos(),
            Expr::Eq(pos, _) | Expr::NotEq(pos, _) | Expr::And(pos, _) | Expr::Or(pos, _) | Expr::Impl(pos, _) => pos,
            Expr::Update(pos, _) | Expr::ConcatLists(pos, _) => pos,
            Expr::ConcatStrings(concat) => concat.pos,
        }
    }
}

/// A variable further out.
pub struct VarExpr {
    /// Where it stands.
    pub pos: Pos,
    /// How many environments out.
    pub level: u32,
    /// Which slot there.
    pub slot: u32,
}

/// A variable that no scope binds, inside of at least one `with`.
pub struct WithVarExpr<'a> {
    /// Where it stands.
    pub pos: Pos,
    /// Its name.
    pub name: Symbol,
    /// How many environments out the innermost `with` is.
    pub level: u32,
    /// That `with`.
    pub with: &'a WithScope<'a>,
}

/// What a `with` knows of the one around it.
pub struct WithScope<'a> {
    /// Where it starts.
    pub pos: Pos,
    /// How many environments further out the next `with` is, and that one.
    pub outer: Option<(u32, &'a WithScope<'a>)>,
}

/// `subject.name`
pub struct SelectExpr<'a> {
    /// Where the selection starts.
    pub pos: Pos,
    /// The name.
    pub name: Symbol,
    /// What it is selected from.
    pub subject: Expr<'a>,
}

/// A step of an attribute path.
#[derive(Clone, Copy)]
pub enum Name<'a> {
    /// A name.
    Static(Symbol),
    /// An expression that gives one.
    Dynamic(Expr<'a>),
}

/// `subject.a.b or default`
pub struct SelectPathExpr<'a> {
    /// Where the selection starts.
    pub pos: Pos,
    /// What it is selected from.
    pub subject: Expr<'a>,
    /// The names.
    pub path: &'a [Name<'a>],
    /// After `or`.
    pub default: Option<Expr<'a>>,
}

/// `subject ? a.b`
pub struct HasAttrExpr<'a> {
    /// What is asked.
    pub subject: Expr<'a>,
    /// The names.
    pub path: &'a [Name<'a>],
}

/// `{ a = …; b = …; }`
pub struct PlainAttrsExpr<'a> {
    /// Where it starts.
    pub pos: Pos,
    /// Names and positions, sorted by symbol.
    pub keys: Keys<'a>,
    /// Their values.
    pub values: &'a [Expr<'a>],
}

/// Which environment an attribute's value is evaluated in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The set's own (for `rec`), else the one around it.
    Inner,
    /// The one around it: `inherit x;`.
    Outer,
    /// The one that holds the sources of `inherit (e) …`.
    Sources,
}

/// An attribute set of any kind.
pub struct AttrsExpr<'a> {
    /// Where it starts.
    pub pos: Pos,
    /// Whether the attributes see each other. Then slot `i` of the set's environment is attribute `i`.
    pub recursive: bool,
    /// Names and positions of the static attributes, sorted by symbol.
    pub keys: Keys<'a>,
    /// Their values.
    pub values: &'a [(Scope, Expr<'a>)],
    /// The `e` of each `inherit (e)`; they make an environment of their own inside the set's.
    pub sources: &'a [Expr<'a>],
    /// Dynamic attributes: position, name, value.
    pub dynamic: &'a [(Pos, Expr<'a>, Expr<'a>)],
    /// The index of `__overrides`, if the set is recursive and has one.
    pub overrides: Option<u32>,
}

/// `[ … ]`
pub struct ListExpr<'a> {
    /// The elements.
    pub items: &'a [Expr<'a>],
}

/// A function.
pub struct LambdaExpr<'a> {
    /// Where it starts.
    pub pos: Pos,
    /// The name of what it was bound to.
    pub name: Option<Symbol>,
    /// The name of the whole argument; it has slot 0 then.
    pub arg: Option<Symbol>,
    /// The formal arguments; they take the slots after that.
    pub formals: Option<FormalsExpr<'a>>,
    /// The body.
    pub body: Expr<'a>,
}

/// `{ a, b ? 1, ... }`
pub struct FormalsExpr<'a> {
    /// Sorted by symbol.
    pub formals: &'a [FormalExpr<'a>],
    /// Whether more arguments are allowed.
    pub ellipsis: bool,
}

/// A formal argument.
pub struct FormalExpr<'a> {
    /// Its name.
    pub name: Symbol,
    /// Where it stands.
    pub pos: Pos,
    /// Its default.
    pub default: Option<Expr<'a>>,
}

/// `f a b`
pub struct CallExpr<'a> {
    /// Where the call starts.
    pub pos: Pos,
    /// The function.
    pub function: Expr<'a>,
    /// The arguments.
    pub args: &'a [Expr<'a>],
}

/// `let … in …`: slot `i` is binding `i`.
pub struct LetExpr<'a> {
    /// The bindings' values.
    pub values: &'a [(Scope, Expr<'a>)],
    /// The `e` of each `inherit (e)`.
    pub sources: &'a [Expr<'a>],
    /// The body.
    pub body: Expr<'a>,
}

/// `with scope; body`
pub struct WithExpr<'a> {
    /// Where it starts.
    pub pos: Pos,
    /// The attribute set.
    pub scope: Expr<'a>,
    /// The body.
    pub body: Expr<'a>,
}

/// `assert condition; body`
pub struct AssertExpr<'a> {
    /// Where it starts.
    pub pos: Pos,
    /// The condition.
    pub condition: Expr<'a>,
    /// The body.
    pub body: Expr<'a>,
    /// The condition's text as Nix prints it.
    pub text: &'a [u8],
}

/// Interpolation, or `+`.
pub struct ConcatStringsExpr<'a> {
    /// Where it stands.
    pub pos: Pos,
    /// Whether the result is a string whatever the first part is.
    pub force_string: bool,
    /// The parts.
    pub parts: &'a [(Pos, Expr<'a>)],
}
