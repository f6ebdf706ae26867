//! Builtins on attribute sets.

use super::PrimOp;
use crate::error::{Error, Result};
use crate::eval::{Evaluated, Evaluator};
use crate::symbol::{Symbol, sym};
use crate::text::escape::shown_name;
use crate::value::{Attrs, Flat, Kind, Pos, Slot, Suspension, Value};

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("__attrNames", 1, 1, attr_names),
    PrimOp::strict("__attrValues", 1, 1, attr_values),
    PrimOp::strict("__getAttr", 2, 1, get_attr),
    PrimOp::strict("__unsafeGetAttrPos", 2, 1, unsafe_get_attr_pos),
    PrimOp::strict("__hasAttr", 2, 1, has_attr),
    PrimOp::strict("__isAttrs", 1, 1, is_attrs),
    PrimOp::strict("removeAttrs", 2, 1, remove_attrs),
    PrimOp::strict("__listToAttrs", 1, 1, list_to_attrs),
    PrimOp::strict("__intersectAttrs", 2, 1, intersect_attrs),
    PrimOp::strict("__catAttrs", 2, 1, cat_attrs),
    PrimOp::strict("__functionArgs", 1, 1, function_args),
    PrimOp::strict("__mapAttrs", 2, 2, map_attrs),
    PrimOp::lazy("__zipAttrsWith", 2, zip_attrs_with),
];

/// The indices of a set's attributes in the order of their names' texts.
pub(crate) fn by_name<'a>(evaluator: &Evaluator<'a>, flat: &Flat<'a>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..flat.symbols.len()).collect();
    order.sort_unstable_by_key(|&index| evaluator.symbols.text(flat.symbols[index]));
    order
}

fn attr_names<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = ev.force_attrs(args[0], pos, "while evaluating the argument passed to builtins.attrNames")?;
    let flat = ev.heap.flat(attrs);
    let order = by_name(ev, &flat);
    Ok(ev.heap.list_with(order.len(), |index| ev.symbol_string(flat.symbols[order[index]])).into())
}

fn attr_values<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = ev.force_attrs(args[0], pos, "while evaluating the argument passed to builtins.attrValues")?;
    let flat = ev.heap.flat(attrs);
    let order = by_name(ev, &flat);
    Ok(ev.heap.list_with(order.len(), |index| flat.values[order[index]].get()).into())
}

fn get_attr<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.getAttr";
    let name = ev.force_string_no_context(args[0], pos, what)?;
    let attrs = ev.force_attrs(args[1], pos, "while evaluating the second argument passed to builtins.getAttr")?;
    match ev.symbols.find_kept(name).and_then(|name| attrs.get(name)) {
        Some(cell) => ev.force_slot(cell),
        None => {
            let message = format!("attribute '{}' missing", shown_name(name));
            Err(Error::eval(Pos::NONE, message).traced(Pos::NONE, "in the attribute set under consideration"))
        }
    }
}

fn unsafe_get_attr_pos<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.unsafeGetAttrPos";
    let name = ev.force_string_no_context(args[0], pos, what)?;
    let what = "while evaluating the second argument passed to builtins.unsafeGetAttrPos";
    let attrs = ev.force_attrs(args[1], pos, what)?;
    Ok(match ev.symbols.find_kept(name).and_then(|name| attrs.find(name)) {
        Some((_, pos)) => ev.position_value(pos),
        None => Value::NULL,
    })
}

fn has_attr<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.hasAttr";
    let name = ev.force_string_no_context(args[0], pos, what)?;
    let attrs = ev.force_attrs(args[1], pos, "while evaluating the second argument passed to builtins.hasAttr")?;
    Ok(Value::bool(ev.symbols.find_kept(name).is_some_and(|name| attrs.get(name).is_some())))
}

fn is_attrs<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    Ok(Value::bool(ev.force(args[0])?.as_attrs().is_some()))
}

fn remove_attrs<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = ev.force_attrs(args[0], pos, "while evaluating the first argument passed to builtins.removeAttrs")?;
    let names = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.removeAttrs")?;
    let mut removed = Vec::with_capacity(names.len());
    for name in names.iter() {
        let what = "while evaluating the values of the second argument passed to builtins.removeAttrs";
        let name = ev.force_string_no_context(name, pos, what)?;
        removed.extend(ev.symbols.find_kept(name).filter(|&name| attrs.get(name).is_some()));
    }
    if removed.is_empty() {
        // Another set all the same: printing tells a set that it has shown before from one that only equals it.
        let flat = ev.heap.flat(attrs);
        return Ok(ev.heap.attrs_with_keys(flat.keys, |index| flat.values[index].get()).into());
    }
    removed.sort_unstable();
    removed.dedup();
    Ok(ev.heap.without(ev.heap.flat(attrs), &removed).into())
}

fn list_to_attrs<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let list = ev.force_list(args[0], pos, "while evaluating the argument passed to builtins.listToAttrs")?;
    let mut entries = Vec::with_capacity(list.len());
    for element in list.slots() {
        let element = ev.force_slot(element)?;
        let what = "while evaluating an element of the list passed to builtins.listToAttrs";
        let Some(element) = element.as_attrs() else { return Err(ev.not_a(element, "a set", pos, what)) };
        let Some((name, name_pos)) = element.find(sym::NAME) else {
            return Err(Error::eval(Pos::NONE, "attribute 'name' missing")
                .traced(Pos::NONE, "in a {name=...; value=...;} pair"));
        };
        let what = "while evaluating the `name` attribute of an element of the list passed to builtins.listToAttrs";
        let name = ev.force_string_no_context(name.get(), name_pos, what)?;
        let name = ev.symbols.intern_kept(name);
        // Of several with one name the first counts, and only that one needs a value; the sort is stable.
        match element.find(sym::VALUE) {
            Some((value, value_pos)) => entries.push((name, value_pos, value.get())),
            None if entries.iter().any(|(other, _, _)| *other == name) => {}
            None => {
                return Err(Error::eval(Pos::NONE, "attribute 'value' missing")
                    .traced(Pos::NONE, "in a {name=...; value=...;} pair"));
            }
        }
    }
    Ok(ev.heap.attrs(&mut entries).into())
}

fn intersect_attrs<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.intersectAttrs";
    let left = ev.force_attrs(args[0], pos, what)?;
    let what = "while evaluating the second argument passed to builtins.intersectAttrs";
    let right = ev.force_attrs(args[1], pos, what)?;
    let left_flat = ev.heap.flat(left);
    let right_size = right.size_hint();
    let mut entries = Vec::new();
    if left_flat.len() <= right_size {
        for &name in left_flat.symbols {
            if let Some((cell, pos)) = right.find(name) {
                entries.push((name, pos, cell.get()));
            }
        }
    } else {
        for (name, pos, cell) in ev.heap.flat(right).iter() {
            if left.get(name).is_some() {
                entries.push((name, pos, cell.get()));
            }
        }
    }
    Ok(ev.heap.attrs_sorted(&entries).into())
}

fn cat_attrs<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.catAttrs";
    let name = ev.symbols.intern_kept(ev.force_string_no_context(args[0], pos, what)?);
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.catAttrs")?;
    let mut values = Vec::with_capacity(list.len());
    for element in list.iter() {
        let what = "while evaluating an element in the list passed as second argument to builtins.catAttrs";
        let attrs = ev.force_attrs(element, pos, what)?;
        values.extend(attrs.get(name).map(Slot::get));
    }
    Ok(ev.heap.list(&values).into())
}

fn function_args<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let function = ev.force(args[0])?;
    match function.kind() {
        Kind::Lambda(closure) => Ok(match &closure.lambda().formals {
            None => ev.heap.empty_attrs().into(),
            Some(formals) => {
                let keys = ev.heap.keys(formals.formals.iter().map(|formal| (formal.name, formal.pos)));
                ev.heap.attrs_with_keys(keys, |index| Value::bool(formals.formals[index].default.is_some())).into()
            }
        }),
        Kind::PrimOp(_) | Kind::PrimOpApp(_) => Ok(ev.heap.empty_attrs().into()),
        _ => Err(Error::eval(pos, "'functionArgs' requires a function")),
    }
}

fn map_attrs<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = ev.force_attrs(args[1], pos, "while evaluating the second argument passed to builtins.mapAttrs")?;
    Ok(ev.heap.map_attrs(args[0], ev.heap.flat(attrs)).into())
}

fn zip_attrs_with<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let function =
        ev.force_function(args[0], pos, "while evaluating the first argument passed to builtins.zipAttrsWith")?;
    let function = if function.may_replace_thunk() { function } else { args[0] };
    let list = ev.force_list(args[1], pos, "while evaluating the second argument passed to builtins.zipAttrsWith")?;
    let mut found: Vec<(Symbol, Value<'a>)> = Vec::new();
    for element in list.iter() {
        let what = "while evaluating a value of the list passed as second argument to builtins.zipAttrsWith";
        let attrs = ev.force_attrs(element, Pos::NONE, what)?;
        found.extend(ev.heap.flat(attrs).iter().map(|(name, _, cell)| (name, cell.get())));
    }
    // stable: the values of a name stay in the order of the list
    found.sort_by_key(|(name, _)| *name);
    let mut entries: Vec<(Symbol, Pos, Value<'a>)> = Vec::with_capacity(found.len());
    for same in found.chunk_by(|(name, _), (other, _)| name == other) {
        let name = same[0].0;
        let values: Value<'a> = ev.heap.list_with(same.len(), |index| same[index].1).into();
        let call = ev.heap.thunk_of_suspension(Suspension::Call2(function, ev.symbol_string(name), values));
        entries.push((name, Pos::NONE, call));
    }
    Ok(ev.heap.attrs_sorted(&entries).into())
}

/// An attribute of a builtin's argument that must be there.
pub(crate) fn required<'a>(ev: &Evaluator<'a>, attrs: Attrs<'a>, name: Symbol, what: &str) -> Result<(Value<'a>, Pos)> {
    match attrs.find(name) {
        Some((cell, pos)) => Ok((cell.get(), pos)),
        None => {
            Err(Error::eval(Pos::NONE, format!("attribute '{}' missing", ev.attr_name(name))).traced(Pos::NONE, what))
        }
    }
}
