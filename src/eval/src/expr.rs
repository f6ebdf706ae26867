//! The tree that is evaluated: names resolved to slots, constants made values.

use crate::symbol::Symbol;
use crate::value::{Keys, Pos, Value};

/// One expression, in two words.
#[derive(Clone, Copy)]
pub(crate) enum Expr<'a> {
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
    pub(crate) fn pos(&self) -> Pos {
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
pub(crate) struct VarExpr {
    /// Where it stands.
    pub(crate) pos: Pos,
    /// How many environments out.
    pub(crate) level: u32,
    /// Which slot there.
    pub(crate) slot: u32,
}

/// A variable that no scope binds, inside of at least one `with`.
pub(crate) struct WithVarExpr<'a> {
    /// Where it stands.
    pub(crate) pos: Pos,
    /// Its name.
    pub(crate) name: Symbol,
    /// How many environments out the innermost `with` is.
    pub(crate) level: u32,
    /// That `with`.
    pub(crate) with: &'a WithScope<'a>,
}

/// What a `with` knows of the one around it.
pub(crate) struct WithScope<'a> {
    /// Where it starts.
    pub(crate) pos: Pos,
    /// How many environments further out the next `with` is, and that one.
    pub(crate) outer: Option<(u32, &'a WithScope<'a>)>,
}

/// `subject.name`
pub(crate) struct SelectExpr<'a> {
    /// Where the selection starts.
    pub(crate) pos: Pos,
    /// The name.
    pub(crate) name: Symbol,
    /// What it is selected from.
    pub(crate) subject: Expr<'a>,
}

/// A step of an attribute path.
#[derive(Clone, Copy)]
pub(crate) enum Name<'a> {
    /// A name.
    Static(Symbol),
    /// An expression that gives one.
    Dynamic(Expr<'a>),
}

/// `subject.a.b or default`
pub(crate) struct SelectPathExpr<'a> {
    /// Where the selection starts.
    pub(crate) pos: Pos,
    /// What it is selected from.
    pub(crate) subject: Expr<'a>,
    /// The names.
    pub(crate) path: &'a [Name<'a>],
    /// After `or`.
    pub(crate) default: Option<Expr<'a>>,
}

/// `subject ? a.b`
pub(crate) struct HasAttrExpr<'a> {
    /// What is asked.
    pub(crate) subject: Expr<'a>,
    /// The names.
    pub(crate) path: &'a [Name<'a>],
}

/// `{ a = …; b = …; }`
pub(crate) struct PlainAttrsExpr<'a> {
    /// Where it starts.
    pub(crate) pos: Pos,
    /// Names and positions, sorted by symbol.
    pub(crate) keys: Keys<'a>,
    /// Their values.
    pub(crate) values: &'a [Expr<'a>],
}

/// Which environment an attribute's value is evaluated in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The set's own (for `rec`), else the one around it.
    Inner,
    /// The one around it: `inherit x;`.
    Outer,
    /// The one that holds the sources of `inherit (e) …`.
    Sources,
}

/// An attribute set of any kind.
pub(crate) struct AttrsExpr<'a> {
    /// Where it starts.
    pub(crate) pos: Pos,
    /// Whether the attributes see each other. Then slot `i` of the set's environment is attribute `i`.
    pub(crate) recursive: bool,
    /// Names and positions of the static attributes, sorted by symbol.
    pub(crate) keys: Keys<'a>,
    /// Their values.
    pub(crate) values: &'a [(Scope, Expr<'a>)],
    /// The `e` of each `inherit (e)`; they make an environment of their own inside the set's.
    pub(crate) sources: &'a [Expr<'a>],
    /// Dynamic attributes: position, name, value.
    pub(crate) dynamic: &'a [(Pos, Expr<'a>, Expr<'a>)],
    /// The index of `__overrides`, if the set is recursive and has one.
    pub(crate) overrides: Option<u32>,
}

/// `[ … ]`
pub(crate) struct ListExpr<'a> {
    /// The elements.
    pub(crate) items: &'a [Expr<'a>],
}

/// A function. In `a: b: …`, functions of a plain argument each of which is all that there is to the one before, all of them
/// share one environment: then a call with all arguments makes neither the functions in between nor their environments.
pub(crate) struct LambdaExpr<'a> {
    /// Where it starts.
    pub(crate) pos: Pos,
    /// The name of what it was bound to.
    pub(crate) name: Option<Symbol>,
    /// The name of the whole argument; it has slot 0 then.
    pub(crate) arg: Option<Symbol>,
    /// The formal arguments; they take the slots after that.
    pub(crate) formals: Option<FormalsExpr<'a>>,
    /// The body.
    pub(crate) body: Expr<'a>,
    /// The slot of its argument. If that is not the first, the function's own environment is not the one around it, but
    /// one like its body's, in which the slots before are set.
    pub(crate) index: u32,
    /// How many slots the body's environment has.
    pub(crate) slots: u32,
    /// The function that is the body, if it shares the environment.
    pub(crate) rest: Option<&'a LambdaExpr<'a>>,
}

/// `{ a, b ? 1, ... }`
pub(crate) struct FormalsExpr<'a> {
    /// Sorted by symbol.
    pub(crate) formals: &'a [FormalExpr<'a>],
    /// Whether more arguments are allowed.
    pub(crate) ellipsis: bool,
}

/// A formal argument.
pub(crate) struct FormalExpr<'a> {
    /// Its name.
    pub(crate) name: Symbol,
    /// Where it stands.
    pub(crate) pos: Pos,
    /// Its default.
    pub(crate) default: Option<Expr<'a>>,
}

/// `f a b`
pub(crate) struct CallExpr<'a> {
    /// Where the call starts.
    pub(crate) pos: Pos,
    /// The function.
    pub(crate) function: Expr<'a>,
    /// The arguments.
    pub(crate) args: &'a [Expr<'a>],
}

/// `let … in …`: slot `i` is binding `i`.
pub(crate) struct LetExpr<'a> {
    /// The bindings' values.
    pub(crate) values: &'a [(Scope, Expr<'a>)],
    /// The `e` of each `inherit (e)`.
    pub(crate) sources: &'a [Expr<'a>],
    /// The body.
    pub(crate) body: Expr<'a>,
}

/// `with scope; body`
pub(crate) struct WithExpr<'a> {
    /// Where it starts.
    pub(crate) pos: Pos,
    /// The attribute set.
    pub(crate) scope: Expr<'a>,
    /// The body.
    pub(crate) body: Expr<'a>,
}

/// `assert condition; body`
pub(crate) struct AssertExpr<'a> {
    /// Where it starts.
    pub(crate) pos: Pos,
    /// The condition.
    pub(crate) condition: Expr<'a>,
    /// The body.
    pub(crate) body: Expr<'a>,
    /// The condition's text as Nix prints it.
    pub(crate) text: &'a [u8],
}

/// Interpolation, or `+`.
pub(crate) struct ConcatStringsExpr<'a> {
    /// Where it stands.
    pub(crate) pos: Pos,
    /// Whether the result is a string whatever the first part is.
    pub(crate) force_string: bool,
    /// The parts.
    pub(crate) parts: &'a [(Pos, Expr<'a>)],
}
