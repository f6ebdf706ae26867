//! Builtins that ask for types, raise and catch errors, order evaluation, speak to the user, and import.

use super::PrimOp;
use crate::error::{Error, ErrorKind, FrameKind};
use crate::eval::{Coerce, Evaluated, Evaluator};
use crate::symbol::sym;
use crate::value::{Kind, Pos, Value};

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("__typeOf", 1, 1, type_of),
    PrimOp::strict("isNull", 1, 1, |ev, args, _| is(ev, args, |kind| matches!(kind, Kind::Null))),
    PrimOp::strict("__isFunction", 1, 1, |ev, args, _| {
        is(ev, args, |kind| matches!(kind, Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_)))
    }),
    PrimOp::strict("__isInt", 1, 1, |ev, args, _| is(ev, args, |kind| matches!(kind, Kind::Int(_)))),
    PrimOp::strict("__isFloat", 1, 1, |ev, args, _| is(ev, args, |kind| matches!(kind, Kind::Float(_)))),
    PrimOp::strict("__isString", 1, 1, |ev, args, _| is(ev, args, |kind| matches!(kind, Kind::Str(_)))),
    PrimOp::strict("__isBool", 1, 1, |ev, args, _| is(ev, args, |kind| matches!(kind, Kind::Bool(_)))),
    PrimOp::strict("__isPath", 1, 1, |ev, args, _| is(ev, args, |kind| matches!(kind, Kind::Path(_)))),
    PrimOp::lazy("break", 1, |_, args, _| Ok(args[0])),
    PrimOp::lazy("abort", 1, abort),
    PrimOp::lazy("throw", 1, throw),
    PrimOp::lazy("__addErrorContext", 2, add_error_context).untraced(),
    PrimOp::lazy("__tryEval", 1, try_eval),
    PrimOp::strict("__getEnv", 1, 1, get_env),
    PrimOp::strict("__seq", 2, 1, seq),
    PrimOp::lazy("__deepSeq", 2, deep_seq),
    PrimOp::strict("__trace", 2, 1, trace),
    PrimOp::lazy("__traceVerbose", 2, trace_verbose),
    PrimOp::strict("__warn", 2, 1, warn),
    PrimOp::strict("import", 1, 1, import).importing(),
    PrimOp::lazy("scopedImport", 2, scoped_import),
];

fn type_of<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    let name: &[u8] = match ev.force(args[0])?.kind() {
        Kind::Int(_) => b"int",
        Kind::Bool(_) => b"bool",
        Kind::Str(_) => b"string",
        Kind::Path(_) => b"path",
        Kind::Null => b"null",
        Kind::Attrs(_) => b"set",
        Kind::List(_) => b"list",
        Kind::Float(_) => b"float",
        Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_) | Kind::Thunk(_) => b"lambda",
    };
    Ok(ev.symbol_string(ev.symbols.intern(name)))
}

fn is<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], test: impl Fn(Kind<'a>) -> bool) -> Evaluated<'a> {
    Ok(Value::bool(test(ev.force(args[0])?.kind())))
}

fn abort<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the error message passed to builtins.abort";
    let (text, _) = ev.to_string(args[0], Coerce::COPY, pos, what)?;
    let message = format!("evaluation aborted with the following error message: '{}'", String::from_utf8_lossy(&text));
    Err(Error::new(ErrorKind::Abort, Pos::NONE, message))
}

fn throw<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the error message passed to builtin.throw";
    let (text, _) = ev.to_string(args[0], Coerce::COPY, pos, what)?;
    let message = String::from_utf8_lossy(&text).into_owned();
    Err(Error::new(ErrorKind::Throw, Pos::NONE, message))
}

fn add_error_context<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    match ev.force(args[1]) {
        Ok(value) => Ok(value),
        Err(error) => {
            let what = "while evaluating the error message passed to builtins.addErrorContext";
            let (text, _) = ev.to_string(args[0], Coerce::PLAIN, pos, what)?;
            Err(error.traced_as(FrameKind::Context, Pos::NONE, String::from_utf8_lossy(&text).into_owned()))
        }
    }
}

fn try_eval<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    let (success, value) = match ev.force(args[0]) {
        Ok(value) => (Value::TRUE, if value.may_replace_thunk() { value } else { args[0] }),
        Err(error) if matches!(error.kind, ErrorKind::Throw | ErrorKind::Assert) => (Value::FALSE, Value::FALSE),
        Err(error) => return Err(error),
    };
    let mut entries = vec![(ev.symbols.intern_kept(b"success"), Pos::NONE, success), (sym::VALUE, Pos::NONE, value)];
    Ok(ev.heap.attrs(&mut entries).into())
}

fn get_env<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.getEnv";
    let name = ev.force_string_no_context(args[0], pos, what)?;
    if ev.settings.pure || ev.settings.restricted {
        return Ok(ev.heap.string(b""));
    }
    let value = ev.host.env(&String::from_utf8_lossy(name)).unwrap_or_default();
    Ok(ev.heap.string(&value))
}

fn seq<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    ev.force(args[0])?;
    ev.force(args[1])
}

fn deep_seq<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    ev.force_deep(args[0])?;
    ev.force(args[1])
}

fn trace<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], _: Pos) -> Evaluated<'a> {
    let value = ev.force(args[0])?;
    match value.kind() {
        Kind::Str(text) => ev.host.trace(&String::from_utf8_lossy(text.bytes())),
        _ => ev.host.trace(&ev.show_for_trace(value)),
    }
    ev.force(args[1])
}

fn trace_verbose<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    if ev.settings.trace_verbose { trace(ev, args, pos) } else { ev.force(args[1]) }
}

fn warn<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument; the message passed to builtins.warn";
    let (text, _) = ev.force_string(args[0], pos, what)?;
    ev.host.evaluation_warning(&String::from_utf8_lossy(text));
    if ev.settings.abort_on_warn {
        let message = "aborting to reveal stack trace of warning, as abort-on-warn is set";
        return Err(Error::new(ErrorKind::Abort, Pos::NONE, message));
    }
    ev.force(args[1])
}

fn import<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let path = ev.readable_path(args[0], pos)?;
    match ev.derivation_at(&path)? {
        Some(derivation) => super::derivation::to_value(ev, &path, &derivation),
        None => ev.import_file(&path),
    }
}

fn scoped_import<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let path = ev.readable_path(args[1], pos)?;
    let what = "while evaluating the first argument passed to builtins.scopedImport";
    let scope = ev.force_attrs(args[0], pos, what)?;
    ev.eval_file_in_scope(&path, scope)
}
