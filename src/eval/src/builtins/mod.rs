//! The built-in functions, one module per subject.

mod attrs;
mod context;
mod control;
mod derivation;
mod fetch;
mod flakes;
mod lists;
mod numbers;
mod paths;
mod sort;
mod strings;
pub(crate) mod structured;

pub use paths::TreeHashes;

use crate::eval::{Evaluated, Evaluator};
use crate::symbol::Symbol;
use crate::value::{Pos, Suspension, Value};
use rustc_hash::FxHashMap;

/// More arguments than any builtin takes.
pub(crate) const MAX_ARITY: usize = 4;

/// What carries a builtin out. The result may be a thunk.
pub(crate) type Function = for<'e, 'v, 'a> fn(&'e Evaluator<'a>, &'v [Value<'a>], Pos) -> Evaluated<'a>;

/// A built-in function.
pub(crate) struct PrimOp {
    /// Its global name, with `__` unless it is also there without.
    pub(crate) name: &'static str,
    /// How many arguments it takes.
    pub(crate) arity: u8,
    /// Bit `i` is set if argument `i` is forced before anything else happens (after the set ones before it). The caller then
    /// hands over values, not thunks.
    pub(crate) strict: u8,
    /// Whether an error in it gets a line in the trace.
    pub(crate) traced: bool,
    /// Whether it gives the value of a file, so that a call of the result may be shared.
    pub(crate) imports: bool,
    /// What carries it out.
    pub(crate) function: Function,
}

impl PrimOp {
    /// Its name as messages have it.
    pub(crate) fn short_name(&self) -> &'static str {
        self.name.strip_prefix("__").unwrap_or(self.name)
    }

    /// A builtin that may leave its arguments unevaluated.
    const fn lazy(name: &'static str, arity: u8, function: Function) -> PrimOp {
        PrimOp { name, arity, strict: 0, traced: true, imports: false, function }
    }

    /// A builtin that forces the arguments with bits in `strict` first.
    const fn strict(name: &'static str, arity: u8, strict: u8, function: Function) -> PrimOp {
        PrimOp { name, arity, strict, traced: true, imports: false, function }
    }

    /// Says that it gives the value of a file.
    const fn importing(mut self) -> PrimOp {
        self.imports = true;
        self
    }

    /// Leaves it out of traces.
    const fn untraced(mut self) -> PrimOp {
        self.traced = false;
        self
    }
}

const TABLES: &[&[PrimOp]] = &[
    attrs::TABLE,
    context::TABLE,
    control::TABLE,
    derivation::TABLE,
    fetch::TABLE,
    flakes::TABLE,
    lists::TABLE,
    numbers::TABLE,
    paths::TABLE,
    strings::TABLE,
    structured::TABLE,
];

/// The builtin with this index.
#[inline]
pub(crate) fn get(index: u32) -> &'static PrimOp {
    &TABLES[(index >> 8) as usize][(index & 255) as usize]
}

/// What builtins remember during an evaluation.
#[derive(Default)]
pub(crate) struct State<'a> {
    pub(crate) files: crate::files::FileState<'a>,
    pub(crate) derivations: derivation::DerivationState,
    pub(crate) paths: paths::PathState,
    pub(crate) store: crate::store::StoreState,
    pub(crate) strings: strings::StringState,
    pub(crate) flakes: flakes::FlakeState<'a>,
    pub(crate) share: crate::share::ShareState<'a>,
}

/// Carries out a deferred computation that a builtin registered.
pub(crate) fn resume_deferred<'a>(evaluator: &Evaluator<'a>, number: u32) -> Evaluated<'a> {
    match number {
        DERIVATION_FUNCTION => evaluator.eval_internal("derivation.nix"),
        CURRENT_TIME => Ok(current_time(evaluator)),
        _ => flakes::resume(evaluator, number),
    }
}

/// The deferred computation whose result is `derivation`.
const DERIVATION_FUNCTION: u32 = u32::MAX - 1;
/// The deferred computation whose result is `builtins.currentTime`.
const CURRENT_TIME: u32 = u32::MAX - 2;

fn current_time<'a>(evaluator: &Evaluator<'a>) -> Value<'a> {
    let time = evaluator.settings.time.unwrap_or_else(|| {
        evaluator.host.volatile("builtins.currentTime");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |elapsed| elapsed.as_secs() as i64)
    });
    evaluator.heap.int(time)
}

/// All variables that every program has.
pub(crate) fn globals<'a>(evaluator: &Evaluator<'a>) -> FxHashMap<Symbol, Value<'a>> {
    let mut globals = FxHashMap::default();
    let mut builtins = Vec::new();
    let heap = &evaluator.heap;
    let symbols = &evaluator.symbols;
    let mut add = |name: &str, value: Value<'a>| {
        globals.insert(symbols.intern(name.as_bytes()), value);
        let short = name.strip_prefix("__").unwrap_or(name);
        builtins.push((symbols.intern(short.as_bytes()), Pos::NONE, value));
    };
    add("true", Value::TRUE);
    add("false", Value::FALSE);
    add("null", Value::NULL);
    for (table_index, table) in TABLES.iter().enumerate() {
        for (index, prim_op) in table.iter().enumerate() {
            let enabled = match prim_op.name {
                "__outputOf" => evaluator.settings.dynamic_derivations,
                "__fetchClosure" => evaluator.settings.fetch_closure,
                _ => true,
            };
            if !enabled {
                continue;
            }
            add(prim_op.name, Value::prim_op((table_index as u32) << 8 | index as u32));
        }
    }
    let settings = &evaluator.settings;
    add("__storeDir", heap.string(settings.store.as_str().as_bytes()));
    add("__nixVersion", heap.string(b"2.34.8"));
    add("__langVersion", heap.int(6));
    if !settings.pure {
        add("__currentSystem", heap.string(settings.system.as_bytes()));
        add("__currentTime", heap.thunk_of_suspension(Suspension::Deferred(CURRENT_TIME)));
    }
    add("__nixPath", evaluator.search_path_value());
    add("derivation", heap.thunk_of_suspension(Suspension::Deferred(DERIVATION_FUNCTION)));
    // `builtins` contains itself: the set is made with a place for it first.
    builtins.push((symbols.intern(b"builtins"), Pos::NONE, Value::NULL));
    let set: Value<'a> = heap.attrs(&mut builtins).into();
    if let Some(place) = set.as_attrs().and_then(|set| set.get(symbols.intern(b"builtins"))) {
        place.set(set);
    }
    globals.insert(symbols.intern(b"builtins"), set);
    globals
}
