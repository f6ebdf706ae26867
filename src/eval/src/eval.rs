//! The evaluator: expressions to values.

use crate::arena::Arena;
use crate::builtins;
use crate::context::{Context, Contexts};
use crate::error::{Error, ErrorKind, FrameKind, Result};
use crate::expr::{
    AssertExpr, AttrsExpr, CallExpr, ConcatStringsExpr, Expr, FormalsExpr, HasAttrExpr, LambdaExpr, LetExpr, Name,
    Scope, SelectExpr, SelectPathExpr, WithExpr, WithVarExpr,
};
use crate::files::INTERNAL;
use crate::fs::{OverlayFs, SymlinkResolver};
use crate::position::{Location, Origin, Positions};
use crate::symbol::{Symbol, SymbolTable, sym};
use crate::value::{Attrs, Closure, Env, Heap, Kind, List, Pos, Slot, Suspension, Thunk, ThunkState, Value};
use crate::{Host, Settings};
use bento_store::store_path::StoreDir;
use bumpalo::Bump;
use rustc_hash::FxHashMap;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// An evaluation step's value. It is never an unevaluated thunk.
pub type Evaluated<'a> = Result<Value<'a>>;

/// One evaluation: everything that it has read and made. See [`crate::evaluate`] for how to get one.
pub struct Evaluator<'a> {
    /// Makes values.
    pub heap: Heap<'a>,
    /// Names.
    pub symbols: SymbolTable<'a>,
    /// String contexts.
    pub contexts: Contexts,
    /// Positions.
    pub(crate) positions: Positions,
    /// Where files are read.
    pub fs: Rc<OverlayFs>,
    /// How to evaluate.
    pub settings: Settings,
    /// The store directory.
    pub store: StoreDir,
    /// What the evaluator asks of its caller.
    pub(crate) host: Rc<dyn Host>,
    pub(crate) links: SymlinkResolver,
    pub(crate) globals: RefCell<Rc<FxHashMap<Symbol, Value<'a>>>>,
    pub(crate) state: builtins::State<'a>,
    parse_arena: RefCell<Option<Bump>>,
    symbol_strings: RefCell<Vec<Option<Value<'a>>>>,
    text_buffer: RefCell<Vec<u8>>,
    /// Why an argument could not be evaluated, on its way to the builtin that it is for.
    failed_argument: RefCell<Option<Box<Error>>>,
    stack_limit: usize,
    depth: Cell<u32>,
}

/// The address of something on the stack: how much of it is used.
#[inline]
fn stack_pointer() -> usize {
    let marker = 0u8;
    std::ptr::from_ref(&marker).addr()
}

impl<'a> Evaluator<'a> {
    /// An evaluation whose values live in `arena` and whose names in `texts`, on a thread whose stack has `stack_size` bytes left.
    pub(crate) fn new(
        arena: &'a Arena,
        texts: &'a Bump,
        settings: Settings,
        fs: Rc<OverlayFs>,
        host: Rc<dyn Host>,
        stack_size: usize,
    ) -> Self {
        let evaluator = Evaluator {
            heap: Heap::new(arena),
            symbols: SymbolTable::new(texts),
            contexts: Contexts::default(),
            positions: Positions::default(),
            fs,
            store: settings.store.clone(),
            settings,
            host,
            links: SymlinkResolver::default(),
            globals: RefCell::default(),
            state: builtins::State::default(),
            parse_arena: RefCell::default(),
            symbol_strings: RefCell::default(),
            text_buffer: RefCell::default(),
            failed_argument: RefCell::default(),
            // A reserve for what does not check: builtins' own loops, the parser, dropping.
            stack_limit: stack_pointer().saturating_sub(stack_size).saturating_add(4 << 20),
            depth: Cell::new(0),
        };
        let globals = builtins::globals(&evaluator);
        *evaluator.globals.borrow_mut() = Rc::new(globals);
        evaluator
    }

    // ---- forcing ----------------------------------------------------------------------------------------------------

    /// The value of what may be a thunk.
    #[inline]
    pub fn force(&self, value: Value<'a>) -> Evaluated<'a> {
        match value.as_thunk() {
            None => Ok(value),
            Some(thunk) => self.force_thunk(thunk),
        }
    }

    /// The value of what a slot holds; the slot keeps the result.
    #[inline]
    pub fn force_slot(&self, cell: &'a Slot<'a>) -> Evaluated<'a> {
        let value = cell.get();
        match value.as_thunk() {
            None => Ok(value),
            Some(thunk) => {
                let result = self.force_thunk(thunk)?;
                if result.may_replace_thunk() {
                    cell.set(result);
                }
                Ok(result)
            }
        }
    }

    #[inline]
    fn force_variable(&self, env: Env<'a>, slot: u32) -> Evaluated<'a> {
        let value = env.get(slot);
        match value.as_thunk() {
            None => Ok(value),
            Some(thunk) => {
                let result = self.force_thunk(thunk)?;
                if result.may_replace_thunk() {
                    env.set(slot, result);
                }
                Ok(result)
            }
        }
    }

    #[inline]
    fn force_thunk(&self, thunk: &'a Thunk<'a>) -> Evaluated<'a> {
        match thunk.value() {
            Some(value) => Ok(value),
            None => self.compute(thunk),
        }
    }

    fn compute(&self, thunk: &'a Thunk<'a>) -> Evaluated<'a> {
        self.check_stack(Pos::NONE)?;
        let (state, saved) = thunk.enter();
        let result = match state {
            ThunkState::Done(value) => return Ok(value),
            ThunkState::BlackHole => return Err(Error::infinite_recursion()),
            ThunkState::Expr(expr, env) => self.eval(expr, env).map_err(settled),
            ThunkState::App(closure, argument) => self.call_lambda(closure, argument, Pos::NONE).map_err(unplaced_call),
            ThunkState::Map(mapping, index) => {
                let name = self.symbol_string(mapping.source.symbols[index]);
                let call = self.call(mapping.function, &[name, mapping.source.values[index].get()], Pos::NONE);
                call.map_err(unplaced_call)
            }
            ThunkState::Native(suspension) => self.resume(suspension),
        };
        match result {
            Ok(value) => {
                thunk.finish(value);
                Ok(value)
            }
            Err(error) => {
                thunk.restore(saved);
                Err(error)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn resume(&self, suspension: &'a Suspension<'a>) -> Evaluated<'a> {
        match *suspension {
            Suspension::Call1(function, x) => self.call(function, &[x], Pos::NONE).map_err(unplaced_call),
            Suspension::Call2(function, x, y) => self.call(function, &[x, y], Pos::NONE).map_err(unplaced_call),
            Suspension::Failed => Err(self.failed_argument.take().unwrap_or_else(|| {
                Error::eval(Pos::NONE, "an argument was asked for again whose evaluation had failed before")
            })),
            Suspension::Deferred(number) => builtins::resume_deferred(self, number),
        }
    }

    #[inline]
    fn check_stack(&self, pos: Pos) -> Result<()> {
        if stack_pointer() < self.stack_limit {
            return Err(Error::new(ErrorKind::Overflow, pos, "stack overflow; the evaluation is nested too deeply"));
        }
        Ok(())
    }

    /// Counts one more nested call for as long as `body` runs.
    ///
    /// # Errors
    /// When there are too many, or what `body` gives.
    #[inline]
    pub fn nested<T>(&self, pos: Pos, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let depth = self.depth.get();
        if depth > self.settings.max_call_depth {
            return Err(Error::new(ErrorKind::Overflow, pos, "stack overflow; max-call-depth exceeded"));
        }
        self.check_stack(pos)?;
        self.depth.set(depth + 1);
        let result = body();
        self.depth.set(depth);
        result
    }

    // ---- expressions ------------------------------------------------------------------------------------------------

    /// What an expression stands for until somebody asks for its value.
    #[inline(always)]
    fn delay(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Value<'a> {
        match *expr {
            Expr::Const(value) => value,
            Expr::Local(_, slot) => self.delay_slot(expr, env, env, slot),
            _ => self.delay_compound(expr, env),
        }
    }

    /// As [`Evaluator::delay`], for what is not at hand.
    #[inline(never)]
    fn delay_compound(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Value<'a> {
        match *expr {
            Expr::Var(variable) => self.delay_slot(expr, env, env.up(variable.level), variable.slot),
            Expr::Lambda(lambda) => self.heap.lambda(lambda, env),
            Expr::Select(select) => self.delay_selection(expr, select, env),
            _ => self.heap.thunk_of_expr(expr, env),
        }
    }

    #[inline(never)]
    fn delay_selection(&self, expr: &'a Expr<'a>, select: &'a SelectExpr<'a>, env: Env<'a>) -> Value<'a> {
        match self.selected(select, env) {
            Some(value) => value,
            None => self.heap.thunk_of_expr(expr, env),
        }
    }

    /// What a selection gives if that is known without evaluating anything. Functions are left to a thunk, because their
    /// identity is that of the place that holds them.
    #[inline]
    fn selected(&self, select: &'a SelectExpr<'a>, env: Env<'a>) -> Option<Value<'a>> {
        let subject = match select.subject {
            Expr::Local(_, slot) => env.get(slot),
            Expr::Var(variable) => env.up(variable.level).get(variable.slot),
            _ => return None,
        };
        let value = subject.resolved().as_attrs()?.get(select.name)?.get().resolved();
        (value.as_thunk().is_none() && value.may_replace_thunk()).then_some(value)
    }

    #[inline]
    fn delay_slot(&self, expr: &'a Expr<'a>, env: Env<'a>, at: Env<'a>, slot: u32) -> Value<'a> {
        let value = at.get(slot);
        if value.is_unset() {
            return self.heap.thunk_of_expr(expr, env);
        }
        match value.as_thunk().and_then(Thunk::value) {
            Some(result) if result.may_replace_thunk() => result,
            _ => value,
        }
    }

    /// As [`Evaluator::eval`], without a call of that where a variable's value is known.
    #[inline(always)]
    fn eval_part(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let value = match *expr {
            Expr::Local(_, slot) => env.get(slot),
            Expr::Var(variable) => env.up(variable.level).get(variable.slot),
            _ => return self.eval(expr, env),
        };
        match value.as_thunk() {
            None => Ok(value),
            Some(_) => self.eval(expr, env),
        }
    }

    /// The value of an expression in an environment. Every kind has a function of its own, which is called last: optimised, that is
    /// a jump, and this one saves no registers.
    ///
    /// # Errors
    /// Whatever goes wrong in there.
    pub(crate) fn eval(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Evaluated<'a> {
        match *expr {
            Expr::Const(value) if value.as_thunk().is_none() => Ok(value),
            Expr::Const(_) | Expr::PlainAttrs(_) | Expr::List(_) | Expr::Lambda(_) | Expr::CurPos(_) => {
                self.eval_constructor(expr, env)
            }
            Expr::Local(pos, slot) => self.eval_variable(env, slot, pos),
            Expr::Var(variable) => self.eval_variable(env.up(variable.level), variable.slot, variable.pos),
            Expr::WithVar(variable) => self.eval_with_var(variable, env),
            Expr::Select(select) => self.eval_select(select, env),
            Expr::SelectPath(select) => self.eval_select_path(select, env),
            Expr::HasAttr(has) => self.eval_has_attr(has, env),
            Expr::Attrs(set) => self.eval_attrs(set, env),
            Expr::Call(call) => self.eval_call(call, env),
            Expr::Let(bindings) => self.eval_let(bindings, env),
            Expr::With(with) => self.eval_with(with, env),
            Expr::If(pos, parts) => self.eval_if(parts, env, pos),
            Expr::Assert(assert) => self.eval_assert(assert, env),
            Expr::Not(operand) => self.eval_not(operand, env),
            Expr::Eq(pos, operands) => self.eval_eq(operands, env, pos, true),
            Expr::NotEq(pos, operands) => self.eval_eq(operands, env, pos, false),
            Expr::And(pos, operands) => self.eval_and(operands, env, pos),
            Expr::Or(pos, operands) => self.eval_or(operands, env, pos),
            Expr::Impl(pos, operands) => self.eval_impl(operands, env, pos),
            Expr::Update(_, operands) => self.eval_update(operands, env),
            Expr::ConcatLists(pos, operands) => self.eval_concat_lists(operands, env, pos),
            Expr::ConcatStrings(concat) => self.eval_concat_strings(concat, env),
        }
    }

    #[inline(always)]
    fn eval_variable(&self, env: Env<'a>, slot: u32, pos: Pos) -> Evaluated<'a> {
        let value = env.get(slot);
        match value.as_thunk() {
            None => Ok(value),
            Some(_) => self.eval_promised_variable(env, slot, pos),
        }
    }

    #[inline(never)]
    fn eval_promised_variable(&self, env: Env<'a>, slot: u32, pos: Pos) -> Evaluated<'a> {
        self.force_variable(env, slot).map_err(|error| placed(error, pos))
    }

    #[inline(never)]
    fn eval_select(&self, select: &'a SelectExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let subject = self.eval_part(&select.subject, env)?;
        let Some(attrs) = subject.as_attrs() else {
            let context = "while selecting an attribute";
            return Err(self.not_a(subject, "a set", select.pos, context).unplaced());
        };
        let Some((cell, pos)) = attrs.find(select.name) else {
            return Err(self.missing(attrs, select.name, select.pos));
        };
        self.force_slot(cell).map_err(|error| {
            let error = placed(error, pos.or(select.pos));
            if self.is_shown(pos) { self.trace_attr(error, pos, select.name) } else { error }
        })
    }

    #[inline(never)]
    fn eval_has_attr(&self, has: &'a HasAttrExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let mut subject = self.eval_part(&has.subject, env)?;
        for (index, name) in has.path.iter().enumerate() {
            let name = self.eval_name(name, env)?;
            let Some(cell) = subject.as_attrs().and_then(|attrs| attrs.get(name)) else {
                return Ok(Value::FALSE);
            };
            if index + 1 < has.path.len() {
                subject = self.force_slot(cell).map_err(|error| placed(error, has.subject.pos()))?;
            }
        }
        Ok(Value::TRUE)
    }

    /// The value of what is written as such.
    #[inline(never)]
    fn eval_constructor(&self, expr: &'a Expr<'a>, env: Env<'a>) -> Evaluated<'a> {
        match *expr {
            Expr::PlainAttrs(set) => {
                let attrs = self.heap.attrs_with_keys(set.keys, |index| self.delay(&set.values[index], env));
                Ok(attrs.into())
            }
            Expr::List(list) => {
                Ok(self.heap.list_with(list.items.len(), |index| self.delay(&list.items[index], env)).into())
            }
            Expr::Lambda(lambda) => Ok(self.heap.lambda(lambda, env)),
            Expr::CurPos(pos) => Ok(self.position_value(pos)),
            Expr::Const(value) => self.force(value),
            _ => unreachable!("evaluated by a function of its own"),
        }
    }

    #[inline(never)]
    fn eval_let(&self, bindings: &'a LetExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let env = self.bind(bindings, env);
        self.eval(&bindings.body, env)
    }

    #[inline(never)]
    fn eval_with(&self, with: &'a WithExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let inner = self.heap.env(Some(env), 1);
        inner.set(0, self.delay(&with.scope, env));
        self.eval(&with.body, inner)
    }

    #[inline(never)]
    fn eval_if(&self, parts: &'a [Expr<'a>; 3], env: Env<'a>, pos: Pos) -> Evaluated<'a> {
        let condition = self.eval_bool(&parts[0], env, pos, "while evaluating a branch condition")?;
        self.eval(if condition { &parts[1] } else { &parts[2] }, env)
    }

    #[inline(never)]
    fn eval_assert(&self, assert: &'a AssertExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        if !self.eval_bool(&assert.condition, env, assert.pos, "in the condition of the assert statement")? {
            return Err(self.assertion_failed(assert.text, &assert.condition, env, assert.pos));
        }
        self.eval(&assert.body, env)
    }

    #[inline(never)]
    fn eval_not(&self, operand: &'a Expr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let operand = self.eval_bool(operand, env, operand.pos(), "in the argument of the not operator")?;
        Ok(Value::bool(!operand))
    }

    #[inline(never)]
    fn eval_and(&self, operands: &'a [Expr<'a>; 2], env: Env<'a>, pos: Pos) -> Evaluated<'a> {
        if !self.eval_bool(&operands[0], env, pos, "in the left operand of the AND (&&) operator")? {
            return Ok(Value::FALSE);
        }
        self.eval_bool(&operands[1], env, pos, "in the right operand of the AND (&&) operator").map(Value::bool)
    }

    #[inline(never)]
    fn eval_or(&self, operands: &'a [Expr<'a>; 2], env: Env<'a>, pos: Pos) -> Evaluated<'a> {
        if self.eval_bool(&operands[0], env, pos, "in the left operand of the OR (||) operator")? {
            return Ok(Value::TRUE);
        }
        self.eval_bool(&operands[1], env, pos, "in the right operand of the OR (||) operator").map(Value::bool)
    }

    #[inline(never)]
    fn eval_impl(&self, operands: &'a [Expr<'a>; 2], env: Env<'a>, pos: Pos) -> Evaluated<'a> {
        if !self.eval_bool(&operands[0], env, pos, "in the left operand of the IMPL (->) operator")? {
            return Ok(Value::TRUE);
        }
        self.eval_bool(&operands[1], env, pos, "in the right operand of the IMPL (->) operator").map(Value::bool)
    }

    #[inline(never)]
    fn eval_update(&self, operands: &'a [Expr<'a>; 2], env: Env<'a>) -> Evaluated<'a> {
        // Nix evaluates the right operand first.
        let right = self.eval_operand(&operands[1], env, "in the right operand of the update (//) operator")?;
        let left = self.eval_operand(&operands[0], env, "in the left operand of the update (//) operator")?;
        Ok(self.heap.update(left, right).into())
    }

    #[inline(never)]
    fn eval_concat_lists(&self, operands: &'a [Expr<'a>; 2], env: Env<'a>, pos: Pos) -> Evaluated<'a> {
        let left = self.eval_part(&operands[0], env)?;
        let right = self.eval_part(&operands[1], env)?;
        let context = "while evaluating one of the elements to concatenate";
        let (left, right) = (self.expect_list(left, pos, context)?, self.expect_list(right, pos, context)?);
        Ok(self.concat(left, right).into())
    }

    fn concat(&self, left: List<'a>, right: List<'a>) -> List<'a> {
        if left.is_empty() {
            return right;
        }
        if right.is_empty() {
            return left;
        }
        let (left, right) = (left.slots(), right.slots());
        self.heap.list_with(left.len() + right.len(), |index| match left.get(index) {
            Some(cell) => cell.get(),
            None => right[index - left.len()].get(),
        })
    }

    fn eval_operand(&self, expr: &'a Expr<'a>, env: Env<'a>, context: &str) -> Result<Attrs<'a>> {
        match self.eval_part(expr, env) {
            Ok(value) => value.as_attrs().ok_or_else(|| self.not_a(value, "a set", expr.pos(), context).unplaced()),
            // In a chain of operators each operand is named once.
            Err(error) if matches!(expr, Expr::Update(..)) => Err(error),
            Err(error) => Err(error.traced(expr.pos(), context)),
        }
    }

    #[inline]
    fn eval_bool(&self, expr: &'a Expr<'a>, env: Env<'a>, pos: Pos, context: &str) -> Result<bool> {
        let value = self.eval_part(expr, env).map_err(|error| error.traced(pos, context))?;
        if value.same(Value::TRUE) {
            Ok(true)
        } else if value.same(Value::FALSE) {
            Ok(false)
        } else {
            Err(self.not_a(value, "a Boolean", pos, context))
        }
    }

    /// Whether two operands are equal, or if `wanted` is false, whether they are not.
    #[inline(never)]
    fn eval_eq(&self, operands: &'a [Expr<'a>; 2], env: Env<'a>, pos: Pos, wanted: bool) -> Evaluated<'a> {
        let left = self.eval_part(&operands[0], env)?;
        let right = self.eval_part(&operands[1], env)?;
        Ok(Value::bool(self.equal_values(left, right, pos)? == wanted))
    }

    #[inline(never)]
    fn eval_with_var(&self, variable: &'a WithVarExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let mut env = env.up(variable.level);
        let mut with = variable.with;
        loop {
            let scope = self.force_variable(env, 0).map_err(|error| placed(error, with.pos))?;
            let Some(attrs) = scope.as_attrs() else {
                let context = "while evaluating the first subexpression of a with expression";
                return Err(self.not_a(scope, "a set", with.pos, context).unplaced());
            };
            if let Some(cell) = attrs.get(variable.name) {
                return self.force_slot(cell).map_err(|error| placed(error, variable.pos));
            }
            let Some((level, outer)) = with.outer else {
                return Err(self.undefined(variable.name, variable.pos));
            };
            env = env.up(level);
            with = outer;
        }
    }

    pub(crate) fn undefined(&self, name: Symbol, pos: Pos) -> Box<Error> {
        Error::eval(pos, format!("undefined variable '{}'", self.name(name)))
    }

    #[inline]
    fn eval_name(&self, name: &'a Name<'a>, env: Env<'a>) -> Result<Symbol> {
        match name {
            Name::Static(symbol) => Ok(*symbol),
            Name::Dynamic(expr) => {
                let value = self.eval(expr, env)?;
                let text = self.expect_string_no_context(value, expr.pos(), "while evaluating an attribute name")?;
                Ok(self.symbols.intern_kept(text))
            }
        }
    }

    #[inline(never)]
    fn eval_select_path(&self, select: &'a SelectPathExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let subject = self.eval_part(&select.subject, env)?;
        // Where the attribute is defined that was found last.
        let mut found = Pos::NONE;
        self.follow_path(select, subject, env, &mut found).map_err(|error| {
            if !self.is_shown(found) {
                return error;
            }
            let what = format!("while evaluating the attribute '{}'", self.show_path(select.path, env));
            error.traced(found, what)
        })
    }

    /// Whether a selection is worth a step of a trace if the attribute is defined here: not where nobody can look.
    fn is_shown(&self, pos: Pos) -> bool {
        match self.positions.origin(pos) {
            Some((Origin::File(path), _)) => !path.starts_with(INTERNAL.as_bytes()),
            origin => origin.is_some(),
        }
    }

    fn follow_path(
        &self,
        select: &'a SelectPathExpr<'a>,
        subject: Value<'a>,
        env: Env<'a>,
        found: &mut Pos,
    ) -> Evaluated<'a> {
        let mut subject = subject;
        // The attribute that the path has led to so far; the name after it is evaluated before its value is.
        let mut last = None;
        for name in select.path {
            let name = self.eval_name(name, env)?;
            if let Some(cell) = last {
                subject = self.force_slot(cell).map_err(|error| placed(error, select.pos))?;
            }
            let next = match subject.as_attrs() {
                Some(attrs) => match attrs.find(name) {
                    Some(next) => Some(next),
                    None if select.default.is_some() => None,
                    None => return Err(self.missing(attrs, name, select.pos)),
                },
                None if select.default.is_some() => None,
                None => {
                    let context = "while selecting an attribute";
                    return Err(self.not_a(subject, "a set", select.pos, context).unplaced());
                }
            };
            match (next, &select.default) {
                (Some((cell, pos)), _) => {
                    *found = pos;
                    last = Some(cell);
                }
                (None, Some(default)) => return self.eval(default, env),
                (None, None) => unreachable!("handled above"),
            }
        }
        match last {
            Some(cell) => self.force_slot(cell).map_err(|error| placed(error, found.or(select.pos))),
            None => Ok(subject),
        }
    }

    /// A selection path for messages. A name that can't be evaluated shows as its expression would, without its text.
    #[cold]
    fn show_path(&self, path: &'a [Name<'a>], env: Env<'a>) -> String {
        let names = path.iter().map(|name| match self.eval_name(name, env) {
            Ok(symbol) => self.name(symbol),
            Err(_) => "\"${…}\"".to_owned(),
        });
        names.collect::<Vec<_>>().join(".")
    }

    /// The environment of the sources of `inherit (e) …`, whose expressions are evaluated in `env`.
    fn source_env(&self, sources: &'a [Expr<'a>], env: Env<'a>) -> Env<'a> {
        if sources.is_empty() {
            return env;
        }
        let inner = self.heap.env(Some(env), sources.len());
        for (slot, source) in sources.iter().enumerate() {
            inner.set(slot as u32, self.delay(source, env));
        }
        inner
    }

    fn bind(&self, bindings: &'a LetExpr<'a>, env: Env<'a>) -> Env<'a> {
        let inner = self.heap.env(Some(env), bindings.values.len());
        let sources = self.source_env(bindings.sources, inner);
        for (slot, (scope, value)) in bindings.values.iter().enumerate() {
            inner.set(slot as u32, self.delay(value, choose(*scope, inner, env, sources)));
        }
        inner
    }

    #[inline(never)]
    fn eval_attrs(&self, set: &'a AttrsExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let inner = if set.recursive { self.heap.env(Some(env), set.values.len()) } else { env };
        let sources = self.source_env(set.sources, inner);
        let mut attrs = self.heap.attrs_with_keys(set.keys, |index| {
            let (scope, value) = &set.values[index];
            let at = choose(*scope, inner, env, sources);
            let value = if set.overrides.is_some() && *scope != Scope::Outer {
                // The variables must not look through to values that are still to be overridden.
                self.heap.thunk_of_expr(value, at)
            } else {
                self.delay(value, at)
            };
            if set.recursive {
                inner.set(index as u32, value);
            }
            value
        });
        if let Some(index) = set.overrides {
            let value = self.force(inner.get(index))?;
            let Some(overrides) = value.as_attrs() else {
                let context = "while evaluating the `__overrides` attribute";
                return Err(self.not_a(value, "a set", Pos::NONE, context));
            };
            for (symbol, _, cell) in self.heap.flat(overrides).iter() {
                if let Ok(slot) = set.keys.symbols().binary_search(&symbol) {
                    inner.set(slot as u32, cell.get());
                }
            }
            attrs = self.heap.update(attrs, overrides);
        }
        if !set.dynamic.is_empty() {
            let mut entries: Vec<_> =
                self.heap.flat(attrs).iter().map(|(symbol, pos, cell)| (symbol, pos, cell.get())).collect();
            let mut seen: FxHashMap<Symbol, Pos> = FxHashMap::default();
            for (pos, name, value) in set.dynamic {
                let name = self.eval(name, inner)?;
                if name.same(Value::NULL) {
                    continue;
                }
                let text =
                    self.expect_string_no_context(name, *pos, "while evaluating the name of a dynamic attribute")?;
                let symbol = self.symbols.intern_kept(text);
                let previous = attrs.find(symbol).map(|(_, pos)| pos).or_else(|| seen.get(&symbol).copied());
                if let Some(previous) = previous {
                    let message = format!(
                        "dynamic attribute '{}' already defined at {}",
                        self.attr_name(symbol),
                        self.show_pos(previous)
                    );
                    return Err(Error::eval(*pos, message));
                }
                seen.insert(symbol, *pos);
                entries.push((symbol, *pos, self.delay(value, inner)));
            }
            attrs = self.heap.attrs(&mut entries);
        }
        Ok(attrs.into())
    }

    #[inline(never)]
    fn eval_concat_strings(&self, concat: &'a ConcatStringsExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let (first_pos, first_expr) = &concat.parts[0];
        let first = self.eval_part(first_expr, env)?;
        if !concat.force_string {
            match first.kind() {
                Kind::Int(_) | Kind::Float(_) => return self.add_numbers(first, concat, env),
                Kind::Path(path) => {
                    let mut text = path.bytes().to_vec();
                    let mut context = 0;
                    for (pos, part) in &concat.parts[1..] {
                        let part = self.eval(part, env)?;
                        let more = "while evaluating a path segment";
                        self.coerce_to_string(part, &mut text, &mut context, Coerce::PLAIN, *pos, more)?;
                    }
                    if context != 0 {
                        let message = "a string that refers to a store path cannot be appended to a path";
                        return Err(Error::eval(concat.pos, message));
                    }
                    return Ok(self.heap.path(crate::fs::bytes_of(&crate::fs::canonical(&text))));
                }
                _ => {}
            }
        }
        // The buffer is taken, so a nested interpolation starts one of its own; the largest one is kept.
        let mut text = self.text_buffer.take();
        text.clear();
        let mut context = 0;
        let mode =
            if concat.force_string || matches!(first.kind(), Kind::Str(_)) { Coerce::COPY } else { Coerce::PLAIN };
        let copied = self.concat_parts(concat, env, first, *first_pos, mode, &mut text, &mut context);
        let value = copied.map(|()| self.heap.string_with_context(&text, context));
        self.text_buffer.replace(text);
        value
    }

    #[allow(clippy::too_many_arguments)]
    fn concat_parts(
        &self,
        concat: &'a ConcatStringsExpr<'a>,
        env: Env<'a>,
        first: Value<'a>,
        first_pos: Pos,
        mode: Coerce,
        text: &mut Vec<u8>,
        context: &mut Context,
    ) -> Result<()> {
        let what = "while evaluating a path segment";
        self.coerce_to_string(first, text, context, mode, first_pos, what)?;
        for (pos, part) in &concat.parts[1..] {
            let part = self.eval_part(part, env)?;
            self.coerce_to_string(part, text, context, mode, *pos, what)?;
        }
        Ok(())
    }

    fn add_numbers(&self, first: Value<'a>, concat: &'a ConcatStringsExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let mut sum = first;
        for (pos, part) in &concat.parts[1..] {
            let part = self.eval(part, env)?;
            sum = match (sum.kind(), part.kind()) {
                (Kind::Int(a), Kind::Int(b)) => match a.checked_add(b) {
                    Some(sum) => self.heap.int(sum),
                    None => return Err(Error::eval(*pos, format!("integer overflow in adding {a} + {b}"))),
                },
                (Kind::Int(a), Kind::Float(b)) => self.heap.float(a as f64 + b),
                (Kind::Float(a), Kind::Int(b)) => self.heap.float(a + b as f64),
                (Kind::Float(a), Kind::Float(b)) => self.heap.float(a + b),
                (Kind::Int(_), _) => {
                    return Err(Error::eval(*pos, format!("cannot add {} to an integer", self.type_of(part))));
                }
                _ => return Err(Error::eval(*pos, format!("cannot add {} to a float", self.type_of(part)))),
            };
        }
        Ok(sum)
    }

    // ---- calls ------------------------------------------------------------------------------------------------------

    #[inline(never)]
    fn eval_call(&self, call: &'a CallExpr<'a>, env: Env<'a>) -> Evaluated<'a> {
        let function = self.eval_part(&call.function, env)?;
        if let Kind::PrimOp(index) = function.kind() {
            let prim_op = builtins::get(index);
            if call.args.len() == prim_op.arity as usize {
                return self.eval_prim_op_call(call, env, prim_op);
            }
        }
        if let [argument] = call.args {
            let argument = self.delay(argument, env);
            return match function.as_lambda() {
                Some(closure) => self.call_lambda(closure, argument, call.pos),
                None => self.call(function, &[argument], call.pos),
            };
        }
        let mut few = [Value::NULL; 6];
        if call.args.len() <= few.len() {
            for (slot, argument) in few.iter_mut().zip(call.args) {
                *slot = self.delay(argument, env);
            }
            let args = &few[..call.args.len()];
            if let Some(closure) = function.as_lambda() {
                let (result, rest) = self.call_closure(closure, args, call.pos)?;
                return if rest.is_empty() { Ok(result) } else { self.call(result, rest, call.pos) };
            }
            return self.call(function, args, call.pos);
        }
        let many: Vec<Value<'a>> = call.args.iter().map(|argument| self.delay(argument, env)).collect();
        self.call(function, &many, call.pos)
    }

    /// A call of a builtin with all its arguments: what it would force first anyway needs no thunk.
    fn eval_prim_op_call(
        &self,
        call: &'a CallExpr<'a>,
        env: Env<'a>,
        prim_op: &'static builtins::PrimOp,
    ) -> Evaluated<'a> {
        match call.args.len() {
            1 => self.eval_prim_op_of::<1>(call, env, prim_op),
            2 => self.eval_prim_op_of::<2>(call, env, prim_op),
            _ => self.eval_prim_op_of::<{ builtins::MAX_ARITY }>(call, env, prim_op),
        }
    }

    /// As [`Evaluator::eval_prim_op_call`], for at most `MOST` arguments.
    #[inline(never)]
    fn eval_prim_op_of<const MOST: usize>(
        &self,
        call: &'a CallExpr<'a>,
        env: Env<'a>,
        prim_op: &'static builtins::PrimOp,
    ) -> Evaluated<'a> {
        let mut args = [Value::NULL; MOST];
        for (index, (place, argument)) in args.iter_mut().zip(call.args).enumerate() {
            *place = if prim_op.strict & (1 << index) == 0 {
                self.delay(argument, env)
            } else {
                match self.eval_argument(argument, env) {
                    Ok(value) => value,
                    Err(error) => {
                        *place = self.failed(error);
                        break;
                    }
                }
            };
        }
        self.call_prim_op(prim_op, &args[..call.args.len()], call.pos)
    }

    /// The value of a builtin's argument. A variable is no place for what goes wrong in it, as the builtin gets its promise.
    #[inline]
    fn eval_argument(&self, argument: &'a Expr<'a>, env: Env<'a>) -> Evaluated<'a> {
        match *argument {
            Expr::Local(_, slot) => self.force_variable(env, slot),
            Expr::Var(variable) => self.force_variable(env.up(variable.level), variable.slot),
            _ => self.eval(argument, env),
        }
    }

    fn call_prim_op(&self, prim_op: &'static builtins::PrimOp, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
        // As in Nix, a builtin does not know where it was called: the frame that is added here says it.
        let result = self.nested(pos, || (prim_op.function)(self, args, Pos::NONE));
        match result {
            Ok(value) => self.force(value),
            Err(error) => Err(self.trace_prim_op(error, prim_op, pos)),
        }
    }

    /// An argument that gives this error to the builtin that asks for it first of all, so that the builtin can say which of
    /// its arguments it was.
    #[cold]
    fn failed(&self, error: Box<Error>) -> Value<'a> {
        self.failed_argument.replace(Some(error));
        self.heap.thunk_of_suspension(Suspension::Failed)
    }

    #[cold]
    fn trace_prim_op(&self, error: Box<Error>, prim_op: &'static builtins::PrimOp, pos: Pos) -> Box<Error> {
        if prim_op.traced {
            error.traced(pos, format!("{CALLING_BUILTIN}{}' builtin", prim_op.short_name()))
        } else {
            error
        }
    }

    /// Calls a function with arguments, one after the other.
    ///
    /// # Errors
    /// When it is no function, does not take these arguments, or whatever goes wrong in there.
    pub fn call(&self, function: Value<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
        let mut current = self.force(function)?;
        let mut args = args;
        while !args.is_empty() {
            current = match current.kind() {
                Kind::Lambda(closure) => {
                    let (result, rest) = self.call_closure(closure, args, pos)?;
                    args = rest;
                    result
                }
                Kind::PrimOp(index) => {
                    let prim_op = builtins::get(index);
                    if args.len() < prim_op.arity as usize {
                        return Ok(self.heap.prim_op_app(index, &[], args));
                    }
                    let (now, rest) = args.split_at(prim_op.arity as usize);
                    args = rest;
                    let result = self.call_prim_op(prim_op, now, pos)?;
                    match args {
                        [argument, rest @ ..] if prim_op.imports => {
                            args = rest;
                            self.call_imported(result, *argument, pos)?
                        }
                        _ => result,
                    }
                }
                Kind::PrimOpApp(app) => {
                    let prim_op = builtins::get(app.prim_op);
                    let missing = prim_op.arity as usize - app.args.len();
                    if args.len() < missing {
                        return Ok(self.heap.prim_op_app(app.prim_op, app.args, args));
                    }
                    let (now, rest) = args.split_at(missing);
                    args = rest;
                    let mut all = [Value::NULL; builtins::MAX_ARITY];
                    all[..app.args.len()].copy_from_slice(app.args);
                    all[app.args.len()..prim_op.arity as usize].copy_from_slice(now);
                    self.call_prim_op(prim_op, &all[..prim_op.arity as usize], pos)?
                }
                Kind::Attrs(attrs) => match attrs.find(sym::FUNCTOR) {
                    Some((functor, functor_pos)) => {
                        let (argument, rest) = (args[0], &args[1..]);
                        args = rest;
                        let call = || self.call(self.force_slot(functor)?, &[current, argument], functor_pos);
                        self.nested(pos, call).map_err(|error| {
                            error.traced(pos, "while calling a functor (an attribute set with a '__functor' attribute)")
                        })?
                    }
                    None => return Err(self.not_callable(current, pos)),
                },
                _ => return Err(self.not_callable(current, pos)),
            };
        }
        Ok(current)
    }

    #[cold]
    fn not_callable(&self, value: Value<'a>, pos: Pos) -> Box<Error> {
        let message = format!(
            "attempt to call something which is not a function but {}: {}",
            self.type_of(value),
            self.show_for_error(value)
        );
        Error::eval(pos, message)
    }

    /// Calls a function with the first of the arguments, which there must be, and as many more as it takes right away; gives
    /// the others, too.
    #[inline]
    fn call_closure<'v>(
        &self,
        closure: &'a Closure<'a>,
        args: &'v [Value<'a>],
        pos: Pos,
    ) -> Result<(Value<'a>, &'v [Value<'a>])> {
        let mut lambda = closure.lambda();
        if lambda.rest.is_none() {
            return Ok((self.call_lambda(closure, args[0], pos)?, &args[1..]));
        }
        let env = self.body_env(closure, lambda);
        let mut args = args;
        while let [argument, further @ ..] = args {
            env.set(lambda.index, *argument);
            args = further;
            let Some(rest) = lambda.rest else {
                return Ok((self.enter(lambda, env, pos)?, args));
            };
            lambda = rest;
        }
        Ok((self.heap.lambda(lambda, env), args))
    }

    /// The environment for a function's body, which lacks the argument.
    #[inline]
    fn body_env(&self, closure: &'a Closure<'a>, lambda: &'a LambdaExpr<'a>) -> Env<'a> {
        match lambda.index {
            0 => self.heap.env(Some(closure.env()), lambda.slots as usize),
            given => self.heap.env_after(closure.env(), given, lambda.slots as usize),
        }
    }

    #[inline]
    fn call_lambda(&self, closure: &'a Closure<'a>, argument: Value<'a>, pos: Pos) -> Evaluated<'a> {
        let lambda = closure.lambda();
        if let Some(formals) = &lambda.formals {
            return self.call_with_set(closure, lambda, formals, argument, pos);
        }
        let env = self.body_env(closure, lambda);
        env.set(lambda.index, argument);
        match lambda.rest {
            Some(rest) => Ok(self.heap.lambda(rest, env)),
            None => self.enter(lambda, env, pos),
        }
    }

    /// Evaluates a function's body.
    fn enter(&self, lambda: &'a LambdaExpr<'a>, env: Env<'a>, pos: Pos) -> Evaluated<'a> {
        self.nested(pos, || self.eval(&lambda.body, env).map_err(|error| self.trace_call(error, lambda, pos)))
    }

    fn call_with_set(
        &self,
        closure: &'a Closure<'a>,
        lambda: &'a LambdaExpr<'a>,
        formals: &'a FormalsExpr<'a>,
        argument: Value<'a>,
        pos: Pos,
    ) -> Evaluated<'a> {
        self.nested(pos, || {
            let env = self.bind_formals(closure, lambda, formals, argument, pos)?;
            self.eval(&lambda.body, env).map_err(|error| self.trace_call(error, lambda, pos))
        })
    }

    #[inline]
    fn bind_formals(
        &self,
        closure: &'a Closure<'a>,
        lambda: &'a LambdaExpr<'a>,
        formals: &'a FormalsExpr<'a>,
        argument: Value<'a>,
        pos: Pos,
    ) -> Result<Env<'a>> {
        let forced = match self.force(argument) {
            Ok(forced) => forced,
            Err(error) => {
                let error = placed(error, lambda.pos);
                return Err(if pos == Pos::NONE { error } else { error.traced(pos, CALL_SITE) });
            }
        };
        let Some(attrs) = forced.as_attrs() else {
            let context = "while evaluating the value passed for the lambda argument";
            return Err(self.not_a(forced, "a set", lambda.pos, context).unplaced().traced(pos, CALL_SITE));
        };
        let first = u32::from(lambda.arg.is_some());
        let env = self.heap.env(Some(closure.env()), lambda.slots as usize);
        if first == 1 {
            env.set(0, if forced.may_replace_thunk() { forced } else { argument });
        }
        let mut used = 0;
        for (index, formal) in formals.formals.iter().enumerate() {
            let slot = first + index as u32;
            match (attrs.get(formal.name), &formal.default) {
                (Some(cell), _) => {
                    used += 1;
                    env.set(slot, cell.get());
                }
                // A default that is the name of an argument is the same value as that, but only if that comes before it: programs can
                // tell by comparing functions.
                (None, Some(default)) => env.set(slot, self.delay(default, env)),
                (None, None) => return Err(self.missing_argument(lambda, formal.name, pos)),
            }
        }
        if !formals.ellipsis {
            let flat = self.heap.flat(attrs);
            if flat.len() != used {
                return Err(self.unexpected_argument(lambda, flat.symbols, pos));
            }
        }
        Ok(env)
    }

    fn function_name(&self, lambda: &LambdaExpr<'a>) -> String {
        lambda.name.map_or_else(|| "anonymous lambda".to_owned(), |name| self.name(name))
    }

    #[cold]
    fn missing_argument(&self, lambda: &LambdaExpr<'a>, name: Symbol, pos: Pos) -> Box<Error> {
        let message =
            format!("function '{}' called without required argument '{}'", self.function_name(lambda), self.name(name));
        Error::eval(lambda.pos, message).traced(pos, CALL_SITE)
    }

    #[cold]
    fn unexpected_argument(&self, lambda: &LambdaExpr<'a>, given: &[Symbol], pos: Pos) -> Box<Error> {
        let formals = lambda.formals.as_ref().map_or(&[][..], |formals| formals.formals);
        let mut unexpected = given.iter().filter(|name| !formals.iter().any(|formal| formal.name == **name));
        let name = *unexpected.next().expect("more arguments were given than there are names for");
        let (function, shown) = (self.function_name(lambda), self.attr_name(name));
        let message = format!("function '{function}' called with unexpected argument '{shown}'");
        let mut error = Error::eval(lambda.pos, message).traced(pos, CALL_SITE);
        error.suggestions =
            crate::suggest::best_matches(&self.name(name), formals.iter().map(|formal| self.name(formal.name)));
        error
    }

    #[cold]
    fn trace_call(&self, error: Box<Error>, lambda: &LambdaExpr<'a>, pos: Pos) -> Box<Error> {
        let what = match lambda.name {
            Some(name) => format!("while calling '{}'", self.name(name)),
            None => "while calling anonymous lambda".to_owned(),
        };
        let error = error.traced_as(FrameKind::Call, lambda.pos, what);
        if pos == Pos::NONE { error } else { error.traced_as(FrameKind::Call, pos, CALL_SITE) }
    }

    #[cold]
    fn trace_attr(&self, error: Box<Error>, pos: Pos, name: Symbol) -> Box<Error> {
        let what = format!("while evaluating the attribute '{}'", self.attr_name(name));
        error.traced(pos, what)
    }

    #[cold]
    fn missing(&self, attrs: Attrs<'a>, name: Symbol, pos: Pos) -> Box<Error> {
        let mut error = Error::eval(pos, format!("attribute '{}' missing", self.attr_name(name)));
        let names = self.heap.flat(attrs).symbols;
        error.suggestions = crate::suggest::best_matches(&self.name(name), names.iter().map(|&name| self.name(name)));
        error
    }

    #[cold]
    fn assertion_failed(&self, text: &[u8], condition: &'a Expr<'a>, env: Env<'a>, pos: Pos) -> Box<Error> {
        let text = String::from_utf8_lossy(text);
        if let Expr::Eq(_, operands) = condition
            && let (Ok(left), Ok(right)) = (self.eval(&operands[0], env), self.eval(&operands[1], env))
            && let Err(error) = self.assert_equal(left, right)
        {
            return error.traced(pos, format!("while evaluating the condition of the assertion '{text}'"));
        }
        Error::new(ErrorKind::Assert, pos, format!("assertion '{text}' failed"))
    }

    // ---- equality ---------------------------------------------------------------------------------------------------

    /// Whether two places hold equal values. Other than [`Evaluator::equal_values`], a function equals itself here.
    ///
    /// # Errors
    /// What evaluating them gives.
    pub fn equal(&self, left: Value<'a>, right: Value<'a>, pos: Pos) -> Result<bool> {
        let forced_left = self.force(left)?;
        let forced_right = self.force(right)?;
        let identity = |value: Value<'a>, forced: Value<'a>| if forced.may_replace_thunk() { forced } else { value };
        if identity(left, forced_left).same(identity(right, forced_right)) {
            return Ok(true);
        }
        self.equal_values(forced_left, forced_right, pos)
    }

    /// Whether two evaluated values are equal; functions never are.
    ///
    /// # Errors
    /// What evaluating their elements gives.
    pub fn equal_values(&self, left: Value<'a>, right: Value<'a>, pos: Pos) -> Result<bool> {
        Ok(match (left.kind(), right.kind()) {
            (Kind::Int(a), Kind::Int(b)) => a == b,
            (Kind::Int(a), Kind::Float(b)) => a as f64 == b,
            (Kind::Float(a), Kind::Int(b)) => a == b as f64,
            (Kind::Float(a), Kind::Float(b)) => a == b,
            (Kind::Bool(a), Kind::Bool(b)) => a == b,
            (Kind::Null, Kind::Null) => true,
            (Kind::Str(a), Kind::Str(b)) | (Kind::Path(a), Kind::Path(b)) => a.bytes() == b.bytes(),
            (Kind::List(a), Kind::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                return self.nested(pos, || {
                    for (a, b) in a.iter().zip(b.iter()) {
                        if !self.equal(a, b, pos)? {
                            return Ok(false);
                        }
                    }
                    Ok(true)
                });
            }
            (Kind::Attrs(a), Kind::Attrs(b)) => return self.nested(pos, || self.equal_attrs(a, b, pos)),
            _ => false,
        })
    }

    fn equal_attrs(&self, a: Attrs<'a>, b: Attrs<'a>, pos: Pos) -> Result<bool> {
        if self.is_derivation(a)?
            && self.is_derivation(b)?
            && let (Some(a), Some(b)) = (a.get(sym::OUT_PATH), b.get(sym::OUT_PATH))
        {
            return self.equal(a.get(), b.get(), pos);
        }
        let (a, b) = (self.heap.flat(a), self.heap.flat(b));
        if a.symbols.len() != b.symbols.len() {
            return Ok(false);
        }
        for ((a_name, _, a), (b_name, _, b)) in a.iter().zip(b.iter()) {
            if a_name != b_name || !self.equal(a.get(), b.get(), pos)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a set is a derivation: its `type` says so.
    ///
    /// # Errors
    /// What evaluating `type` gives.
    pub fn is_derivation(&self, attrs: Attrs<'a>) -> Result<bool> {
        match attrs.get(sym::TYPE) {
            None => Ok(false),
            Some(cell) => Ok(matches!(self.force_slot(cell)?.kind(), Kind::Str(text) if text.bytes() == b"derivation")),
        }
    }

    // ---- what builtins and printers need ----------------------------------------------------------------------------

    /// The text of a symbol.
    pub fn name(&self, symbol: Symbol) -> String {
        String::from_utf8_lossy(self.symbols.text(symbol)).into_owned()
    }

    /// The text of a symbol as messages show the name of an attribute: in quotes unless it could be a variable's.
    pub(crate) fn attr_name(&self, symbol: Symbol) -> String {
        crate::text::escape::shown_name(self.symbols.text(symbol))
    }

    /// A symbol's text as a value; made once.
    pub fn symbol_string(&self, symbol: Symbol) -> Value<'a> {
        let mut strings = self.symbol_strings.borrow_mut();
        let index = symbol.0 as usize;
        if index >= strings.len() {
            strings.resize(index + 1, None);
        }
        *strings[index].get_or_insert_with(|| self.heap.string(self.symbols.text(symbol)))
    }

    /// A position as `FILE:LINE:COLUMN`.
    pub fn show_pos(&self, pos: Pos) -> String {
        match self.locate(pos) {
            None => "«none»".to_owned(),
            Some(Location { origin, line, column }) => match origin {
                Origin::File(path) => format!("{}:{line}:{column}", String::from_utf8_lossy(&path)),
                Origin::String(_) => format!("«string»:{line}:{column}"),
                Origin::Stdin(_) => format!("«stdin»:{line}:{column}"),
            },
        }
    }

    /// A position as a location.
    pub fn locate(&self, pos: Pos) -> Option<Location> {
        use crate::fs::FileSystem;
        self.positions.locate(pos, |path| self.fs.read_file(crate::fs::path_of(path)).ok())
    }

    /// A position as `__curPos` and `unsafeGetAttrPos` give it.
    pub(crate) fn position_value(&self, pos: Pos) -> Value<'a> {
        let Some(Location { origin: Origin::File(path), line, column }) = self.locate(pos) else {
            return Value::NULL;
        };
        let mut entries = vec![
            (sym::FILE, Pos::NONE, self.heap.string(&path)),
            (sym::LINE, Pos::NONE, self.heap.int(i64::from(line))),
            (sym::COLUMN, Pos::NONE, self.heap.int(i64::from(column))),
        ];
        self.heap.attrs(&mut entries).into()
    }

    /// The type's name with its article, as in messages.
    pub fn type_of(&self, value: Value<'a>) -> Cow<'static, str> {
        Cow::Borrowed(match value.resolved().kind() {
            Kind::Thunk(_) => "a thunk",
            Kind::Null => "null",
            Kind::Bool(_) => "a Boolean",
            Kind::Int(_) => "an integer",
            Kind::Float(_) => "a float",
            Kind::Str(text) if text.context() == 0 => "a string",
            Kind::Str(_) => "a string with context",
            Kind::Path(_) => "a path",
            Kind::List(_) => "a list",
            Kind::Attrs(_) => "a set",
            Kind::Lambda(_) => "a function",
            Kind::PrimOp(index) => {
                return Cow::Owned(format!("the built-in function '{}'", builtins::get(index).short_name()));
            }
            Kind::PrimOpApp(app) => {
                let name = builtins::get(app.prim_op).short_name();
                return Cow::Owned(format!("the partially applied built-in function '{name}'"));
            }
        })
    }

    /// The error for a value of the wrong type; `wanted` with its article.
    #[cold]
    pub fn not_a(&self, value: Value<'a>, wanted: &str, pos: Pos, context: &str) -> Box<Error> {
        let message = format!("expected {wanted} but found {}: {}", self.type_of(value), self.show_for_error(value));
        let error = Error::eval(pos, message);
        if context.is_empty() { error } else { error.traced(pos, context) }
    }

    /// The list that an evaluated value is.
    ///
    /// # Errors
    /// When it is something else.
    pub fn expect_list(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<List<'a>> {
        match value.kind() {
            Kind::List(list) => Ok(list),
            _ => Err(self.not_a(value, "a list", pos, context).unplaced()),
        }
    }

    /// The bytes of an evaluated string without context.
    ///
    /// # Errors
    /// When it is something else, or has a context.
    pub fn expect_string_no_context(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<&'a [u8]> {
        match value.kind() {
            Kind::Str(text) if text.context() == 0 => Ok(text.bytes()),
            Kind::Str(text) => {
                let element = self.contexts.elements(text.context()).swap_remove(0);
                let message = format!(
                    "the string '{}' is not allowed to refer to a store path (such as '{}')",
                    String::from_utf8_lossy(text.bytes()),
                    self.show_context_element(&element)
                );
                Err(Error::eval(Pos::NONE, message).traced(pos, context))
            }
            _ => Err(self.not_a(value, "a string", pos, context)),
        }
    }

    /// Forces a value that must be a list.
    ///
    /// # Errors
    /// What evaluating it gives, or when it is something else. The same holds for the other `force_…`.
    pub fn force_list(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<List<'a>> {
        let value = self.force(value).map_err(|error| placed(error, pos))?;
        self.expect_list(value, pos, context)
    }

    /// Forces a value that must be an attribute set.
    pub fn force_attrs(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<Attrs<'a>> {
        let value = self.force(value).map_err(|error| placed(error, pos))?;
        value.as_attrs().ok_or_else(|| self.not_a(value, "a set", pos, context).unplaced())
    }

    /// Forces a value that must be a Boolean.
    pub fn force_bool(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<bool> {
        let value = self.force(value).map_err(|error| placed(error, pos).traced(pos, context))?;
        match value.kind() {
            Kind::Bool(truth) => Ok(truth),
            _ => Err(self.not_a(value, "a Boolean", pos, context)),
        }
    }

    /// Forces a value that must be an integer.
    pub fn force_int(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<i64> {
        let value = self.force(value).map_err(|error| placed(error, pos).traced(pos, context))?;
        match value.kind() {
            Kind::Int(number) => Ok(number),
            _ => Err(self.not_a(value, "an integer", pos, context)),
        }
    }

    /// Forces a value that must be a number.
    pub fn force_float(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<f64> {
        let value = self.force(value).map_err(|error| placed(error, pos).traced(pos, context))?;
        match value.kind() {
            Kind::Int(number) => Ok(number as f64),
            Kind::Float(number) => Ok(number),
            _ => Err(self.not_a(value, "a float", pos, context)),
        }
    }

    /// Forces a value that must be a function, or a set that can be called.
    pub fn force_function(&self, value: Value<'a>, pos: Pos, context: &str) -> Evaluated<'a> {
        let value = self.force(value).map_err(|error| placed(error, pos).traced(pos, context))?;
        match value.kind() {
            Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_) => Ok(value),
            Kind::Attrs(attrs) if attrs.get(sym::FUNCTOR).is_some() => Ok(value),
            _ => Err(self.not_a(value, "a function", pos, context)),
        }
    }

    /// Forces a value that must be a string: its bytes and its context.
    pub fn force_string(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<(&'a [u8], Context)> {
        let value = self.force(value).map_err(|error| placed(error, pos).traced(pos, context))?;
        match value.kind() {
            Kind::Str(text) => Ok((text.bytes(), text.context())),
            _ => Err(self.not_a(value, "a string", pos, context)),
        }
    }

    /// Forces a value that must be a string without context.
    pub fn force_string_no_context(&self, value: Value<'a>, pos: Pos, context: &str) -> Result<&'a [u8]> {
        let value = self.force(value).map_err(|error| placed(error, pos).traced(pos, context))?;
        self.expect_string_no_context(value, pos, context)
    }

    /// Forces a value and everything in it.
    ///
    /// # Errors
    /// The first that turns up.
    pub fn force_deep(&self, value: Value<'a>) -> Evaluated<'a> {
        let mut seen = rustc_hash::FxHashSet::default();
        self.force_deep_unseen(value, &mut seen)
    }

    fn force_deep_unseen(&self, value: Value<'a>, seen: &mut rustc_hash::FxHashSet<usize>) -> Evaluated<'a> {
        let pos = call_pos(value);
        self.nested(pos, || {
            let value = self.force(value).map_err(|error| placed(error, pos))?;
            match value.kind() {
                Kind::Attrs(attrs) if seen.insert(value.address()) => {
                    for (name, pos, cell) in self.heap.flat(attrs).iter() {
                        self.force_deep_unseen(cell.get(), seen).map_err(|error| self.trace_attr(error, pos, name))?;
                    }
                }
                Kind::List(list) if seen.insert(value.address()) => {
                    for (index, element) in list.iter().enumerate() {
                        self.force_deep_unseen(element, seen).map_err(|error| {
                            error.traced(Pos::NONE, format!("while evaluating list element at index {index}"))
                        })?;
                    }
                }
                _ => {}
            }
            Ok(value)
        })
    }

    /// Appends the string that a value becomes to `text`, and its context to `context`.
    ///
    /// # Errors
    /// When it can't be one.
    pub fn coerce_to_string(
        &self,
        value: Value<'a>,
        text: &mut Vec<u8>,
        context: &mut Context,
        mode: Coerce,
        pos: Pos,
        what: &str,
    ) -> Result<()> {
        let value = self.force(value).map_err(|error| placed(error, pos))?;
        match value.kind() {
            Kind::Str(string) => {
                text.extend_from_slice(string.bytes());
                *context = self.contexts.union(*context, string.context());
                return Ok(());
            }
            Kind::Path(path) => {
                if mode.copy {
                    let (copied, element) = self.copy_to_store(path.bytes(), Pos::NONE)?;
                    text.extend_from_slice(copied.as_bytes());
                    *context = self.contexts.union(*context, element);
                } else {
                    text.extend_from_slice(path.bytes());
                }
                return Ok(());
            }
            Kind::Attrs(attrs) => {
                if let Some(convert) = attrs.get(sym::TO_STRING) {
                    let convert = self.force_slot(convert).map_err(|error| placed(error, pos))?;
                    let result = self.nested(pos, || self.call(convert, &[value], pos))?;
                    let what = "while evaluating the result of the `__toString` attribute";
                    return self.nested(pos, || self.coerce_to_string(result, text, context, mode, pos, what));
                }
                if let Some(out_path) = attrs.get(sym::OUT_PATH) {
                    return self.nested(pos, || self.coerce_to_string(out_path.get(), text, context, mode, pos, what));
                }
            }
            Kind::Bool(true) if mode.more => {
                text.push(b'1');
                return Ok(());
            }
            Kind::Bool(false) | Kind::Null if mode.more => return Ok(()),
            Kind::Int(number) if mode.more => {
                text.extend_from_slice(number.to_string().as_bytes());
                return Ok(());
            }
            Kind::Float(number) if mode.more => {
                text.extend_from_slice(crate::text::number::float_to_string(number).as_bytes());
                return Ok(());
            }
            Kind::List(list) if mode.more => {
                let len = list.len();
                for (index, element) in list.iter().enumerate() {
                    let element_what = "while evaluating one element of the list";
                    self.nested(pos, || self.coerce_to_string(element, text, context, mode, pos, element_what))
                        .map_err(|error| error.traced(pos, what))?;
                    let is_empty_list = matches!(self.force(element)?.kind(), Kind::List(list) if list.is_empty());
                    if index + 1 < len && !is_empty_list {
                        text.push(b' ');
                    }
                }
                return Ok(());
            }
            _ => {}
        }
        let message = format!("cannot coerce {} to a string: {}", self.type_of(value), self.show_for_error(value));
        Err(Error::eval(Pos::NONE, message).traced(pos, what))
    }

    /// The string that a value becomes, and its context.
    ///
    /// # Errors
    /// When it can't be one.
    pub fn to_string(&self, value: Value<'a>, mode: Coerce, pos: Pos, what: &str) -> Result<(Vec<u8>, Context)> {
        let mut text = Vec::new();
        let mut context = 0;
        self.coerce_to_string(value, &mut text, &mut context, mode, pos, what)?;
        Ok((text, context))
    }

    /// An arena for a syntax tree; it is emptied and used again.
    pub(crate) fn with_parse_arena<T>(&self, body: impl FnOnce(&Bump) -> T) -> T {
        let mut arena = self.parse_arena.take().unwrap_or_default();
        let result = body(&arena);
        arena.reset();
        self.parse_arena.replace(Some(arena));
        result
    }
}

/// What a trace says about the place of a call.
const CALL_SITE: &str = "from call site";

/// How a trace's step starts that says which builtin was called.
const CALLING_BUILTIN: &str = "while calling the '";

/// The same error, of a value that was asked for at `pos`: an infinite recursion is reported where the variable stands that
/// led into it, and a deferred call gets a site.
#[cold]
pub(crate) fn placed(mut error: Box<Error>, pos: Pos) -> Box<Error> {
    if pos != Pos::NONE && error.unplaced_call.take() == Some(error.trace.len()) {
        match error.trace.last_mut() {
            // A promise that needs itself, or a call that was one too many, so that it has not begun.
            None => error.pos = pos,
            Some(frame)
                if frame.pos == Pos::NONE
                    && (frame.message == CALL_SITE || frame.message.starts_with(CALLING_BUILTIN)) =>
            {
                frame.pos = pos;
            }
            Some(frame) if frame.kind == FrameKind::Call => error = error.traced_as(FrameKind::Call, pos, CALL_SITE),
            // A builtin that leaves no step.
            Some(_) => {}
        }
    }
    error
}

/// The same error, of a deferred call: whoever asked for its value knows a place for it.
#[cold]
fn unplaced_call(mut error: Box<Error>) -> Box<Error> {
    error.unplaced_call = Some(error.trace.len());
    error
}

/// The same error, of a promise: whoever asks for that is not who asked for what has failed in it.
#[cold]
fn settled(mut error: Box<Error>) -> Box<Error> {
    error.unplaced_call = None;
    error
}

/// Where the function starts whose deferred call this is, or that this is.
#[inline]
pub(crate) fn call_pos(value: Value<'_>) -> Pos {
    match value.as_thunk() {
        Some(thunk) => thunk.function().map_or(Pos::NONE, |closure| closure.lambda().pos),
        None => value.as_lambda().map_or(Pos::NONE, |closure| closure.lambda().pos),
    }
}

#[inline]
fn choose<'a>(scope: Scope, inner: Env<'a>, outer: Env<'a>, sources: Env<'a>) -> Env<'a> {
    match scope {
        Scope::Inner => inner,
        Scope::Outer => outer,
        Scope::Sources => sources,
    }
}

/// What may become a string, and how.
#[derive(Clone, Copy, Debug)]
pub struct Coerce {
    /// Whether Booleans, numbers, `null` and lists may.
    pub more: bool,
    /// Whether a path is copied to the store, which its store path then stands for.
    pub copy: bool,
}

impl Coerce {
    /// Strings, paths as they are, and sets with `__toString` or `outPath`.
    pub const PLAIN: Coerce = Coerce { more: false, copy: false };
    /// As [`Coerce::PLAIN`], but paths are copied: string interpolation.
    pub const COPY: Coerce = Coerce { more: false, copy: true };
    /// Everything that can: `toString`.
    pub const MORE: Coerce = Coerce { more: true, copy: false };
    /// Everything that can, and paths are copied: the attributes of a derivation.
    pub const ALL: Coerce = Coerce { more: true, copy: true };
}
