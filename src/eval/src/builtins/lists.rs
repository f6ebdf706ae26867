//! Builtins on lists.

use super::PrimOp;
use super::attrs::required;
use super::numbers::less_than;
use super::sort;
use crate::error::{Error, Result};
use crate::eval::{Evaluated, Evaluator, call_pos};
use crate::symbol::sym;
use crate::value::{Kind, List, Pos, Value};
use rustc_hash::FxHashMap;
use std::cmp::Ordering;
use std::collections::VecDeque;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("__isList", 1, 1, is_list),
    PrimOp::lazy("__elemAt", 2, elem_at),
    PrimOp::strict("__head", 1, 1, head),
    PrimOp::strict("__tail", 1, 1, tail),
    PrimOp::strict("map", 2, 2, map),
    PrimOp::strict("__filter", 2, 2, filter),
    PrimOp::lazy("__elem", 2, elem),
    PrimOp::strict("__concatLists", 1, 1, concat_lists),
    PrimOp::strict("__length", 1, 1, length),
    PrimOp::lazy("__foldl'", 3, foldl),
    PrimOp::lazy("__any", 2, any),
    PrimOp::lazy("__all", 2, all),
    PrimOp::strict("__genList", 2, 2, gen_list),
    PrimOp::strict("__sort", 2, 2, sort),
    PrimOp::lazy("__partition", 2, partition),
    PrimOp::lazy("__groupBy", 2, group_by),
    PrimOp::lazy("__concatMap", 2, concat_map),
    PrimOp::strict("__genericClosure", 1, 1, generic_closure),
];

/// The most elements that a list may have: what fits into the memory of any machine.
const MAX_LEN: i64 = 1 << 40;

fn is_list<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    Ok(Value::bool(matches!(ev.force(args[0])?.kind(), Kind::List(_))))
}

fn elem_at<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let index = ev.force_int(args[1], pos, "while evaluating the second argument passed to 'builtins.elemAt'")?;
    let list = ev.force_list(args[0], pos, "while evaluating the first argument passed to 'builtins.elemAt'")?;
    match usize::try_from(index).ok().and_then(|index| list.slots().get(index)) {
        Some(cell) => ev.force_slot(cell),
        None => {
            let message = format!("'builtins.elemAt' called with index {index} on a list of size {}", list.len());
            Err(Error::eval(pos, message))
        }
    }
}

fn head<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[0], pos, "while evaluating the first argument passed to 'builtins.head'")?;
    match list.slots().first() {
        Some(cell) => ev.force_slot(cell),
        None => Err(Error::eval(pos, "'builtins.head' called on an empty list")),
    }
}

fn tail<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[0], pos, "while evaluating the first argument passed to 'builtins.tail'")?;
    match list.slots().split_first() {
        Some((_, rest)) => Ok(ev.heap.list_with(rest.len(), |index| rest[index].get()).into()),
        None => Err(Error::eval(pos, "'builtins.tail' called on an empty list")),
    }
}

fn map<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.map")?;
    if list.is_empty() {
        return Ok(list.into());
    }
    let what = "while evaluating the first argument passed to builtins.map";
    let function = reusable(ev.force_function(args[0], pos, what)?, args[0]);
    let cells = list.slots();
    Ok(ev.heap.list_with(cells.len(), |index| ev.heap.thunk_of_call(function, cells[index].get())).into())
}

/// The evaluated value, unless the place that it came from has to stay recognisable.
fn reusable<'a>(forced: Value<'a>, original: Value<'a>) -> Value<'a> {
    if forced.may_replace_thunk() { forced } else { original }
}

fn filter<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.filter")?;
    if list.is_empty() {
        return Ok(list.into());
    }
    let what = "while evaluating the first argument passed to builtins.filter";
    let function = ev.force_function(args[0], pos, what)?;
    let mut kept = Vec::with_capacity(list.len());
    for element in list.iter() {
        let result = ev.call(function, &[element], Pos::NONE)?;
        let what = "while evaluating the return value of the filtering function passed to builtins.filter";
        if ev.force_bool(result, pos, what)? {
            kept.push(element);
        }
    }
    if kept.len() == list.len() {
        return Ok(list.into());
    }
    Ok(ev.heap.list(&kept).into())
}

fn elem<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.elem")?;
    for element in list.slots() {
        if ev.equal(args[0], element.get(), pos)? {
            return Ok(Value::TRUE);
        }
    }
    Ok(Value::FALSE)
}

fn concat<'a>(ev: &Evaluator<'a>, lists: &[List<'a>]) -> Value<'a> {
    let mut non_empty = lists.iter().filter(|list| !list.is_empty());
    let (Some(&first), second) = (non_empty.next(), non_empty.next()) else {
        return ev.heap.empty_list().into();
    };
    if second.is_none() {
        return first.into();
    }
    let mut elements = lists.iter().flat_map(|list| list.iter());
    let len = lists.iter().map(|list| list.len()).sum();
    ev.heap.list_with(len, |_| elements.next().unwrap_or(Value::NULL)).into()
}

fn concat_lists<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let lists = ev.force_list(args[0], pos, "while evaluating the first argument passed to builtins.concatLists")?;
    let what = "while evaluating a value of the list passed to builtins.concatLists";
    let lists =
        lists.slots().iter().map(|cell| ev.force_list(cell.get(), pos, what)).collect::<Result<Vec<List<'a>>>>()?;
    Ok(concat(ev, &lists))
}

fn length<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[0], pos, "while evaluating the first argument passed to builtins.length")?;
    Ok(ev.heap.int(list.len() as i64))
}

fn foldl<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.foldlStrict";
    let function = ev.force_function(args[0], pos, what)?;
    let list = ev.force_list(args[2], pos, "while evaluating the third argument passed to builtins.foldlStrict")?;
    let mut result = args[1];
    for element in list.iter() {
        result = ev.call(function, &[result, element], Pos::NONE)?;
    }
    ev.force(result)
}

/// What `any` and `all` do, and how they call their arguments and results in errors.
struct Quantifier {
    stop_at: bool,
    function: &'static str,
    list: &'static str,
    result: &'static str,
}

fn any_or_all<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos, quantifier: &Quantifier) -> Evaluated<'a> {
    let function = ev.force_function(args[0], pos, quantifier.function)?;
    let list = ev.force_list(args[1], pos, quantifier.list)?;
    for element in list.iter() {
        let result = ev.call(function, &[element], Pos::NONE)?;
        let Kind::Bool(truth) = result.kind() else {
            return Err(ev.not_a(result, "a Boolean", pos, quantifier.result));
        };
        if truth == quantifier.stop_at {
            return Ok(result);
        }
    }
    Ok(Value::bool(!quantifier.stop_at))
}

fn any<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    const ANY: Quantifier = Quantifier {
        stop_at: true,
        function: "while evaluating the first argument passed to builtins.any",
        list: "while evaluating the second argument passed to builtins.any",
        result: "while evaluating the return value of the function passed to builtins.any",
    };
    any_or_all(ev, args, pos, &ANY)
}

fn all<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    const ALL: Quantifier = Quantifier {
        stop_at: false,
        function: "while evaluating the first argument passed to builtins.all",
        list: "while evaluating the second argument passed to builtins.all",
        result: "while evaluating the return value of the function passed to builtins.all",
    };
    any_or_all(ev, args, pos, &ALL)
}

fn gen_list<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let len = ev.force_int(args[1], pos, "while evaluating the second argument passed to builtins.genList")?;
    if !(0..=MAX_LEN).contains(&len) {
        return Err(Error::eval(pos, format!("cannot create list of size {len}")));
    }
    let what = "while evaluating the first argument passed to builtins.genList";
    ev.force_function(args[0], Pos::NONE, what)?;
    Ok(ev.heap.list_with(len as usize, |index| ev.heap.thunk_of_call(args[0], ev.heap.int(index as i64))).into())
}

fn sort<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.sort")?;
    if list.is_empty() {
        return Ok(list.into());
    }
    let function = ev.force_function(args[0], pos, "while evaluating the first argument passed to builtins.sort")?;
    let is_less_than = matches!(function.kind(), Kind::PrimOp(index) if super::get(index).name == "__lessThan");
    // Every element is evaluated, in order, even one that is never compared.
    list.slots().iter().try_for_each(|cell| ev.force_slot(cell).map(drop))?;
    let mut values: Vec<Value<'a>> = list.iter().collect();
    sort::sort(&mut values, |a, b| {
        if is_less_than {
            let (a, b) = (ev.force(a)?, ev.force(b)?);
            return less_than(ev, a, b, Pos::NONE, "while evaluating the ordering function passed to builtins.sort");
        }
        let result = ev.call(function, &[a, b], Pos::NONE)?;
        let what = "while evaluating the return value of the sorting function passed to builtins.sort";
        ev.force_bool(result, pos, what)
    })?;
    Ok(ev.heap.list(&values).into())
}

fn partition<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.partition";
    let function = ev.force_function(args[0], pos, what)?;
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.partition")?;
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for element in list.iter() {
        ev.force(element)?;
        let result = ev.call(function, &[element], Pos::NONE)?;
        let what = "while evaluating the return value of the partition function passed to builtins.partition";
        if ev.force_bool(result, pos, what)? {
            right.push(element);
        } else {
            wrong.push(element);
        }
    }
    let mut entries = vec![
        (sym::RIGHT, Pos::NONE, ev.heap.list(&right).into()),
        (sym::WRONG, Pos::NONE, ev.heap.list(&wrong).into()),
    ];
    Ok(ev.heap.attrs(&mut entries).into())
}

fn group_by<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.groupBy";
    let function = ev.force_function(args[0], pos, what)?;
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.groupBy")?;
    let mut groups: FxHashMap<_, Vec<Value<'a>>> = FxHashMap::default();
    for element in list.iter() {
        let result = ev.call(function, &[element], Pos::NONE)?;
        let what = "while evaluating the return value of the grouping function passed to builtins.groupBy";
        let name = ev.symbols.intern_kept(ev.force_string_no_context(result, pos, what)?);
        groups.entry(name).or_default().push(element);
    }
    let mut entries: Vec<_> =
        groups.into_iter().map(|(name, values)| (name, Pos::NONE, ev.heap.list(&values).into())).collect();
    Ok(ev.heap.attrs(&mut entries).into())
}

fn concat_map<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.concatMap";
    let function = ev.force_function(args[0], pos, what)?;
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.concatMap")?;
    let mut lists = Vec::with_capacity(list.len());
    for element in list.iter() {
        let result = ev.call(function, &[element], pos)?;
        let what = "while evaluating the return value of the function passed to builtins.concatMap";
        // What is no list was made in the function. Where a set starts is not known.
        let at = if result.as_attrs().is_some() { pos } else { call_pos(result).or(call_pos(function)) };
        lists.push(ev.force_list(result, at, what)?);
    }
    Ok(concat(ev, &lists))
}

/// Keys that were seen, in the order of `<`, and the elements that they are of.
#[derive(Default)]
struct Seen<'a> {
    /// The common case: strings.
    strings: rustc_hash::FxHashMap<&'a [u8], Value<'a>>,
    /// All other keys, sorted.
    sorted: Vec<(Value<'a>, Value<'a>)>,
}

impl<'a> Seen<'a> {
    /// Whether the key of this element is new.
    ///
    /// # Errors
    /// When it can't be compared with that of an earlier element.
    fn insert(&mut self, ev: &Evaluator<'a>, key: Value<'a>, element: Value<'a>) -> Result<bool> {
        if let (Kind::Str(text), true) = (key.kind(), self.sorted.is_empty()) {
            return Ok(self.strings.insert(text.bytes(), element).is_none());
        }
        if let Some(text) = self.strings.keys().min() {
            // Keys of two types: the comparison says what is wrong with that.
            less_than(ev, key, ev.heap.string(text), Pos::NONE, "")?;
        }
        let mut failure = None;
        let found = self.sorted.binary_search_by(|(other, _)| {
            if failure.is_some() {
                return Ordering::Equal;
            }
            let compare = || {
                // The new key first: a key of another type is complained of in this order.
                if less_than(ev, key, *other, Pos::NONE, "")? {
                    return Ok(Ordering::Greater);
                }
                Ok(if less_than(ev, *other, key, Pos::NONE, "")? { Ordering::Less } else { Ordering::Equal })
            };
            compare().unwrap_or_else(|error| {
                failure = Some(error);
                Ordering::Equal
            })
        });
        match (failure, found) {
            (Some(error), _) => Err(error),
            (None, Ok(_)) => Ok(false),
            (None, Err(index)) => {
                self.sorted.insert(index, (key, element));
                Ok(true)
            }
        }
    }

    /// The earlier element with whose key this one can't be compared.
    fn incomparable(&self, ev: &Evaluator<'a>, key: Value<'a>) -> Option<Value<'a>> {
        let strings = self.strings.iter().min_by_key(|(text, _)| **text);
        let strings = strings.map(|(text, element)| (ev.heap.string(text), *element));
        let mut all = strings.into_iter().chain(self.sorted.iter().copied());
        all.find(|(other, _)| less_than(ev, key, *other, Pos::NONE, "").is_err()).map(|(_, element)| element)
    }
}

fn generic_closure<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.genericClosure";
    let attrs = ev.force_attrs(args[0], Pos::NONE, what)?;
    let what = "in the attrset passed as argument to builtins.genericClosure";
    let (start, _) = required(ev, attrs, sym::START_SET, what)?;
    let start_what = "while evaluating the 'startSet' attribute passed as argument to builtins.genericClosure";
    let start = ev.force_list(start, Pos::NONE, start_what)?;
    if start.is_empty() {
        return Ok(start.into());
    }
    let (operator, _) = required(ev, attrs, sym::OPERATOR, what)?;
    let what = "while evaluating the 'operator' attribute passed as argument to builtins.genericClosure";
    let operator = ev.force_function(operator, Pos::NONE, what)?;
    let mut work: VecDeque<Value<'a>> = start.iter().collect();
    let mut seen = Seen::default();
    let mut result = Vec::new();
    while let Some(element) = work.pop_front() {
        let describe = |error: Box<Error>| {
            error.traced(Pos::NONE, format!("in genericClosure element {}", ev.show_for_error(element)))
        };
        let item = ev.force_attrs(element, Pos::NONE, "").map_err(describe)?;
        let (key, _) = required(ev, item, sym::KEY, "").map_err(describe)?;
        let key = ev.force(key)?;
        let is_new = seen.insert(ev, key, element).map_err(|error| {
            let shown = ev.show_for_error(element);
            match seen.incomparable(ev, key) {
                Some(other) => {
                    let error = error.traced(Pos::NONE, format!("with element {}", ev.show_for_error(other)));
                    error.traced(Pos::NONE, format!("while comparing element {shown}"))
                }
                None => error.traced(Pos::NONE, format!("while checking key of element {shown}")),
            }
        })?;
        if !is_new {
            continue;
        }
        result.push(element);
        let expand = || {
            let what = "while evaluating the return value of the `operator` passed to builtins.genericClosure";
            let more = ev.force_list(ev.call(operator, &[element], Pos::NONE)?, Pos::NONE, what)?;
            more.iter().try_for_each(|element| ev.force(element).map(drop))?;
            Ok(more)
        };
        let more: Result<List<'a>> = expand();
        let more = more.map_err(|error| {
            error.traced(
                Pos::NONE,
                format!("while calling operator on genericClosure element {}", ev.show_for_error(element)),
            )
        })?;
        work.extend(more.iter());
    }
    Ok(ev.heap.list(&result).into())
}
