//! What an expression uses of what is around it: variables, and the place where it is written.

use crate::expr::{AttrsExpr, Expr, LambdaExpr, Name, Scope, WithScope};
use crate::value::Kind;

/// A variable of an environment around an expression.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Free {
    /// How many environments out, from that of the expression.
    pub(crate) level: u32,
    /// The slot there.
    pub(crate) slot: u32,
}

/// What evaluating something may use.
#[derive(PartialEq, Eq)]
pub(crate) struct Uses {
    /// The variables of its environment and those around that, sorted, each once.
    pub(crate) variables: Vec<Free>,
    /// Whether the same text in another file might give something else: it holds a path or asks for its own position.
    pub(crate) place: bool,
}

/// What evaluating `expr` may use.
pub(crate) fn uses(expr: &Expr<'_>) -> Uses {
    finished(|search| search.expr(expr, 0))
}

/// As [`uses`], for a function where it is made: what a call may use, besides its arguments, of the function's environment.
pub(crate) fn uses_of_lambda(lambda: &LambdaExpr<'_>) -> Uses {
    if lambda.index == 0 {
        return finished(|search| search.lambda(lambda, 0));
    }
    // its environment is like that of the body, with those of the arguments that were given before
    let mut uses = finished(|search| search.expr(&innermost(lambda).body, 0));
    uses.variables.retain(|variable| variable.level > 0 || variable.slot < lambda.index);
    uses
}

/// The last of the functions that share an environment.
fn innermost<'e, 'a>(lambda: &'e LambdaExpr<'a>) -> &'e LambdaExpr<'a> {
    let mut lambda = lambda;
    while let Some(rest) = lambda.rest {
        lambda = rest;
    }
    lambda
}

fn finished(body: impl FnOnce(&mut Search)) -> Uses {
    let mut search = Search { found: Vec::new(), place: false };
    body(&mut search);
    search.found.sort_unstable();
    search.found.dedup();
    Uses { variables: search.found, place: search.place }
}

struct Search {
    found: Vec<Free>,
    place: bool,
}

/// In all of these `inside` counts the environments between an expression and where the search began.
impl Search {
    fn variable(&mut self, level: u32, slot: u32, inside: u32) {
        if let Some(level) = level.checked_sub(inside) {
            self.found.push(Free { level, slot });
        }
    }

    fn exprs(&mut self, exprs: &[Expr<'_>], inside: u32) {
        for expr in exprs {
            self.expr(expr, inside);
        }
    }

    fn names(&mut self, names: &[Name<'_>], inside: u32) {
        for name in names {
            if let Name::Dynamic(expr) = name {
                self.expr(expr, inside);
            }
        }
    }

    fn lambda(&mut self, lambda: &LambdaExpr<'_>, inside: u32) {
        for formal in lambda.formals.iter().flat_map(|formals| formals.formals) {
            if let Some(default) = &formal.default {
                self.expr(default, inside + 1);
            }
        }
        self.expr(&innermost(lambda).body, inside + 1);
    }

    /// A variable that a `with` may bring depends on the sets of all of them.
    fn with(&mut self, level: u32, with: &WithScope<'_>, inside: u32) {
        let (mut level, mut with) = (level, with);
        loop {
            self.variable(level, 0, inside);
            let Some((further, outer)) = with.outer else { return };
            level += further;
            with = outer;
        }
    }

    /// Values of a set or of a `let`, each in its own scope; `inner` is where the scope that they make begins.
    fn scoped(&mut self, values: &[(Scope, Expr<'_>)], sources: &[Expr<'_>], inner: u32, outer: u32) {
        self.exprs(sources, inner);
        for (scope, value) in values {
            let inside = match scope {
                Scope::Inner => inner,
                Scope::Outer => outer,
                Scope::Sources => inner + u32::from(!sources.is_empty()),
            };
            self.expr(value, inside);
        }
    }

    fn attrs(&mut self, set: &AttrsExpr<'_>, inside: u32) {
        let inner = inside + u32::from(set.recursive);
        self.scoped(set.values, set.sources, inner, inside);
        for (_, name, value) in set.dynamic {
            self.expr(name, inner);
            self.expr(value, inner);
        }
    }

    fn expr(&mut self, expr: &Expr<'_>, inside: u32) {
        match expr {
            // a builtin that is still to be made is the same everywhere
            Expr::Const(value) if value.as_thunk().is_some() => {}
            Expr::Const(value) => self.place |= matches!(value.kind(), Kind::Path(_)),
            Expr::CurPos(_) => self.place = true,
            Expr::Local(_, slot) => self.variable(0, *slot, inside),
            Expr::Var(variable) => self.variable(variable.level, variable.slot, inside),
            Expr::WithVar(variable) => self.with(variable.level, variable.with, inside),
            Expr::Select(select) => self.expr(&select.subject, inside),
            Expr::SelectPath(select) => {
                self.expr(&select.subject, inside);
                self.names(select.path, inside);
                if let Some(default) = &select.default {
                    self.expr(default, inside);
                }
            }
            Expr::HasAttr(has) => {
                self.expr(&has.subject, inside);
                self.names(has.path, inside);
            }
            Expr::PlainAttrs(set) => self.exprs(set.values, inside),
            Expr::Attrs(set) => self.attrs(set, inside),
            Expr::List(list) => self.exprs(list.items, inside),
            Expr::Lambda(lambda) => self.lambda(lambda, inside),
            Expr::Call(call) => {
                self.expr(&call.function, inside);
                self.exprs(call.args, inside);
            }
            Expr::Let(bindings) => {
                self.scoped(bindings.values, bindings.sources, inside + 1, inside);
                self.expr(&bindings.body, inside + 1);
            }
            Expr::With(with) => {
                self.expr(&with.scope, inside);
                self.expr(&with.body, inside + 1);
            }
            Expr::If(_, parts) => self.exprs(&parts[..], inside),
            Expr::Assert(assert) => {
                self.expr(&assert.condition, inside);
                self.expr(&assert.body, inside);
            }
            Expr::Not(operand) => self.expr(operand, inside),
            Expr::Eq(_, operands)
            | Expr::NotEq(_, operands)
            | Expr::And(_, operands)
            | Expr::Or(_, operands)
            | Expr::Impl(_, operands)
            | Expr::Update(_, operands)
            | Expr::ConcatLists(_, operands) => self.exprs(&operands[..], inside),
            Expr::ConcatStrings(concat) => {
                for (_, part) in concat.parts {
                    self.expr(part, inside);
                }
            }
        }
    }
}
