//! From the syntax tree to the tree that is evaluated: finds the slot of every variable.

use crate::expr::{
    AssertExpr, AttrsExpr, CallExpr, ConcatStringsExpr, Expr, FormalExpr, FormalsExpr, HasAttrExpr, LambdaExpr,
    LetExpr, ListExpr, Name, PlainAttrsExpr, Scope, SelectExpr, SelectPathExpr, VarExpr, WithExpr, WithScope,
    WithVarExpr,
};
use crate::symbol::{Symbol, SymbolTable, sym};
use crate::syntax::ast::{self, AttrKind, AttrName, BinaryOp, NO_POS, Node};
use crate::value::{Heap, Pos, Value};
use rustc_hash::FxHashMap;

/// A variable that nothing binds.
pub(crate) struct Undefined {
    pub(crate) name: Symbol,
    pub(crate) pos: Pos,
}

type Result<T> = std::result::Result<T, Undefined>;

/// One environment around an expression.
struct Static<'s, 'a> {
    up: Option<&'s Static<'s, 'a>>,
    kind: Kind<'s, 'a>,
}

enum Kind<'s, 'a> {
    /// `first` has slot 0, if there is one; the sorted names follow.
    Names {
        first: Option<Symbol>,
        names: &'s [Symbol],
    },
    /// The arguments of functions that share an environment, in order.
    Arguments(&'s [Symbol]),
    /// Holds the sources of `inherit (e)`, which have no names.
    Sources,
    With(&'a WithScope<'a>),
}

/// The static attributes of a set or a `let`, sorted by symbol.
struct Bindings<'a> {
    names: Vec<(Symbol, Pos)>,
    values: &'a [(Scope, Expr<'a>)],
    /// The `e` of each `inherit (e)`.
    sources: &'a [Expr<'a>],
}

pub(crate) struct Resolver<'e, 'a> {
    pub(crate) heap: &'e Heap<'a>,
    pub(crate) symbols: &'e SymbolTable<'a>,
    pub(crate) globals: &'e FxHashMap<Symbol, Value<'a>>,
    /// The position of the text's first byte.
    pub(crate) base: u32,
}

impl<'a> Resolver<'_, 'a> {
    /// Resolves a whole text. `names`, sorted, are the variables of the environment that it is evaluated in.
    pub(crate) fn resolve(&self, node: Node<'_>, names: &[Symbol]) -> Result<Expr<'a>> {
        self.expr(node, Some(&Static { up: None, kind: Kind::Names { first: None, names } }))
    }

    fn alloc<T>(&self, value: T) -> &'a T {
        self.heap.arena().alloc(value)
    }

    fn pos(&self, pos: ast::Pos) -> Pos {
        if pos == NO_POS { Pos::NONE } else { Pos(self.base + pos) }
    }

    fn variable(&self, name: Symbol, pos: ast::Pos, scope: Option<&Static<'_, 'a>>) -> Result<Expr<'a>> {
        let pos = self.pos(pos);
        let mut with = None;
        let mut level = 0;
        let mut current = scope;
        while let Some(environment) = current {
            let slot = match environment.kind {
                // A formal argument can't have the name of the whole argument, so the order does not matter.
                Kind::Names { first, .. } if first == Some(name) => Some(0),
                Kind::Names { first, names } => {
                    names.binary_search(&name).ok().map(|index| index as u32 + u32::from(first.is_some()))
                }
                // the innermost of those with one name
                Kind::Arguments(names) => names.iter().rposition(|&other| other == name).map(|index| index as u32),
                Kind::Sources => None,
                Kind::With(scope) => {
                    with.get_or_insert((level, scope));
                    None
                }
            };
            if let Some(slot) = slot {
                return Ok(match level {
                    0 => Expr::Local(pos, slot),
                    _ => Expr::Var(self.alloc(VarExpr { pos, level, slot })),
                });
            }
            level += 1;
            current = environment.up;
        }
        if let Some(&value) = self.globals.get(&name) {
            return Ok(Expr::Const(value));
        }
        match with {
            Some((level, with)) => Ok(Expr::WithVar(self.alloc(WithVarExpr { pos, name, level, with }))),
            None => Err(Undefined { name, pos }),
        }
    }

    fn exprs<'n>(&self, nodes: &[Node<'n>], scope: Option<&Static<'_, 'a>>) -> Result<&'a [Expr<'a>]> {
        let exprs = nodes.iter().map(|node| self.expr(node, scope)).collect::<Result<Vec<_>>>()?;
        Ok(self.heap.arena().alloc_slice_copy(&exprs))
    }

    fn expr(&self, node: Node<'_>, scope: Option<&Static<'_, 'a>>) -> Result<Expr<'a>> {
        Ok(match *node {
            ast::Expr::Int(value) => Expr::Const(self.heap.int(value)),
            ast::Expr::Float(value) => Expr::Const(self.heap.float(value)),
            ast::Expr::Str(text) => Expr::Const(self.heap.string(text)),
            ast::Expr::Path(path) => Expr::Const(self.heap.path(path)),
            ast::Expr::Var { pos, name } => self.variable(name, pos, scope)?,
            ast::Expr::CurPos(pos) => Expr::CurPos(self.pos(pos)),
            ast::Expr::Select { pos, subject, path, default } => self.select(pos, subject, path, default, scope)?,
            ast::Expr::HasAttr { subject, path } => {
                let subject = self.expr(subject, scope)?;
                Expr::HasAttr(self.alloc(HasAttrExpr { subject, path: self.path(path, scope)? }))
            }
            ast::Expr::Attrs(attrs) => self.attrs(attrs, scope)?,
            ast::Expr::List([]) => Expr::Const(self.heap.empty_list().into()),
            ast::Expr::List(items) => Expr::List(self.alloc(ListExpr { items: self.exprs(items, scope)? })),
            ast::Expr::Lambda(lambda) => Expr::Lambda(self.lambda(lambda, scope)?),
            ast::Expr::Call { pos, function, args } => {
                let function = self.function(function, scope)?;
                Expr::Call(self.alloc(CallExpr { pos: self.pos(pos), function, args: self.exprs(args, scope)? }))
            }
            ast::Expr::Let { bindings, body } => self.let_in(bindings, body, scope)?,
            ast::Expr::With { pos, scope: attrs, body } => {
                let attrs = self.expr(attrs, scope)?;
                let mut outer = None;
                let mut level = 1;
                let mut current = scope;
                while let Some(environment) = current {
                    if let Kind::With(with) = environment.kind {
                        outer = Some((level, with));
                        break;
                    }
                    level += 1;
                    current = environment.up;
                }
                let pos = self.pos(pos);
                let with = self.alloc(WithScope { pos, outer });
                let body = self.expr(body, Some(&Static { up: scope, kind: Kind::With(with) }))?;
                Expr::With(self.alloc(WithExpr { pos, scope: attrs, body }))
            }
            ast::Expr::If { pos, condition, then, otherwise } => {
                let parts = [self.expr(condition, scope)?, self.expr(then, scope)?, self.expr(otherwise, scope)?];
                Expr::If(self.pos(pos), self.alloc(parts))
            }
            ast::Expr::Assert { pos, condition, body } => {
                let mut text = Vec::new();
                crate::syntax::show(condition, self.symbols, &mut text);
                let text = self.heap.arena().alloc_slice_copy(&text);
                let condition = self.expr(condition, scope)?;
                let body = self.expr(body, scope)?;
                Expr::Assert(self.alloc(AssertExpr { pos: self.pos(pos), condition, body, text }))
            }
            ast::Expr::Not(operand) => Expr::Not(self.alloc(self.expr(operand, scope)?)),
            ast::Expr::Binary { pos, op, left, right } => {
                let operands = self.alloc([self.expr(left, scope)?, self.expr(right, scope)?]);
                let pos = self.pos(pos);
                match op {
                    BinaryOp::Eq => Expr::Eq(pos, operands),
                    BinaryOp::NotEq => Expr::NotEq(pos, operands),
                    BinaryOp::And => Expr::And(pos, operands),
                    BinaryOp::Or => Expr::Or(pos, operands),
                    BinaryOp::Impl => Expr::Impl(pos, operands),
                    BinaryOp::Update => Expr::Update(pos, operands),
                    BinaryOp::ConcatLists => Expr::ConcatLists(pos, operands),
                }
            }
            ast::Expr::ConcatStrings { pos, force_string, parts } => {
                let parts = parts
                    .iter()
                    .map(|&(pos, part)| Ok((self.pos(pos), self.expr(part, scope)?)))
                    .collect::<Result<Vec<_>>>()?;
                let parts = self.heap.arena().alloc_slice_copy(&parts);
                Expr::ConcatStrings(self.alloc(ConcatStringsExpr { pos: self.pos(pos), force_string, parts }))
            }
            // Stands only inside of `inherit (e) …`, where it is always evaluated in the environment of the sources.
            ast::Expr::InheritFrom { pos, ref index } => Expr::Local(self.pos(pos), index.get()),
        })
    }

    fn path(&self, path: &[AttrName<'_>], scope: Option<&Static<'_, 'a>>) -> Result<&'a [Name<'a>]> {
        let names = path
            .iter()
            .map(|name| {
                Ok(match *name {
                    AttrName::Static(symbol) => Name::Static(symbol),
                    AttrName::Dynamic(node) => Name::Dynamic(self.expr(node, scope)?),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(self.heap.arena().alloc_slice_copy(&names))
    }

    fn select(
        &self,
        pos: ast::Pos,
        subject: Node<'_>,
        path: &[AttrName<'_>],
        default: Option<Node<'_>>,
        scope: Option<&Static<'_, 'a>>,
    ) -> Result<Expr<'a>> {
        let subject = self.expr(subject, scope)?;
        let pos = self.pos(pos);
        if let (&[AttrName::Static(name)], None) = (path, default) {
            // `builtins.x`. Functions are known by the place that holds them, so each of these is another one.
            if let Some(value) = known(subject, name)
                && value.may_replace_thunk()
            {
                return Ok(Expr::Const(value));
            }
            return Ok(Expr::Select(self.alloc(SelectExpr { pos, name, subject })));
        }
        let path = self.path(path, scope)?;
        let default = default.map(|default| self.expr(default, scope)).transpose()?;
        Ok(Expr::SelectPath(self.alloc(SelectPathExpr { pos, subject, path, default })))
    }

    /// What is called: where it lies does not matter.
    fn function(&self, node: Node<'_>, scope: Option<&Static<'_, 'a>>) -> Result<Expr<'a>> {
        let function = self.expr(node, scope)?;
        Ok(match function {
            Expr::Select(select) => known(select.subject, select.name).map_or(function, Expr::Const),
            _ => function,
        })
    }

    fn lambda(&self, lambda: &ast::Lambda<'_>, scope: Option<&Static<'_, 'a>>) -> Result<&'a LambdaExpr<'a>> {
        match lambda.formals {
            Some(formals) => self.lambda_of_set(lambda, formals, scope),
            None => self.lambda_chain(lambda, scope),
        }
    }

    /// `{ a, b }: …`
    fn lambda_of_set(
        &self,
        lambda: &ast::Lambda<'_>,
        formals: &ast::Formals<'_>,
        scope: Option<&Static<'_, 'a>>,
    ) -> Result<&'a LambdaExpr<'a>> {
        let mut sorted: Vec<&ast::Formal<'_>> = formals.formals.iter().collect();
        sorted.sort_by_key(|formal| formal.name);
        let names: Vec<Symbol> = sorted.iter().map(|formal| formal.name).collect();
        let inner = Some(&Static { up: scope, kind: Kind::Names { first: lambda.arg, names: &names } });
        let list = sorted
            .iter()
            .map(|formal| {
                let default = formal.default.map(|default| self.expr(default, inner)).transpose()?;
                Ok(FormalExpr { name: formal.name, pos: self.pos(formal.pos), default })
            })
            .collect::<Result<Vec<_>>>()?;
        let formals = FormalsExpr { formals: self.heap.arena().alloc_vec(list), ellipsis: formals.ellipsis };
        let slots = names.len() as u32 + u32::from(lambda.arg.is_some());
        let body = self.expr(lambda.body, inner)?;
        let (pos, name, arg) = (self.pos(lambda.pos), lambda.name.get(), lambda.arg);
        Ok(self.alloc(LambdaExpr { pos, name, arg, formals: Some(formals), body, index: 0, slots, rest: None }))
    }

    /// `a: b: …`
    fn lambda_chain(&self, lambda: &ast::Lambda<'_>, scope: Option<&Static<'_, 'a>>) -> Result<&'a LambdaExpr<'a>> {
        let mut chain = vec![lambda];
        let mut last = lambda;
        while let ast::Expr::Lambda(next) = last.body
            && next.formals.is_none()
        {
            chain.push(next);
            last = next;
        }
        let names: Vec<Symbol> = chain.iter().filter_map(|lambda| lambda.arg).collect();
        let slots = names.len() as u32;
        let body = self.expr(last.body, Some(&Static { up: scope, kind: Kind::Arguments(&names) }))?;
        let make = |lambda: &ast::Lambda<'_>, body: Expr<'a>, index: u32, rest: Option<&'a LambdaExpr<'a>>| {
            let (pos, name, arg) = (self.pos(lambda.pos), lambda.name.get(), lambda.arg);
            self.alloc(LambdaExpr { pos, name, arg, formals: None, body, index, slots, rest })
        };
        let mut made = make(last, body, slots - 1, None);
        for (index, lambda) in (0..slots - 1).zip(&chain).rev() {
            made = make(lambda, Expr::Lambda(made), index, Some(made));
        }
        Ok(made)
    }

    /// The static attributes, resolved.
    fn bindings(
        &self,
        attrs: &ast::Attrs<'_>,
        recursive: bool,
        scope: Option<&Static<'_, 'a>>,
        with_inner: impl FnOnce(Option<&Static<'_, 'a>>) -> Result<()>,
    ) -> Result<Bindings<'a>> {
        let defs = attrs.attrs.borrow();
        let mut sorted: Vec<&ast::AttrDef<'_>> = defs.iter().collect();
        sorted.sort_by_key(|def| def.name);
        let names: Vec<Symbol> = sorted.iter().map(|def| def.name).collect();
        let own = Static { up: scope, kind: Kind::Names { first: None, names: &names } };
        let inner = if recursive { Some(&own) } else { scope };
        let sources_scope = Static { up: inner, kind: Kind::Sources };
        let sources = self.exprs(&attrs.inherit_from.borrow(), inner)?;
        let values = sorted
            .iter()
            .map(|def| {
                Ok(match def.kind {
                    AttrKind::Plain => (Scope::Inner, self.expr(def.value, inner)?),
                    AttrKind::Inherited => (Scope::Outer, self.expr(def.value, scope)?),
                    AttrKind::InheritedFrom => (Scope::Sources, self.expr(def.value, Some(&sources_scope))?),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        with_inner(inner)?;
        let names = sorted.iter().map(|def| (def.name, self.pos(def.pos))).collect();
        Ok(Bindings { names, values: self.heap.arena().alloc_slice_copy(&values), sources })
    }

    fn attrs(&self, attrs: &ast::Attrs<'_>, scope: Option<&Static<'_, 'a>>) -> Result<Expr<'a>> {
        let recursive = attrs.recursive.get();
        let mut dynamic = Vec::new();
        let Bindings { names, values, sources } = self.bindings(attrs, recursive, scope, |inner| {
            for def in attrs.dynamic.borrow().iter() {
                dynamic.push((self.pos(def.pos), self.expr(def.name, inner)?, self.expr(def.value, inner)?));
            }
            Ok(())
        })?;
        let pos = self.pos(attrs.pos.get());
        if values.is_empty() && sources.is_empty() && dynamic.is_empty() {
            return Ok(Expr::Const(self.heap.empty_attrs().into()));
        }
        let keys = self.heap.keys(names.into_iter());
        if !recursive && sources.is_empty() && dynamic.is_empty() {
            let plain: Vec<Expr<'a>> = values.iter().map(|&(_, value)| value).collect();
            let values = self.heap.arena().alloc_slice_copy(&plain);
            return Ok(Expr::PlainAttrs(self.alloc(PlainAttrsExpr { pos, keys, values })));
        }
        let overrides = if recursive {
            keys.symbols().iter().position(|&name| name == sym::OVERRIDES).map(|index| index as u32)
        } else {
            None
        };
        let dynamic = self.heap.arena().alloc_slice_copy(&dynamic);
        Ok(Expr::Attrs(self.alloc(AttrsExpr { pos, recursive, keys, values, sources, dynamic, overrides })))
    }

    fn let_in(&self, attrs: &ast::Attrs<'_>, body: Node<'_>, scope: Option<&Static<'_, 'a>>) -> Result<Expr<'a>> {
        let mut resolved = None;
        let Bindings { values, sources, .. } = self.bindings(attrs, true, scope, |inner| {
            resolved = Some(self.expr(body, inner)?);
            Ok(())
        })?;
        let Some(body) = resolved else { unreachable!("bindings resolves the body or fails") };
        Ok(Expr::Let(self.alloc(LetExpr { values, sources, body })))
    }
}

/// The attribute of a set that is known already, if its value is, too: `builtins.x`.
fn known<'a>(subject: Expr<'a>, name: Symbol) -> Option<Value<'a>> {
    let Expr::Const(set) = subject else { return None };
    let value = set.as_attrs()?.get(name)?.get();
    value.as_thunk().is_none().then_some(value)
}
