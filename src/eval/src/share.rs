//! Sharing between the hosts of a fleet: `import FILE ARGUMENT` with an argument that was seen before.
//!
//! Hosts of one fleet import the same nixpkgs, each with its own configuration of it, which as a rule is equal to the
//! others'. What one evaluation made of such a call serves those that come after it ([`Evaluator::share_imports`]).
//!
//! That must never change a result. Two arguments count as equal only if no program can tell them apart but by comparing
//! functions for identity: they are the same object, or equal data with equal context and equal positions, or the same
//! code (function or unevaluated expression) whose captured variables are equal in the same sense. Circles are taken for
//! equal where they close, which is what equality of infinite trees means. Nothing is evaluated for the sake of a
//! comparison but literals, the argument's own attributes and what the other side has evaluated already; what fails to evaluate
//! makes the comparison fail and leaves its thunks as they were. And since a program could see that two of its own calls
//! gave one and the same object, no remembered call serves an evaluation twice.
//!
//! Each host may have a directory of its own, with copies of what the hosts share. Files at the same place in two such
//! directories with the same text are *twins*: the same function in both counts as one, and so do positions in them, unless
//! the function holds a path. (Where the directories lie is an accident of the deploy, which no result can depend on.)

use crate::arena::Scratch;
use crate::eval::{Evaluated, Evaluator};
use crate::expr::{Expr, LambdaExpr};
use crate::free::{self, Free, Uses};
use crate::fs::{FileSystem, bytes_of, path_of};
use crate::position::Origin;
use crate::value::{Attrs, Closure, Env, Flat, Kind, Pos, Suspension, Thunk, ThunkState, Value};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;

/// The paths of two files.
type Pair = (Rc<[u8]>, Rc<[u8]>);

/// Calls of imported functions, by the function.
#[derive(Default)]
pub(crate) struct ShareState<'a> {
    /// Counts the evaluations; 0 while nothing is shared.
    generation: Cell<u32>,
    calls: RefCell<FxHashMap<usize, Vec<Call<'a>>>>,
    /// By the address of the expression or function.
    uses: RefCell<FxHashMap<usize, Rc<Uses>>>,
    /// The hosts' own directories.
    directories: RefCell<Vec<Vec<u8>>>,
    /// By two files in those, at the same place: whether they are twins.
    twins: RefCell<FxHashMap<Pair, bool>>,
}

#[derive(Clone, Copy)]
struct Call<'a> {
    argument: Value<'a>,
    result: Value<'a>,
    /// The evaluation that made it or that it last served.
    generation: u32,
}

/// How many values a comparison looks at before it gives up.
const STEPS: u32 = 20_000;
/// How many of them it looks at to find that an attribute of the argument need not be evaluated: what it captured may be the
/// whole configuration.
const LAZY_STEPS: u32 = 500;
/// A function that is called with more arguments than this is none that makes a package set or the like, and looking through all
/// of them costs more than calling it.
const MAX_CALLS: usize = 64;
/// How deep a comparison goes before it gives up.
const DEPTH: u32 = 500;
/// Larger sets are package sets or the like: they are either the same object or not worth the while.
const MAX_ATTRS: usize = 2000;

impl<'a> Evaluator<'a> {
    /// Begins the evaluation of another host: from now on `import FILE ARGUMENT` gives what it gave in an evaluation
    /// before, where the argument is the same. Without this, nothing is remembered. `directory` holds the host's own files,
    /// if there is such a one.
    pub fn share_imports(&self, directory: Option<&Path>) {
        let state = &self.state.share;
        state.generation.set(state.generation.get() + 1);
        if let Some(directory) = directory {
            state.directories.borrow_mut().push([bytes_of(directory), b"/"].concat());
        }
    }

    /// Says that so many copies of the process will go on from what is evaluated from now on (0, as in the copies, if none will).
    /// Memory for values that is slow to get and quick to use is worth more the more there are.
    pub fn expect_copies(&self, count: usize) {
        self.heap.arena().expect_copies(count);
    }

    /// Has the values that are still to come take the memory of `scratch`. This is for a copy of the process that ends
    /// without returning from its evaluation, so that the next copy finds the memory ready.
    ///
    /// # Errors
    /// When another process has it, this evaluation has one already, or the system refuses. Then values go on to take memory
    /// of this process.
    pub fn continue_in(&self, scratch: &Scratch) -> io::Result<()> {
        self.heap.arena().continue_in(scratch)
    }

    /// Calls what was imported.
    #[inline]
    pub(crate) fn call_imported(&self, function: Value<'a>, argument: Value<'a>, pos: Pos) -> Evaluated<'a> {
        match function.as_lambda() {
            Some(closure) if self.state.share.generation.get() > 0 => {
                self.call_shared(closure, function, argument, pos)
            }
            _ => self.call(function, &[argument], pos),
        }
    }

    #[cold]
    #[inline(never)]
    fn call_shared(
        &self,
        closure: &'a Closure<'a>,
        function: Value<'a>,
        argument: Value<'a>,
        pos: Pos,
    ) -> Evaluated<'a> {
        let state = &self.state.share;
        let generation = state.generation.get();
        let address = std::ptr::from_ref(closure).addr();
        let candidates = state.calls.borrow().get(&address).cloned().unwrap_or_default();
        for (index, call) in candidates.iter().enumerate() {
            if call.generation < generation && self.is_same(call.argument, argument) {
                if let Some(call) = state.calls.borrow_mut().get_mut(&address).and_then(|calls| calls.get_mut(index)) {
                    call.generation = generation;
                }
                return Ok(call.result);
            }
        }
        let result = self.call(function, &[argument], pos)?;
        let mut calls = state.calls.borrow_mut();
        let calls = calls.entry(address).or_default();
        if calls.len() < MAX_CALLS {
            calls.push(Call { argument, result, generation });
        }
        Ok(result)
    }

    /// Whether no program can tell an argument from one of an earlier call.
    fn is_same(&self, known: Value<'a>, new: Value<'a>) -> bool {
        let mut comparison =
            Comparison { evaluator: self, assumed: FxHashSet::default(), trail: Vec::new(), steps: STEPS };
        let (Ok(known), Ok(new)) = (self.force(known), self.force(new)) else { return false };
        match (known.as_attrs(), new.as_attrs()) {
            (Some(known), Some(new)) => comparison.attrs(known, new, 0, Eagerness::Force).is_ok(),
            _ => comparison.values(known, new, 0).is_ok(),
        }
    }

    fn uses(&self, address: usize, find: impl FnOnce() -> Uses) -> Rc<Uses> {
        self.state.share.uses.borrow_mut().entry(address).or_insert_with(|| Rc::new(find())).clone()
    }

    fn uses_of_lambda(&self, lambda: &'a LambdaExpr<'a>) -> Rc<Uses> {
        self.uses(std::ptr::from_ref(lambda).addr(), || free::uses_of_lambda(lambda))
    }

    /// Whether two positions are the same, or at the same place in twins.
    fn is_same_place(&self, known: Pos, new: Pos) -> bool {
        known == new || self.is_twin_place(known, new)
    }

    fn is_twin_place(&self, known: Pos, new: Pos) -> bool {
        let (Some((Origin::File(known), known_offset)), Some((Origin::File(new), new_offset))) =
            (self.positions.origin(known), self.positions.origin(new))
        else {
            return false;
        };
        known_offset == new_offset && self.are_twins(&known, &new)
    }

    fn are_twins(&self, known: &Rc<[u8]>, new: &Rc<[u8]>) -> bool {
        let state = &self.state.share;
        let directories = state.directories.borrow();
        let within =
            |path: &Rc<[u8]>| directories.iter().find_map(|dir| path.strip_prefix(dir.as_slice()).map(<[u8]>::to_vec));
        let (Some(known_place), Some(new_place)) = (within(known), within(new)) else { return false };
        if known_place != new_place {
            return false;
        }
        let compare = || {
            let text = |path: &[u8]| self.fs.read_file(path_of(path)).ok();
            text(known).is_some_and(|known| text(new) == Some(known))
        };
        *state.twins.borrow_mut().entry((known.clone(), new.clone())).or_insert_with(compare)
    }
}

/// Two things that differ, or might.
struct Different;

/// What to do with two values that both are not evaluated yet, and are not the same code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Eagerness {
    Leave,
    Force,
}

struct Comparison<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    /// Pairs that are equal unless a difference turns up in the comparison that is under way.
    assumed: FxHashSet<(usize, usize)>,
    /// The pairs in the order in which they were assumed, so that an attempt can be taken back.
    trail: Vec<(usize, usize)>,
    steps: u32,
}

type Compared = std::result::Result<(), Different>;

fn same_if(equal: bool) -> Compared {
    if equal { Ok(()) } else { Err(Different) }
}

impl<'a> Comparison<'_, 'a> {
    fn values(&mut self, known: Value<'a>, new: Value<'a>, depth: u32) -> Compared {
        self.compare(known, new, depth, Eagerness::Leave)
    }

    fn compare(&mut self, known: Value<'a>, new: Value<'a>, depth: u32, eagerness: Eagerness) -> Compared {
        let (known, new) = (known.resolved(), new.resolved());
        if known.same(new) {
            return Ok(());
        }
        self.steps = self.steps.checked_sub(1).ok_or(Different)?;
        if depth >= DEPTH || known.is_unset() || new.is_unset() {
            return Err(Different);
        }
        let pair = (known.address(), new.address());
        if self.assumed.contains(&pair) {
            return Ok(());
        }
        let start = self.trail.len();
        self.assumed.insert(pair);
        self.trail.push(pair);
        let (known, new) = match (known.as_thunk(), new.as_thunk()) {
            (None, None) => (known, new),
            (Some(known_thunk), Some(new_thunk)) => {
                let limit = if eagerness == Eagerness::Force { LAZY_STEPS } else { u32::MAX };
                if self.within(limit, |this| this.thunks(known_thunk, new_thunk, depth)).is_ok() {
                    return Ok(());
                }
                if eagerness == Eagerness::Leave && !(is_literal(known_thunk) && is_literal(new_thunk)) {
                    return Err(Different);
                }
                for pair in self.trail.drain(start..) {
                    self.assumed.remove(&pair);
                }
                (self.forced(known)?, self.forced(new)?)
            }
            (Some(_), None) => (self.forced(known)?, new),
            (None, Some(_)) => (known, self.forced(new)?),
        };
        self.evaluated(known, new, depth)
    }

    /// A part of the comparison that gives up after so many steps, if it doesn't have to sooner.
    fn within(&mut self, limit: u32, part: impl FnOnce(&mut Self) -> Compared) -> Compared {
        let kept = self.steps.saturating_sub(limit);
        self.steps -= kept;
        let compared = part(self);
        self.steps += kept;
        compared
    }

    fn forced(&self, value: Value<'a>) -> std::result::Result<Value<'a>, Different> {
        self.evaluator.force(value).map_err(|_| Different)
    }

    fn evaluated(&mut self, known: Value<'a>, new: Value<'a>, depth: u32) -> Compared {
        if known.same(new) {
            return Ok(());
        }
        match (known.kind(), new.kind()) {
            (Kind::Int(known), Kind::Int(new)) => same_if(known == new),
            (Kind::Float(known), Kind::Float(new)) => same_if(known.to_bits() == new.to_bits()),
            (Kind::Str(known), Kind::Str(new)) => {
                same_if(known.context() == new.context() && known.bytes() == new.bytes())
            }
            (Kind::Path(known), Kind::Path(new)) => same_if(known.bytes() == new.bytes()),
            (Kind::List(known), Kind::List(new)) => {
                same_if(known.len() == new.len())?;
                known.iter().zip(new.iter()).try_for_each(|(known, new)| self.values(known, new, depth + 1))
            }
            (Kind::Attrs(known), Kind::Attrs(new)) => self.attrs(known, new, depth, Eagerness::Leave),
            (Kind::Lambda(known), Kind::Lambda(new)) => self.closures(known, new, depth),
            (Kind::PrimOpApp(known), Kind::PrimOpApp(new)) => {
                same_if(known.prim_op == new.prim_op && known.args.len() == new.args.len())?;
                known.args.iter().zip(new.args).try_for_each(|(known, new)| self.values(*known, *new, depth + 1))
            }
            // equal immediates were the same
            _ => Err(Different),
        }
    }

    fn attrs(&mut self, known: Attrs<'a>, new: Attrs<'a>, depth: u32, eagerness: Eagerness) -> Compared {
        let (known, new) = (self.evaluator.heap.flat(known), self.evaluator.heap.flat(new));
        same_if(known.len() <= MAX_ATTRS && known.symbols == new.symbols)?;
        let mut places = known.positions.iter().zip(new.positions);
        same_if(places.all(|(known, new)| self.evaluator.is_same_place(*known, *new)))?;
        known
            .values
            .iter()
            .zip(new.values)
            .try_for_each(|(known, new)| self.compare(known.get(), new.get(), depth + 1, eagerness))
    }

    fn thunks(&mut self, known: &'a Thunk<'a>, new: &'a Thunk<'a>, depth: u32) -> Compared {
        match (peek(known), peek(new)) {
            (ThunkState::Expr(known, known_env), ThunkState::Expr(new, new_env)) => {
                same_if(std::ptr::eq(known, new))?;
                let address = std::ptr::from_ref::<Expr<'a>>(known).addr();
                let uses = self.evaluator.uses(address, || free::uses(known));
                self.captured(&uses.variables, known_env, new_env, depth)
            }
            (ThunkState::App(known, known_argument), ThunkState::App(new, new_argument)) => {
                self.closures(known, new, depth)?;
                self.values(known_argument, new_argument, depth + 1)
            }
            (ThunkState::Map(known, known_index), ThunkState::Map(new, new_index)) => {
                same_if(known.source.symbols[known_index] == new.source.symbols[new_index])?;
                self.values(known.function, new.function, depth + 1)?;
                let value = |source: Flat<'a>, index: usize| source.values[index].get();
                self.values(value(known.source, known_index), value(new.source, new_index), depth + 1)
            }
            (ThunkState::Native(known), ThunkState::Native(new)) => match (known, new) {
                (Suspension::Call1(known, known_x), Suspension::Call1(new, new_x)) => {
                    self.values(*known, *new, depth + 1)?;
                    self.values(*known_x, *new_x, depth + 1)
                }
                (Suspension::Call2(known, known_x, known_y), Suspension::Call2(new, new_x, new_y)) => {
                    self.values(*known, *new, depth + 1)?;
                    self.values(*known_x, *new_x, depth + 1)?;
                    self.values(*known_y, *new_y, depth + 1)
                }
                _ => Err(Different),
            },
            _ => Err(Different),
        }
    }

    fn closures(&mut self, known: &'a Closure<'a>, new: &'a Closure<'a>, depth: u32) -> Compared {
        let (known_lambda, new_lambda) = (known.lambda(), new.lambda());
        let uses = self.evaluator.uses_of_lambda(known_lambda);
        if !std::ptr::eq(known_lambda, new_lambda) {
            same_if(!uses.place && self.evaluator.is_twin_place(known_lambda.pos, new_lambda.pos))?;
            same_if(*uses == *self.evaluator.uses_of_lambda(new_lambda))?;
        }
        self.captured(&uses.variables, known.env(), new.env(), depth)
    }

    fn captured(&mut self, free: &[Free], known: Env<'a>, new: Env<'a>, depth: u32) -> Compared {
        free.iter().try_for_each(|variable| {
            let value = |env: Env<'a>| env.up(variable.level).get(variable.slot);
            self.values(value(known), value(new), depth + 1)
        })
    }
}

/// Whether a thunk stands for something that is there as soon as it is looked at.
fn is_literal(thunk: &Thunk<'_>) -> bool {
    matches!(peek(thunk), ThunkState::Expr(Expr::Const(_) | Expr::List(_) | Expr::PlainAttrs(_) | Expr::Lambda(_), _))
}

/// What a thunk stands for, which stays as it is.
fn peek<'a>(thunk: &Thunk<'a>) -> ThunkState<'a> {
    let (state, saved) = thunk.enter();
    if !matches!(state, ThunkState::Done(_) | ThunkState::BlackHole) {
        thunk.restore(saved);
    }
    state
}
