//! What a caller asks for of a value: a selection path into it, automatic arguments for functions, the derivations in it.

use crate::error::{Error, ErrorKind, Result};
use crate::eval::{Coerce, Evaluated, Evaluator};
use crate::expr::LambdaExpr;
use crate::symbol::sym;
use crate::value::{Attrs, Kind, Pos, Slot, Value};
use rustc_hash::FxHashSet;

/// What `nix-instantiate` prints a line for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instantiable {
    /// The derivation's path in the store.
    pub drv_path: String,
    /// The output that was selected.
    pub output: String,
}

/// The names of a selection path: split at dots, of which those in double quotes are part of a name. A trailing empty name
/// does not count.
///
/// # Errors
/// When a quote is not closed.
fn parse_path(path: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut quoted = false;
    for c in path.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => names.push(std::mem::take(&mut name)),
            c => name.push(c),
        }
    }
    if quoted {
        let message = format!("missing closing quote in selection path '{path}'");
        return Err(Error::new(ErrorKind::Parse, Pos::NONE, message));
    }
    if !name.is_empty() {
        names.push(name);
    }
    Ok(names)
}

/// Whether `nix-env` and `nix-instantiate` look at an attribute of this name when they look for derivations.
fn is_searched(name: &[u8]) -> bool {
    let starts = name.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    starts && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'+'))
}

impl<'a> Evaluator<'a> {
    /// What a selection path (`a.b."c.d".0`) leads to, evaluated. Functions on the way are called with `auto_args`; numbers
    /// are list indices. The empty path is `root` itself, which is not called.
    ///
    /// # Errors
    /// When the path can't be followed, or what evaluation gives.
    pub fn select_path(&self, root: Value<'a>, path: &str, auto_args: Attrs<'a>) -> Evaluated<'a> {
        let mut value = root;
        for name in &parse_path(path)? {
            value = self.auto_call(auto_args, value)?;
            value = match name.parse::<u32>() {
                Ok(index) => self.select_index(value, index, path)?,
                Err(_) => self.select_name(value, name, path)?,
            };
        }
        self.force(value)
    }

    fn select_index(&self, value: Value<'a>, index: u32, path: &str) -> Result<Value<'a>> {
        let Kind::List(list) = value.kind() else {
            let message = format!(
                "the expression selected by the selection path '{path}' should be a list but is {}",
                self.type_of(value)
            );
            return Err(Error::eval(Pos::NONE, message));
        };
        let found = list.slots().get(index as usize).map(Slot::get);
        found.ok_or_else(|| {
            Error::eval(Pos::NONE, format!("list index {index} in selection path '{path}' is out of range"))
        })
    }

    fn select_name(&self, value: Value<'a>, name: &str, path: &str) -> Result<Value<'a>> {
        let Some(attrs) = value.as_attrs() else {
            let message = format!(
                "the expression selected by the selection path '{path}' should be a set but is {}",
                self.type_of(value)
            );
            return Err(Error::eval(Pos::NONE, message));
        };
        if name.is_empty() {
            return Err(Error::eval(Pos::NONE, format!("empty attribute name in selection path '{path}'")));
        }
        let found = self.symbols.find(name.as_bytes()).and_then(|symbol| attrs.get(symbol));
        found.map(Slot::get).ok_or_else(|| {
            let mut error = Error::eval(Pos::NONE, format!("attribute '{name}' in selection path '{path}' not found"));
            let names = self.heap.flat(attrs).symbols;
            error.suggestions = crate::suggest::best_matches(name, names.iter().map(|&name| self.name(name)));
            error
        })
    }

    /// The result of a function that takes a set by its names: it gets those of `auto_args` that it takes, or all of them if
    /// it takes any. A set with `__functor` is called as it says first. Any other value is the result itself.
    ///
    /// # Errors
    /// When an argument is missing, or what evaluation gives.
    pub fn auto_call(&self, auto_args: Attrs<'a>, function: Value<'a>) -> Evaluated<'a> {
        let function = self.force(function)?;
        if let Some(functor) = function.as_attrs().and_then(|attrs| attrs.get(sym::FUNCTOR)) {
            let functor = self.force_slot(functor)?;
            return self.nested(Pos::NONE, || {
                let called = self.call(functor, &[function], Pos::NONE)?;
                self.auto_call(auto_args, called)
            });
        }
        let Some(closure) = function.as_lambda() else {
            return Ok(function);
        };
        let lambda: &'a LambdaExpr<'a> = closure.lambda();
        let Some(formals) = &lambda.formals else {
            return Ok(function);
        };
        let arguments = if formals.ellipsis {
            auto_args
        } else {
            let mut arguments = Vec::new();
            for formal in formals.formals {
                match auto_args.find(formal.name) {
                    Some((cell, pos)) => arguments.push((formal.name, pos, cell.get())),
                    None if formal.default.is_none() => {
                        let message = format!(
                            "cannot evaluate a function that has an argument without a value ('{}')\n\
                             Nix attempted to evaluate a function as a top level expression; in\n\
                             this case it must have its arguments supplied either by default\n\
                             values, or passed explicitly with '--arg' or '--argstr'. See\n\
                             https://nix.dev/manual/nix/stable/language/syntax.html#functions.",
                            self.name(formal.name)
                        );
                        return Err(Error::eval(formal.pos, message));
                    }
                    None => {}
                }
            }
            self.heap.attrs(&mut arguments)
        };
        self.call(function, &[arguments.into()], lambda.pos)
    }

    /// The derivations that a value stands for, in the order in which `nix-instantiate` prints them: the value itself, the
    /// elements of a list, or the attributes of a set, of which other sets are entered if they have `recurseForDerivations`.
    /// Functions are called with `auto_args`. A derivation that turns up twice counts once.
    ///
    /// # Errors
    /// When the value is something else, a derivation has no proper `drvPath`, or what evaluation gives.
    pub fn instantiables(&self, value: Value<'a>, auto_args: Attrs<'a>) -> Result<Vec<Instantiable>> {
        let mut search = Search { evaluator: self, auto_args, done: FxHashSet::default(), found: Vec::new() };
        search.search(value)?;
        search.found.into_iter().map(|attrs| self.instantiable(attrs)).collect()
    }

    fn instantiable(&self, attrs: Attrs<'a>) -> Result<Instantiable> {
        let Some((cell, pos)) = attrs.find(sym::DRV_PATH) else {
            return Err(Error::eval(Pos::NONE, "derivation does not contain a 'drvPath' attribute"));
        };
        let what = "while evaluating the 'drvPath' attribute of a derivation";
        let (text, _) = self.to_string(cell.get(), Coerce::PLAIN, pos, what)?;
        let path = self.store.parse(&text).map_err(|_| {
            let message = format!("path '{}' is not in the Nix store", String::from_utf8_lossy(&text));
            Error::eval(Pos::NONE, message).traced(pos, what)
        })?;
        if !path.is_derivation() {
            let message = format!("store path '{path}' is not a valid derivation path");
            return Err(Error::eval(Pos::NONE, message).traced(pos, what));
        }
        let drv_path = self.store.print(&path);
        let output = match attrs.get(sym::OUTPUT_NAME) {
            Some(cell) => {
                let what = "while evaluating the output name of a derivation";
                self.force_string_no_context(cell.get(), Pos::NONE, what)?
            }
            None => b"",
        };
        if output.is_empty() {
            let message = format!("derivation '{drv_path}' lacks an 'outputName' attribute");
            return Err(Error::eval(Pos::NONE, message));
        }
        Ok(Instantiable { drv_path, output: String::from_utf8_lossy(output).into_owned() })
    }
}

/// A search for derivations.
struct Search<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    auto_args: Attrs<'a>,
    done: FxHashSet<usize>,
    found: Vec<Attrs<'a>>,
}

impl<'a> Search<'_, 'a> {
    /// Takes a value up if it is a derivation; whether it is none, so that there may be some inside.
    fn is_other(&mut self, value: Value<'a>) -> Result<bool> {
        let evaluator = self.evaluator;
        let value = evaluator.force(value)?;
        let Some(attrs) = value.as_attrs() else {
            return Ok(true);
        };
        if !evaluator.is_derivation(attrs)? {
            return Ok(true);
        }
        if self.done.insert(value.address()) {
            let Some(name) = attrs.get(sym::NAME) else {
                return Err(Error::eval(Pos::NONE, "derivation name missing"));
            };
            let what = "while evaluating the 'name' attribute of a derivation";
            evaluator.force_string_no_context(name.get(), Pos::NONE, what)?;
            self.found.push(attrs);
        }
        Ok(false)
    }

    fn search(&mut self, value: Value<'a>) -> Result<()> {
        let evaluator = self.evaluator;
        evaluator.nested(Pos::NONE, || {
            let value = evaluator.auto_call(self.auto_args, value)?;
            if !self.is_other(value)? {
                return Ok(());
            }
            match value.kind() {
                Kind::Attrs(attrs) => self.search_attrs(attrs),
                Kind::List(list) => {
                    for element in list.iter() {
                        if self.is_other(element)? {
                            self.search(element)?;
                        }
                    }
                    Ok(())
                }
                _ => {
                    let message = "expression does not evaluate to a derivation (or a set or list of those)";
                    Err(Error::eval(Pos::NONE, message))
                }
            }
        })
    }

    fn search_attrs(&mut self, attrs: Attrs<'a>) -> Result<()> {
        let evaluator = self.evaluator;
        let recurse = evaluator.symbols.intern(b"recurseForDerivations");
        // How nix-env tells the set of all channels, which has no `recurseForDerivations`.
        let combined = attrs.get(evaluator.symbols.intern(b"_combineChannels")).is_some();
        for (name, pos, cell) in evaluator.lexicographic(attrs) {
            if !is_searched(evaluator.symbols.text(name)) {
                continue;
            }
            let mut visit = || {
                if combined {
                    return self.search(cell.get());
                }
                if !self.is_other(cell.get())? {
                    return Ok(());
                }
                let inner = evaluator.force_slot(cell)?.as_attrs().and_then(|attrs| attrs.find(recurse));
                if let Some((flag, pos)) = inner {
                    let what = "while evaluating the attribute `recurseForDerivations`";
                    if evaluator.force_bool(flag.get(), pos, what)? {
                        return self.search(cell.get());
                    }
                }
                Ok(())
            };
            visit().map_err(|error| {
                error.traced(pos, format!("while evaluating the attribute '{}'", evaluator.attr_name(name)))
            })?;
        }
        Ok(())
    }
}
