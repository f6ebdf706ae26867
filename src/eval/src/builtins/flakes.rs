//! Flakes as values: `getFlake` and what it leads to.
//!
//! A flake's inputs, outputs and metadata are promises: each node of the lock file has one for each of its parts, which the
//! evaluator redeems through [`resume`] when somebody looks. So a locked input that nobody uses is never read.

use super::PrimOp;
use super::fetch::{store_path_value, tree_attrs};
use crate::error::{Error, ErrorKind, Result};
use crate::expr::Expr;
use crate::flake::fetch::Fetcher;
use crate::flake::lock::{InputPath, parse_input_path, show_input_path};
use crate::flake::reference::{Attr, Attrs as RefAttrs, FlakeRef, ParseOptions, ParsedRef};
use crate::flake::{FlakeDeclaration, FlakeError, FlakeHost, InputDeclaration, LoadOptions, LockedFlake, load};
use crate::fs::{self, FileSystem};
use crate::symbol::sym;
use crate::syntax;
use crate::value::{Kind, Pos, Suspension, ThunkState, Value};
use crate::{Evaluated, Evaluator};
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::strict("__getFlake", 1, 1, get_flake),
    PrimOp::strict("__parseFlakeRef", 1, 1, parse_flake_ref),
    PrimOp::strict("__flakeRefToString", 1, 1, flake_ref_to_string),
];

/// What is remembered of flakes and sources during an evaluation.
#[derive(Default)]
pub(crate) struct FlakeState<'a> {
    fetcher: OnceCell<Rc<Fetcher>>,
    /// Paths that may be read, with everything below, although evaluation is pure or restricted.
    allowed: RefCell<BTreeSet<Vec<u8>>>,
    graphs: RefCell<Vec<Rc<Graph<'a>>>>,
    /// What the numbers in [`Suspension::Deferred`] stand for.
    deferred: RefCell<Vec<Deferred>>,
}

/// A flake with its inputs.
struct Graph<'a> {
    locked: LockedFlake,
    nodes: Vec<NodeValues<'a>>,
}

/// The parts of a node, as promises.
struct NodeValues<'a> {
    source_info: Value<'a>,
    out_path: Value<'a>,
    inputs: Value<'a>,
    outputs: Value<'a>,
    result: Value<'a>,
}

#[derive(Clone, Copy)]
struct Deferred {
    graph: usize,
    node: usize,
    part: Part,
}

#[derive(Clone, Copy)]
enum Part {
    /// The metadata of the whole source.
    SourceInfo,
    /// The flake's directory.
    OutPath,
    /// The results of the node's inputs.
    Inputs,
    /// What the function `outputs` gives.
    Outputs,
    /// The node as those see it whose input it is.
    Result,
}

/// Carries out the deferred computation with this number.
pub(crate) fn resume<'a>(evaluator: &Evaluator<'a>, number: u32) -> Evaluated<'a> {
    let state = &evaluator.state.flakes;
    let deferred = state.deferred.borrow().get(number as usize).copied();
    let graph = deferred.and_then(|deferred| state.graphs.borrow().get(deferred.graph).cloned());
    match (deferred, graph) {
        (Some(deferred), Some(graph)) => evaluator.flake_part(&graph, deferred.node, deferred.part),
        _ => Err(Error::infinite_recursion()),
    }
}

impl From<FlakeError> for Box<Error> {
    fn from(error: FlakeError) -> Self {
        let mut contexts = Vec::new();
        let mut error = error;
        while let FlakeError::While { context, error: inner } = error {
            contexts.push(context);
            error = *inner;
        }
        let kind = match error {
            FlakeError::Fs(_) => ErrorKind::File,
            FlakeError::Unavailable { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Eval,
        };
        let error = Error::new(kind, Pos::NONE, error.to_string());
        contexts.into_iter().rev().fold(error, |error, context| error.traced(Pos::NONE, context))
    }
}

impl<'a> Evaluator<'a> {
    // ---- what may be read -------------------------------------------------------------------------------------------

    /// Lets a path and everything below it be read although evaluation is pure or restricted. It is absolute and canonical.
    pub(crate) fn allow_path(&self, path: &[u8]) {
        if self.settings.pure || self.settings.restricted {
            self.state.flakes.allowed.borrow_mut().insert(path.to_vec());
        }
    }

    /// Whether an absolute, canonical path may be read: always, unless evaluation is pure or restricted. What leads to an
    /// allowed path may be read too.
    pub(crate) fn is_allowed(&self, path: &[u8]) -> bool {
        if !self.settings.pure && !self.settings.restricted {
            return true;
        }
        let within = |inner: &[u8], outer: &[u8]| match inner.strip_prefix(outer) {
            Some(rest) => rest.is_empty() || rest[0] == b'/' || outer == b"/",
            None => false,
        };
        let related = |allowed: &[u8]| within(path, allowed) || within(allowed, path);
        if self.settings.allowed_paths.iter().any(|allowed| related(fs::bytes_of(allowed))) {
            return true;
        }
        let allowed = self.state.flakes.allowed.borrow();
        let mut prefix = path;
        while !prefix.is_empty() {
            if allowed.contains(prefix) {
                return true;
            }
            prefix = &prefix[..memchr::memrchr(b'/', prefix).unwrap_or(0)];
        }
        let mut below = path.to_vec();
        if below.last() != Some(&b'/') {
            below.push(b'/');
        }
        allowed.contains(&b"/"[..])
            || allowed.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below))
    }

    // ---- flakes -----------------------------------------------------------------------------------------------------

    /// What fetches sources; made when it is first needed.
    pub(crate) fn fetcher(&self) -> Rc<Fetcher> {
        let make = || {
            let host = self.host.clone();
            let warn = Rc::new(move |message: &str| host.warn(message));
            let settings = self.settings.fetch.clone();
            Rc::new(Fetcher::new(self.fs.clone(), self.fs.base(), self.store.clone(), settings, warn))
        };
        self.state.flakes.fetcher.get_or_init(make).clone()
    }

    /// The value of a flake that a user names, as `nix eval` and `nix build` take it, and what followed `#`: which output is
    /// meant. Relative paths start from `base_dir`. Its lock file is used where there is one and brought up to date in memory
    /// where it doesn't fit, so a flake without one evaluates as long as its inputs can be had.
    ///
    /// # Errors
    /// When the reference makes no sense, the flake or an input of it can't be had, or `flake.nix` is wrong.
    pub fn flake_outputs(&self, reference: &str, base_dir: &Path) -> Result<(Value<'a>, String)> {
        self.flake_outputs_with(reference, base_dir, &LoadOptions::default())
    }

    /// As [`Evaluator::flake_outputs`], with other sources for some inputs (see [`Evaluator::override_input`]).
    ///
    /// # Errors
    /// As there.
    pub fn flake_outputs_with(
        &self,
        reference: &str,
        base_dir: &Path,
        options: &LoadOptions,
    ) -> Result<(Value<'a>, String)> {
        let parsed = self.parse_flake_ref(reference, base_dir)?;
        let flake = self.flake_value(&parsed.flake_ref, options)?;
        Ok((flake, parsed.fragment))
    }

    fn parse_flake_ref(&self, reference: &str, base_dir: &Path) -> Result<ParsedRef> {
        let parse = ParseOptions { base_dir: Some(base_dir), allow_missing: false, ..ParseOptions::default() };
        let parsed = FlakeRef::parse_with_fragment(reference, parse)?;
        for note in &parsed.notes {
            self.host.warn(note);
        }
        Ok(parsed)
    }

    /// Resolves the inputs of a flake that a user names, and does with its lock file what `options` says, as `nix flake lock`
    /// and `nix flake update` do. Nothing of its outputs is evaluated.
    ///
    /// # Errors
    /// When the reference makes no sense, the flake or an input that has to be read can't be had, `flake.nix` is wrong, or the
    /// lock file can't be written.
    pub fn lock_flake(&self, reference: &str, base_dir: &Path, options: &LoadOptions) -> Result<LockedFlake> {
        let parsed = self.parse_flake_ref(reference, base_dir)?;
        load(&self.fetcher(), self, &parsed.flake_ref, options)
    }

    /// What `--override-input PATH REFERENCE` asks for, for [`LoadOptions::overrides`]. `path` is the names of inputs with
    /// slashes between them; a relative `reference` starts from `base_dir`.
    ///
    /// # Errors
    /// When one of them makes no sense.
    pub fn override_input(&self, path: &str, reference: &str, base_dir: &Path) -> Result<(InputPath, FlakeRef)> {
        let parse = ParseOptions { base_dir: Some(base_dir), ..ParseOptions::default() };
        Ok((parse_input_path(path)?, FlakeRef::parse(reference, parse)?))
    }

    /// The value of a flake.
    ///
    /// # Errors
    /// When it, or an input that has to be looked at, can't be had or is wrong.
    pub fn flake_value(&self, flake_ref: &FlakeRef, options: &LoadOptions) -> Evaluated<'a> {
        let locked = load(&self.fetcher(), self, flake_ref, options)?;
        for path in &locked.unmatched_updates {
            self.host.warn(&format!("'{}' does not match any input of this flake", show_input_path(path)));
        }
        let state = &self.state.flakes;
        let graph = state.graphs.borrow().len();
        let promise = |node, part| {
            let mut deferred = state.deferred.borrow_mut();
            deferred.push(Deferred { graph, node, part });
            self.heap.thunk_of_suspension(Suspension::Deferred((deferred.len() - 1) as u32))
        };
        let nodes: Vec<NodeValues<'a>> = (0..locked.len())
            .map(|node| NodeValues {
                source_info: promise(node, Part::SourceInfo),
                out_path: promise(node, Part::OutPath),
                inputs: promise(node, Part::Inputs),
                outputs: promise(node, Part::Outputs),
                result: promise(node, Part::Result),
            })
            .collect();
        let result = nodes[0].result;
        state.graphs.borrow_mut().push(Rc::new(Graph { locked, nodes }));
        self.force(result)
    }

    fn flake_part(&self, graph: &Graph<'a>, node: usize, part: Part) -> Evaluated<'a> {
        let values = &graph.nodes[node];
        let source = || {
            let source = graph.locked.source(&self.fetcher(), node)?;
            self.allow_path(source.source_path.as_bytes());
            Ok::<_, Box<Error>>(source)
        };
        match part {
            Part::SourceInfo => {
                let source = source()?;
                Ok(tree_attrs(self, &source.source_path, &source.info, false).into())
            }
            Part::OutPath => {
                let source = source()?;
                Ok(store_path_value(self, &source.out_path))
            }
            Part::Inputs => {
                let mut inputs: Vec<_> = graph
                    .locked
                    .inputs(node)
                    .iter()
                    .map(|(name, &target)| {
                        (self.symbols.intern(name.as_bytes()), Pos::NONE, graph.nodes[target].result)
                    })
                    .collect();
                Ok(self.heap.attrs(&mut inputs).into())
            }
            Part::Outputs => {
                let function = self.outputs_function(values)?;
                let inputs = self.force_attrs(values.inputs, Pos::NONE, "")?;
                let itself = self.heap.attrs_sorted(&[(self.symbols.intern(b"self"), Pos::NONE, values.result)]);
                let argument = self.heap.update(inputs, itself);
                self.call(function, &[argument.into()], Pos::NONE)
            }
            Part::Result if graph.locked.is_flake(node) => {
                let function = self.outputs_function(values)?;
                if !matches!(function.kind(), Kind::Lambda(_) | Kind::PrimOp(_) | Kind::PrimOpApp(_)) {
                    let message = "assertion 'builtins.isFunction flake.outputs' failed";
                    return Err(Error::new(ErrorKind::Assert, Pos::NONE, message));
                }
                let source_info = self.force_attrs(values.source_info, Pos::NONE, "")?;
                let what = "while evaluating the outputs of a flake";
                let outputs = self.force_attrs(values.outputs, Pos::NONE, what)?;
                let mut own = vec![
                    (sym::OUT_PATH, Pos::NONE, values.out_path),
                    (self.symbols.intern(b"inputs"), Pos::NONE, values.inputs),
                    (sym::OUTPUTS, Pos::NONE, values.outputs),
                    (self.symbols.intern(b"sourceInfo"), Pos::NONE, values.source_info),
                    (self.symbols.intern(b"_type"), Pos::NONE, self.heap.string(b"flake")),
                ];
                let own = self.heap.attrs(&mut own);
                Ok(self.heap.update(self.heap.update(outputs, source_info), own).into())
            }
            Part::Result => {
                let source_info = self.force_attrs(values.source_info, Pos::NONE, "")?;
                let mut own = vec![
                    (sym::OUT_PATH, Pos::NONE, values.out_path),
                    (self.symbols.intern(b"sourceInfo"), Pos::NONE, values.source_info),
                ];
                let own = self.heap.attrs(&mut own);
                Ok(self.heap.update(source_info, own).into())
            }
        }
    }

    /// The attribute `outputs` of a node's `flake.nix`.
    fn outputs_function(&self, values: &NodeValues<'a>) -> Evaluated<'a> {
        let (out_path, _) = self.force_string(values.out_path, Pos::NONE, "")?;
        let file = fs::canonical(&[out_path, b"/flake.nix"].concat());
        let flake = self.eval_file(fs::bytes_of(&file))?;
        let flake = self.force_attrs(flake, Pos::NONE, "while evaluating a flake")?;
        match flake.get(sym::OUTPUTS) {
            Some(outputs) => self.force_slot(outputs),
            None => Err(Error::eval(Pos::NONE, "attribute 'outputs' missing")),
        }
    }

    // ---- flake.nix --------------------------------------------------------------------------------------------------

    /// Forces what takes no computation: sets without computed names, lists, functions. Anything else stays a thunk.
    fn force_trivial(&self, value: Value<'a>) -> Evaluated<'a> {
        let value = value.resolved();
        let Some(thunk) = value.as_thunk() else { return Ok(value) };
        let (state, saved) = thunk.enter();
        let trivial = match state {
            ThunkState::Done(value) => return Ok(value),
            ThunkState::BlackHole => return Ok(value),
            ThunkState::Expr(Expr::PlainAttrs(_) | Expr::Lambda(_) | Expr::List(_), _) => true,
            ThunkState::Expr(Expr::Attrs(set), _) => set.dynamic.is_empty(),
            ThunkState::Expr(..) | ThunkState::App(..) | ThunkState::Native(_) | ThunkState::Map(..) => false,
        };
        thunk.restore(saved);
        if trivial { self.force(value) } else { Ok(value) }
    }

    fn unexpected_type(&self, value: Value<'a>, wanted: &str, pos: Pos) -> Box<Error> {
        let message = format!("expected {wanted} but got {} at {}", self.type_of(value), self.show_pos(pos));
        Error::eval(Pos::NONE, message)
    }

    fn trivial_attrs(&self, value: Value<'a>, pos: Pos) -> Result<crate::value::Attrs<'a>> {
        let value = self.force_trivial(value)?;
        value.as_attrs().ok_or_else(|| self.unexpected_type(value, "a set", pos))
    }

    fn trivial_string(&self, value: Value<'a>, pos: Pos) -> Result<String> {
        let value = self.force_trivial(value)?;
        match value.kind() {
            Kind::Str(text) => self.utf8(text.bytes(), pos),
            _ => Err(self.unexpected_type(value, "a string", pos)),
        }
    }

    /// Bytes as text: references and names of inputs have to be UTF-8.
    pub(super) fn utf8(&self, bytes: &[u8], pos: Pos) -> Result<String> {
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Error::eval(pos, format!("'{}' is not valid UTF-8", String::from_utf8_lossy(bytes))))
    }

    /// The file must be a set, written as such: reading a flake's inputs must not compute anything.
    fn check_trivial(&self, path: &Path) -> Result<()> {
        let source = self.fs.read_file(path).map_err(FlakeError::from)?;
        let base = path.parent().map_or(&b"/"[..], fs::bytes_of);
        let options = self.parse_options(base);
        self.with_parse_arena(|arena| match syntax::parse(arena, &self.symbols, &source, &options) {
            Ok(syntax::ast::Expr::Attrs(_)) => Ok(()),
            Ok(_) => Err(Error::eval(Pos::NONE, format!("file '{}' must be an attribute set", path.display()))),
            // evaluating it will say what is wrong
            Err(_) => Ok(()),
        })
    }

    fn declared_attr(&self, name: &str, value: Value<'a>) -> Result<Attr> {
        match value.resolved().kind() {
            Kind::Str(text) => Ok(Attr::String(self.utf8(text.bytes(), Pos::NONE)?)),
            Kind::Bool(truth) => Ok(Attr::Bool(truth)),
            Kind::Int(number) => u64::try_from(number).map(Attr::Int).map_err(|_| {
                Error::eval(Pos::NONE, format!("negative value given for flake input attribute {name}: {number}"))
            }),
            _ => {
                let found = self.type_of(value);
                let message = format!(
                    "flake input attribute '{name}' is {found} while a string, Boolean, or integer is expected"
                );
                Err(Error::eval(Pos::NONE, message))
            }
        }
    }

    /// The set `inputs`; where `self` is allowed, its attributes come second.
    fn declared_inputs(
        &self,
        value: Value<'a>,
        pos: Pos,
        dir: &Path,
        allow_self: bool,
    ) -> Result<(BTreeMap<String, InputDeclaration>, RefAttrs)> {
        let mut inputs = BTreeMap::new();
        let mut self_attrs = RefAttrs::new();
        for (name, pos, cell) in self.heap.flat(self.trivial_attrs(value, pos)?).iter() {
            let name = self.utf8(self.symbols.text(name), pos)?;
            if name != "self" {
                inputs.insert(name, self.declared_input(cell.get(), pos, dir)?);
                continue;
            }
            if !allow_self {
                let message = format!("'self' input attribute not allowed at {}", self.show_pos(pos));
                return Err(Error::eval(Pos::NONE, message));
            }
            for (attr, _, cell) in self.heap.flat(self.trivial_attrs(cell.get(), pos)?).iter() {
                let attr = self.name(attr);
                let value = self.declared_attr(&attr, cell.get())?;
                self_attrs.insert(attr, value);
            }
        }
        Ok((inputs, self_attrs))
    }

    fn declared_input(&self, value: Value<'a>, pos: Pos, dir: &Path) -> Result<InputDeclaration> {
        let mut attrs = RefAttrs::new();
        let mut is_flake = true;
        let mut follows = None;
        let mut overrides = BTreeMap::new();
        for (name, attr_pos, cell) in self.heap.flat(self.trivial_attrs(value, pos)?).iter() {
            let name = self.name(name);
            let mut read = || {
                match name.as_str() {
                    "url" => {
                        let value = self.force_trivial(cell.get())?;
                        let url = match value.kind() {
                            Kind::Str(text) => self.utf8(text.bytes(), attr_pos)?,
                            Kind::Path(path) => {
                                let path = self.utf8(path.bytes(), attr_pos)?;
                                format!("path:{}", relative(dir, Path::new(&path)))
                            }
                            _ => return Err(self.unexpected_type(value, "a string or a path", attr_pos)),
                        };
                        attrs.insert(name.clone(), Attr::String(url));
                    }
                    "flake" => {
                        let value = self.force_trivial(cell.get())?;
                        let Kind::Bool(truth) = value.kind() else {
                            return Err(self.unexpected_type(value, "a Boolean", attr_pos));
                        };
                        is_flake = truth;
                    }
                    "inputs" => overrides = self.declared_inputs(cell.get(), attr_pos, dir, false)?.0,
                    "follows" => follows = Some(self.trivial_string(cell.get(), attr_pos)?),
                    _ => {
                        attrs.insert(name.clone(), self.declared_attr(&name, cell.get())?);
                    }
                }
                Ok(())
            };
            read().map_err(|error: Box<Error>| {
                error.traced(attr_pos, format!("while evaluating flake attribute '{name}'"))
            })?;
        }
        let has_type = attrs.contains_key("type");
        InputDeclaration::new(attrs, is_flake, follows.as_deref(), overrides).map_err(|error| match error {
            FlakeError::Declaration(message) => Error::eval(Pos::NONE, format!("{message}, at {}", self.show_pos(pos))),
            error if has_type => Box::<Error>::from(error).traced(pos, "while evaluating flake input"),
            error => error.into(),
        })
    }

    /// Checks the settings that a flake asks for. They are for programs that build; here they have no effect.
    fn check_nix_config(&self, value: Value<'a>, pos: Pos) -> Result<()> {
        for (name, _, cell) in self.heap.flat(self.trivial_attrs(value, pos)?).iter() {
            let name = self.name(name);
            let value = self.force_trivial(cell.get())?;
            match value.kind() {
                Kind::Str(_) | Kind::Path(_) | Kind::Int(_) | Kind::Bool(_) => {}
                Kind::List(list) => {
                    for element in list.iter() {
                        if !matches!(element.resolved().kind(), Kind::Str(_)) {
                            let message = format!(
                                "list element in flake configuration setting '{name}' is {} while a string is expected",
                                self.type_of(value)
                            );
                            return Err(Error::eval(Pos::NONE, message));
                        }
                    }
                }
                _ => {
                    let message = format!("flake configuration setting '{name}' is {}", self.type_of(value));
                    return Err(Error::eval(Pos::NONE, message));
                }
            }
        }
        Ok(())
    }
}

impl FlakeHost for Evaluator<'_> {
    type Error = Box<Error>;

    fn read_flake(&self, path: &Path, flake_ref: &FlakeRef) -> Result<FlakeDeclaration> {
        if let Ok((store_path, _)) = self.store.split(fs::bytes_of(path)) {
            self.allow_path(self.store.print(&store_path).as_bytes());
        }
        self.check_trivial(path)?;
        let file = self.eval_file(fs::bytes_of(path))?;
        let flake = self.force_attrs(file, Pos::NONE, "while evaluating a flake")?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let find = |name: &str| flake.find(self.symbols.intern(name.as_bytes()));
        let mut result = FlakeDeclaration::default();
        if let Some((cell, pos)) = find("description") {
            result.description = Some(self.trivial_string(cell.get(), pos)?);
        }
        if let Some((cell, pos)) = find("inputs") {
            (result.inputs, result.self_attrs) = self.declared_inputs(cell.get(), pos, dir, true)?;
        }
        let Some((cell, pos)) = find("outputs") else {
            return Err(Error::eval(Pos::NONE, format!("flake '{flake_ref}' lacks attribute 'outputs'")));
        };
        let outputs = self.force_trivial(cell.get())?;
        match outputs.kind() {
            Kind::Lambda(closure) => {
                for formal in closure.lambda().formals.iter().flat_map(|formals| formals.formals) {
                    result.output_arguments.push(self.utf8(self.symbols.text(formal.name), formal.pos)?);
                }
            }
            Kind::PrimOp(_) | Kind::PrimOpApp(_) => {}
            _ => return Err(self.unexpected_type(outputs, "a function", pos)),
        }
        if let Some((cell, pos)) = find("nixConfig") {
            self.check_nix_config(cell.get(), pos)?;
        }
        for (name, pos, _) in self.heap.flat(flake).iter() {
            let name = self.name(name);
            if !matches!(name.as_str(), "description" | "inputs" | "outputs" | "nixConfig") {
                let pos = self.show_pos(pos);
                let message = format!("flake '{flake_ref}' has an unsupported attribute '{name}', at {pos}");
                return Err(Error::eval(Pos::NONE, message));
            }
        }
        Ok(result)
    }

    fn add_context(&self, error: Box<Error>, context: String) -> Box<Error> {
        error.traced(Pos::NONE, context)
    }
}

/// `path` as seen from `dir`.
fn relative(dir: &Path, path: &Path) -> String {
    let common = dir.components().zip(path.components()).take_while(|(a, b)| a == b).count();
    let up = dir.components().skip(common).map(|_| "..".into());
    let down = path.components().skip(common).map(|component| component.as_os_str().to_string_lossy());
    let names: Vec<std::borrow::Cow<'_, str>> = up.chain(down).collect();
    if names.is_empty() { ".".to_owned() } else { names.join("/") }
}

fn get_flake<'a>(evaluator: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.getFlake";
    let text = evaluator.force_string_no_context(args[0], pos, what)?;
    let text = evaluator.utf8(text, pos)?;
    let flake_ref = FlakeRef::parse(&text, ParseOptions::default())?;
    let pure = evaluator.settings.pure;
    if pure && !flake_ref.input.is_locked()? {
        let pos = evaluator.show_pos(pos);
        let message =
            format!("cannot call 'getFlake' on unlocked flake reference '{text}', at {pos} (use --impure to override)");
        return Err(Error::eval(Pos::NONE, message));
    }
    evaluator
        .flake_value(&flake_ref, &LoadOptions { allow_unlocked: !pure, registries: !pure, ..LoadOptions::default() })
}

fn parse_flake_ref<'a>(evaluator: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.parseFlakeRef";
    let text = evaluator.force_string_no_context(args[0], pos, what)?;
    let flake_ref = FlakeRef::parse(&evaluator.utf8(text, pos)?, ParseOptions::default())?;
    let heap = &evaluator.heap;
    let mut attrs: Vec<_> = flake_ref
        .to_attrs()
        .iter()
        .map(|(name, attr)| {
            let value = match attr {
                Attr::String(text) => heap.string(text.as_bytes()),
                Attr::Int(number) => heap.int(*number as i64),
                Attr::Bool(truth) => Value::bool(*truth),
            };
            (evaluator.symbols.intern(name.as_bytes()), Pos::NONE, value)
        })
        .collect();
    Ok(heap.attrs(&mut attrs).into())
}

fn flake_ref_to_string<'a>(evaluator: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.flakeRefToString";
    let set = evaluator.force_attrs(args[0], Pos::NONE, what)?;
    let mut attrs = RefAttrs::new();
    for (name, _, cell) in evaluator.heap.flat(set).iter() {
        let name = evaluator.name(name);
        let value = evaluator.force_slot(cell)?;
        let attr = match value.kind() {
            Kind::Str(text) => Attr::String(evaluator.utf8(text.bytes(), pos)?),
            Kind::Bool(truth) => Attr::Bool(truth),
            Kind::Int(number) => {
                Attr::Int(u64::try_from(number).map_err(|_| {
                    Error::eval(pos, format!("negative value given for flake ref attr {name}: {number}"))
                })?)
            }
            _ => {
                let message = format!(
                    "flake reference attribute sets may only contain integers, Booleans, and strings, but attribute '{name}' \
                     is {}",
                    evaluator.type_of(value)
                );
                return Err(Error::eval(Pos::NONE, message));
            }
        };
        attrs.insert(name, attr);
    }
    let url = FlakeRef::from_attrs(attrs)?.to_url_string()?;
    Ok(evaluator.heap.string(url.as_bytes()))
}
