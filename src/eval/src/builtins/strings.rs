//! Strings: taking apart, putting together, regular expressions, hashes, versions.

use super::PrimOp;
use super::derivation::enabled_algo;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::eval::{Coerce, Evaluated, Evaluator};
use crate::symbol::sym;
use crate::text::regex::{Captures, Regex, RegexError};
use crate::text::strings::replace_strings as replace_in;
use crate::text::version;
use crate::value::{Kind, List, Pos, Value};
use bento_store::hash::{Hash, HashAlgo, HashError, HashFormat};
use rustc_hash::FxHashMap;
use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("toString", 1, 1, to_string),
    PrimOp::lazy("__substring", 3, substring),
    PrimOp::strict("__stringLength", 1, 1, string_length),
    PrimOp::lazy("__hashString", 2, hash_string),
    PrimOp::lazy("__convertHash", 1, convert_hash),
    PrimOp::lazy("__match", 2, match_regex),
    PrimOp::lazy("__split", 2, split),
    PrimOp::lazy("__concatStringsSep", 2, concat_strings_sep),
    PrimOp::lazy("__replaceStrings", 3, replace_strings),
    PrimOp::lazy("__parseDrvName", 1, parse_drv_name),
    PrimOp::lazy("__compareVersions", 2, compare_versions),
    PrimOp::lazy("__splitVersion", 1, split_version),
];

/// What the builtins on strings remember.
#[derive(Default)]
pub(crate) struct StringState {
    /// Compiled regular expressions by pattern.
    regexes: RefCell<FxHashMap<Box<[u8]>, Rc<Regex>>>,
    /// What a string is put together in. It is taken while in use, so a nested call starts one of its own.
    buffer: RefCell<Vec<u8>>,
}

/// The string that a value becomes; that of a string is not copied.
fn coerced<'a>(
    ev: &Evaluator<'a>,
    value: Value<'a>,
    mode: Coerce,
    pos: Pos,
    what: &str,
) -> Result<(Cow<'a, [u8]>, Context)> {
    let value = ev.force(value)?;
    if let Kind::Str(text) = value.kind() {
        return Ok((Cow::Borrowed(text.bytes()), text.context()));
    }
    let (text, context) = ev.to_string(value, mode, pos, what)?;
    Ok((Cow::Owned(text), context))
}

fn to_string<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let value = ev.force(args[0])?;
    if let Kind::Str(_) = value.kind() {
        return Ok(value);
    }
    let what = "while evaluating the first argument passed to builtins.toString";
    let (text, context) = ev.to_string(value, Coerce::MORE, pos, what)?;
    Ok(ev.heap.string_with_context(&text, context))
}

fn substring<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument (the start offset) passed to builtins.substring";
    let start = ev.force_int(args[0], pos, what)?;
    let Ok(start) = usize::try_from(start) else {
        return Err(Error::eval(pos, "negative start position in 'substring'"));
    };
    let what = "while evaluating the second argument (the substring length) passed to builtins.substring";
    // A negative length reaches to the end.
    let length = usize::try_from(ev.force_int(args[1], pos, what)?).unwrap_or(usize::MAX);
    let what = "while evaluating the third argument (the string) passed to builtins.substring";
    let value = ev.force(args[2])?;
    let (text, context) = coerced(ev, value, Coerce::COPY, pos, what)?;
    if start == 0
        && length >= text.len()
        && let Kind::Str(_) = value.kind()
    {
        return Ok(value);
    }
    let start = start.min(text.len());
    let end = start.saturating_add(length).min(text.len());
    Ok(ev.heap.string_with_context(&text[start..end], context))
}

fn string_length<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.stringLength";
    let (text, _) = coerced(ev, args[0], Coerce::COPY, pos, what)?;
    Ok(ev.heap.int(text.len() as i64))
}

// ---- hashes ---------------------------------------------------------------------------------------------------------

/// The algorithm of this name.
///
/// # Errors
/// When Nix would not know it either.
fn hash_algo(ev: &Evaluator<'_>, name: &[u8]) -> Result<HashAlgo> {
    let algo = String::from_utf8_lossy(name).parse().map_err(|error| hash_error(&error))?;
    enabled_algo(ev, algo)
}

fn hash_error(error: &HashError) -> Box<Error> {
    Error::eval(Pos::NONE, error.to_string())
}

fn hash_string<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.hashString";
    let algo = hash_algo(ev, ev.force_string_no_context(args[0], pos, what)?)?;
    let what = "while evaluating the second argument passed to builtins.hashString";
    // The result depends on the text alone, so it has no context.
    let (text, _) = ev.force_string(args[1], pos, what)?;
    Ok(ev.heap.string(Hash::digest(algo, text).to_base16().as_bytes()))
}

fn convert_hash<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let attrs = ev.force_attrs(args[0], pos, "while evaluating the first argument passed to builtins.convertHash")?;
    let find = |name: &str| attrs.get(ev.symbols.intern(name.as_bytes()));
    let required = |name: &str| {
        find(name).ok_or_else(|| {
            let error = Error::eval(Pos::NONE, format!("attribute '{name}' missing"));
            error.traced(Pos::NONE, format!("while locating the attribute '{name}'"))
        })
    };
    let hash = required("hash")?.get();
    let hash = ev.force_string_no_context(hash, pos, "while evaluating the attribute 'hash'")?;
    let algo = match find("hashAlgo") {
        None => None,
        Some(cell) => {
            let what = "while evaluating the attribute 'hashAlgo'";
            Some(hash_algo(ev, ev.force_string_no_context(cell.get(), pos, what)?)?)
        }
    };
    let format = required("toHashFormat")?.get();
    let format = ev.force_string_no_context(format, pos, "while evaluating the attribute 'toHashFormat'")?;
    let format: HashFormat = String::from_utf8_lossy(format).parse().map_err(|error| hash_error(&error))?;
    let hash = String::from_utf8_lossy(hash);
    if hash.starts_with("blake3:") || hash.starts_with("blake3-") {
        // Nix refuses the algorithm before it looks at the digits.
        enabled_algo(ev, HashAlgo::Blake3)?;
    }
    let hash = Hash::parse_any(&hash, algo).map_err(|error| hash_error(&error))?;
    Ok(ev.heap.string(hash.format(format, false).as_bytes()))
}

// ---- regular expressions --------------------------------------------------------------------------------------------

/// The compiled regular expression of this pattern.
fn regex(ev: &Evaluator<'_>, pattern: &[u8], pos: Pos) -> Result<Rc<Regex>> {
    let regexes = &ev.state.strings.regexes;
    if let Some(regex) = regexes.borrow().get(pattern) {
        return Ok(regex.clone());
    }
    let regex = Rc::new(Regex::compile(pattern).map_err(|error| regex_error(&error, pos))?);
    regexes.borrow_mut().insert(pattern.into(), regex.clone());
    Ok(regex)
}

#[cold]
fn regex_error(error: &RegexError, pos: Pos) -> Box<Error> {
    Error::eval(pos, error.to_string())
}

/// What the groups matched, `null` for those that took no part. The strings have no context.
fn groups<'a>(ev: &Evaluator<'a>, text: &[u8], captures: &Captures) -> List<'a> {
    ev.heap.list_with(captures.groups.len(), |index| match &captures.groups[index] {
        Some(range) => ev.heap.string(&text[range.clone()]),
        None => Value::NULL,
    })
}

fn match_regex<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.match";
    let regex = regex(ev, ev.force_string_no_context(args[0], pos, what)?, pos)?;
    let what = "while evaluating the second argument passed to builtins.match";
    let (text, _) = ev.force_string(args[1], pos, what)?;
    match regex.full_match(text).map_err(|error| regex_error(&error, pos))? {
        None => Ok(Value::NULL),
        Some(captures) => Ok(groups(ev, text, &captures).into()),
    }
}

fn split<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.split";
    let regex = regex(ev, ev.force_string_no_context(args[0], pos, what)?, pos)?;
    let what = "while evaluating the second argument passed to builtins.split";
    let (text, _) = ev.force_string(args[1], pos, what)?;
    let mut pieces = Vec::new();
    let mut end = 0;
    for captures in regex.find_iter(text) {
        let captures = captures.map_err(|error| regex_error(&error, pos))?;
        pieces.push(ev.heap.string(&text[end..captures.whole.start]));
        pieces.push(groups(ev, text, &captures).into());
        end = captures.whole.end;
    }
    // A string that is not split at all keeps its context; its pieces would not.
    pieces.push(if pieces.is_empty() { ev.force(args[1])? } else { ev.heap.string(&text[end..]) });
    Ok(ev.heap.list(&pieces).into())
}

// ---- putting together -----------------------------------------------------------------------------------------------

fn concat_strings_sep<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument (the separator string) passed to builtins.concatStringsSep";
    let (separator, separator_context) = ev.force_string(args[0], pos, what)?;
    let what =
        "while evaluating the second argument (the list of strings to concat) passed to builtins.concatStringsSep";
    let list = ev.force_list(args[1], pos, what)?;
    if let ([cell], 0) = (list.slots(), separator_context) {
        let value = ev.force_slot(cell)?;
        if let Kind::Str(_) = value.kind() {
            return Ok(value);
        }
    }
    let mut text = ev.state.strings.buffer.take();
    text.clear();
    let joined = join(ev, separator, separator_context, list, pos, &mut text);
    let value = joined.map(|context| ev.heap.string_with_context(&text, context));
    ev.state.strings.buffer.replace(text);
    value
}

/// Appends the elements to `text`; gives their contexts' union with `context`.
fn join<'a>(
    ev: &Evaluator<'a>,
    separator: &[u8],
    mut context: Context,
    list: List<'a>,
    pos: Pos,
    text: &mut Vec<u8>,
) -> Result<Context> {
    let what = "while evaluating one element of the list of strings to concat passed to builtins.concatStringsSep";
    for (index, cell) in list.slots().iter().enumerate() {
        if index > 0 {
            text.extend_from_slice(separator);
        }
        let value = ev.force_slot(cell)?;
        ev.coerce_to_string(value, text, &mut context, Coerce::COPY, pos, what)?;
    }
    Ok(context)
}

fn replace_strings<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.replaceStrings";
    let from = ev.force_list(args[0], pos, what)?;
    let what = "while evaluating the second argument passed to builtins.replaceStrings";
    let to = ev.force_list(args[1], pos, what)?;
    if from.len() != to.len() {
        let message = "'from' and 'to' arguments passed to builtins.replaceStrings have different lengths";
        return Err(Error::eval(pos, message));
    }
    let what = "while evaluating one of the strings to replace passed to builtins.replaceStrings";
    let mut patterns: Vec<&[u8]> = Vec::with_capacity(from.len());
    for pattern in from.iter() {
        patterns.push(ev.force_string(pattern, pos, what)?.0);
    }
    let what = "while evaluating the third argument passed to builtins.replaceStrings";
    let (text, mut context) = ev.force_string(args[2], pos, what)?;
    let what = "while evaluating one of the replacement strings passed to builtins.replaceStrings";
    // Replacements are evaluated when they are first needed, and only then do they add their context.
    let mut replacements: Vec<Option<&[u8]>> = Vec::new();
    let result = replace_in(&patterns, text, |index, out| {
        if replacements.is_empty() {
            replacements.resize(patterns.len(), None);
        }
        let replacement = match replacements[index] {
            Some(replacement) => replacement,
            None => {
                let (replacement, more) = ev.force_string(to.slots()[index].get(), pos, what)?;
                context = ev.contexts.union(context, more);
                *replacements[index].insert(replacement)
            }
        };
        out.extend_from_slice(replacement);
        Ok::<(), Box<Error>>(())
    })?;
    if replacements.is_empty() {
        // Nothing was found: the string is its own result.
        return ev.force(args[2]);
    }
    Ok(ev.heap.string_with_context(&result, context))
}

// ---- versions -------------------------------------------------------------------------------------------------------

fn parse_drv_name<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.parseDrvName";
    let (name, version) = version::parse_drv_name(ev.force_string_no_context(args[0], pos, what)?);
    let mut attrs = vec![
        (sym::NAME, Pos::NONE, ev.heap.string(name)),
        (ev.symbols.intern_kept(b"version"), Pos::NONE, ev.heap.string(version)),
    ];
    Ok(ev.heap.attrs(&mut attrs).into())
}

fn compare_versions<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.compareVersions";
    let left = ev.force_string_no_context(args[0], pos, what)?;
    let what = "while evaluating the second argument passed to builtins.compareVersions";
    let right = ev.force_string_no_context(args[1], pos, what)?;
    Ok(ev.heap.int(version::compare_versions(left, right) as i64))
}

fn split_version<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.splitVersion";
    let text = ev.force_string_no_context(args[0], pos, what)?;
    let components: Vec<Value<'a>> = version::split_version(text).map(|component| ev.heap.string(component)).collect();
    Ok(ev.heap.list(&components).into())
}
