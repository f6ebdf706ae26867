//! String contexts.

use super::PrimOp;
use crate::context::{Context, Derived, Element};
use crate::error::{Error, Result};
use crate::eval::{Coerce, Evaluated, Evaluator};
use crate::symbol::sym;
use crate::value::{Kind, Pos, Value};
use bento_store::store_path::{DRV_EXTENSION, StorePath};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("__unsafeDiscardStringContext", 1, 1, unsafe_discard_string_context),
    PrimOp::lazy("__hasContext", 1, has_context),
    PrimOp::strict("__unsafeDiscardOutputDependency", 1, 1, unsafe_discard_output_dependency),
    PrimOp::strict("__addDrvOutputDependencies", 1, 1, add_drv_output_dependencies),
    PrimOp::lazy("__getContext", 1, get_context),
    PrimOp::lazy("__appendContext", 2, append_context),
];

/// The string that `value` becomes, its context replaced by what `change` makes of it.
fn with_context<'a>(
    ev: &Evaluator<'a>,
    value: Value<'a>,
    pos: Pos,
    what: &str,
    change: impl FnOnce(&[u8], Context) -> Result<Context>,
) -> Evaluated<'a> {
    let value = ev.force(value)?;
    if let Kind::Str(text) = value.kind() {
        let context = change(text.bytes(), text.context())?;
        let unchanged = context == text.context();
        return Ok(if unchanged { value } else { ev.heap.string_with_context(text.bytes(), context) });
    }
    let (text, context) = ev.to_string(value, Coerce::COPY, pos, what)?;
    let context = change(&text, context)?;
    Ok(ev.heap.string_with_context(&text, context))
}

fn unsafe_discard_string_context<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.unsafeDiscardStringContext";
    with_context(ev, args[0], pos, what, |_, _| Ok(0))
}

fn has_context<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let (_, context) = ev.force_string(args[0], pos, "while evaluating the argument passed to builtins.hasContext")?;
    Ok(Value::bool(context != 0))
}

fn unsafe_discard_output_dependency<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.unsafeDiscardOutputDependency";
    with_context(ev, args[0], pos, what, |_, context| {
        if context == 0 {
            return Ok(0);
        }
        Ok(ev.contexts.of(ev.contexts.elements(context).into_iter().map(|element| match element {
            Element::DrvDeep(drv) => Element::Opaque(drv),
            element => element,
        })))
    })
}

fn add_drv_output_dependencies<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.addDrvOutputDependencies";
    with_context(ev, args[0], pos, what, |text, context| {
        let elements = ev.contexts.elements(context);
        let [element] = elements.as_slice() else {
            let text = String::from_utf8_lossy(text);
            let count = elements.len();
            let message = format!("context of string '{text}' must have exactly one element, but has {count}");
            return Err(Error::eval(pos, message));
        };
        match element {
            Element::DrvDeep(_) => Ok(context),
            Element::Opaque(path) if path.ends_with(DRV_EXTENSION) => {
                Ok(ev.contexts.single(Element::DrvDeep(path.clone())))
            }
            Element::Opaque(path) => {
                let message = format!("path '{}/{path}' is not a derivation", ev.store.as_str());
                Err(Error::eval(pos, message))
            }
            Element::Built { output, .. } => {
                let message = format!(
                    "`addDrvOutputDependencies` can only act on derivations, not on a derivation output such as '{output}'"
                );
                Err(Error::eval(pos, message))
            }
        }
    })
}

/// What a string's context says about one store path.
#[derive(Default)]
struct ContextInfo {
    path: bool,
    all_outputs: bool,
    outputs: Vec<Rc<str>>,
}

fn get_context<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let (_, context) = ev.force_string(args[0], pos, "while evaluating the argument passed to builtins.getContext")?;
    let mut infos: BTreeMap<Rc<str>, ContextInfo> = BTreeMap::new();
    for element in ev.contexts.elements(context) {
        match element {
            Element::Opaque(path) => infos.entry(path).or_default().path = true,
            Element::DrvDeep(path) => infos.entry(path).or_default().all_outputs = true,
            Element::Built { drv: Derived::Path(drv), output } => infos.entry(drv).or_default().outputs.push(output),
            Element::Built { drv: Derived::Output(drv, output), .. } => return Err(unbuilt(ev, &drv, &output)),
        }
    }
    let mut attrs: Vec<_> = infos
        .iter()
        .map(|(path, info)| {
            let mut attrs = Vec::with_capacity(3);
            if info.path {
                attrs.push((sym::PATH, Pos::NONE, Value::TRUE));
            }
            if info.all_outputs {
                attrs.push((ev.symbols.intern_kept(b"allOutputs"), Pos::NONE, Value::TRUE));
            }
            if !info.outputs.is_empty() {
                let outputs =
                    ev.heap.list_with(info.outputs.len(), |index| ev.heap.string(info.outputs[index].as_bytes()));
                attrs.push((sym::OUTPUTS, Pos::NONE, outputs.into()));
            }
            let name = ev.symbols.intern(format!("{}/{path}", ev.store.as_str()).as_bytes());
            (name, Pos::NONE, ev.heap.attrs(&mut attrs).into())
        })
        .collect();
    Ok(ev.heap.attrs(&mut attrs).into())
}

/// The error for a derivation that a derivation would have to be built for.
#[cold]
fn unbuilt(ev: &Evaluator<'_>, drv: &Derived, output: &str) -> Box<Error> {
    let message = format!("cannot operate on output '{output}' of the unbuilt derivation '{}'", ev.show_derived(drv));
    Error::eval(Pos::NONE, message)
}

fn append_context<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.appendContext";
    let (text, context) = ev.force_string(args[0], Pos::NONE, what)?;
    let what = "while evaluating the second argument passed to builtins.appendContext";
    let added = ev.force_attrs(args[1], pos, what)?;
    let mut elements = ev.contexts.elements(context);
    for (name, name_pos, info) in ev.heap.flat(added).iter() {
        let name = ev.symbols.text(name);
        let Ok(path) = ev.store.parse(name) else {
            let message = format!("context key '{}' is not a store path", String::from_utf8_lossy(name));
            return Err(Error::eval(name_pos, message));
        };
        append_info(ev, &path, info.get(), name_pos, &mut elements)?;
    }
    let context = ev.contexts.of(elements);
    Ok(ev.heap.string_with_context(text, context))
}

fn append_info<'a>(
    ev: &Evaluator<'a>,
    path: &StorePath,
    info: Value<'a>,
    pos: Pos,
    elements: &mut Vec<Element>,
) -> Result<()> {
    let name: Rc<str> = Rc::from(path.as_str());
    let not_a_derivation = |what: &str| {
        let message =
            format!("tried to add {what} of {}, which is not a derivation, to a string", ev.store.print(path));
        Err(Error::eval(pos, message))
    };
    let info = ev.force_attrs(info, pos, "while evaluating the value of a string context")?;
    if let Some((cell, pos)) = info.find(sym::PATH)
        && ev.force_bool(cell.get(), pos, "while evaluating the `path` attribute of a string context")?
    {
        elements.push(Element::Opaque(name.clone()));
    }
    if let Some((cell, pos)) = info.find(ev.symbols.intern_kept(b"allOutputs"))
        && ev.force_bool(cell.get(), pos, "while evaluating the `allOutputs` attribute of a string context")?
    {
        if !path.is_derivation() {
            return not_a_derivation("all-outputs context");
        }
        elements.push(Element::DrvDeep(name.clone()));
    }
    if let Some((cell, pos)) = info.find(sym::OUTPUTS) {
        let outputs = ev.force_list(cell.get(), pos, "while evaluating the `outputs` attribute of a string context")?;
        if !outputs.is_empty() && !path.is_derivation() {
            return not_a_derivation("derivation output context");
        }
        for output in outputs.iter() {
            let what = "while evaluating an output name within a string context";
            let output = ev.force_string_no_context(output, pos, what)?;
            let output = Rc::from(String::from_utf8_lossy(output));
            elements.push(Element::Built { drv: Derived::Path(name.clone()), output });
        }
    }
    Ok(())
}
