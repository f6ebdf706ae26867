//! `derivationStrict`: from attributes to a store derivation, byte for byte.

use super::PrimOp;
use super::attrs::required;
use crate::context::{Context, Derived, Element};
use crate::error::{Error, Result};
use crate::eval::{Coerce, Evaluated, Evaluator};
use crate::fs::Mount;
use crate::symbol::{Symbol, sym};
use crate::value::{Attrs, Pos, Value};
use bento_store::content_address::{ContentAddress, ContentAddressMethod};
use bento_store::derivation::{Derivation, DerivationError, DerivationOutput, HashModulo, InputOutputs};
use bento_store::hash::{Hash, HashAlgo};
use bento_store::nar::NarError;
use bento_store::placeholder::{DownstreamPlaceholder, hash_placeholder};
use bento_store::store_path::{StorePath, StorePathError, check_name};
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::path::Path;
use std::rc::Rc;

pub(super) const TABLE: &[PrimOp] = &[
    PrimOp::lazy("derivationStrict", 1, derivation_strict),
    PrimOp::lazy("placeholder", 1, placeholder),
    PrimOp::lazy("__outputOf", 2, output_of),
];

/// A derivation that this evaluation has made or read.
pub(crate) struct KnownDerivation {
    /// What it counts as in derivations that use it.
    modulo: HashModulo,
    /// The store paths that its file refers to.
    references: Vec<StorePath>,
    /// The contents of its file.
    pub(crate) contents: Rc<[u8]>,
}

/// The derivations of an evaluation.
#[derive(Default)]
pub(crate) struct DerivationState {
    /// By the base names of their files.
    known: RefCell<FxHashMap<StorePath, Rc<KnownDerivation>>>,
    /// By a number that is made of all that was put into them. Packages are instantiated again and again: what is found here
    /// needs none of the hashes that its paths are made of.
    made: RefCell<FxHashMap<u64, Rc<Made>>>,
}

/// What came of a derivation.
struct Made {
    path: StorePath,
    outputs: BTreeMap<String, DerivationOutput>,
}

impl From<NarError> for Box<Error> {
    fn from(error: NarError) -> Self {
        Error::new(crate::ErrorKind::File, Pos::NONE, error.to_string())
    }
}

impl From<DerivationError> for Box<Error> {
    fn from(error: DerivationError) -> Self {
        Error::eval(Pos::NONE, error.to_string())
    }
}

impl From<StorePathError> for Box<Error> {
    fn from(error: StorePathError) -> Self {
        Error::eval(Pos::NONE, error.to_string())
    }
}

fn derivation_strict<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the argument passed to builtins.derivationStrict";
    let attrs = ev.force_attrs(args[0], pos, what)?;
    let (name, name_pos) =
        required(ev, attrs, sym::NAME, "in the attrset passed as argument to builtins.derivationStrict")?;
    let what = "while evaluating the `name` attribute passed to builtins.derivationStrict";
    let name = ev
        .force_string_no_context(name, pos, what)
        .map_err(|error| error.traced(name_pos, "while evaluating the derivation attribute 'name'"))?;
    let name = String::from_utf8_lossy(name).into_owned();
    make(ev, &name, attrs).map_err(|error| {
        let place = ev.show_pos(name_pos);
        let what = format!("while evaluating derivation '{name}'\n  whose name attribute is located at {place}");
        error.traced(Pos::NONE, what)
    })
}

/// What the attributes of a derivation add up to.
struct Parts {
    drv: Derivation,
    context: Context,
    content_addressed: bool,
    impure: bool,
    output_hash: Option<String>,
    output_hash_algo: Option<HashAlgo>,
    method: Option<ContentAddressMethod>,
    outputs: BTreeSet<String>,
    /// The attributes as JSON, if they are structured.
    json: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// All structured attributes as one JSON object.
    structured: Option<Vec<u8>>,
}

/// The variable that structured attributes are in.
const STRUCTURED: &str = "__json";

fn make<'a>(ev: &Evaluator<'a>, name: &str, attrs: Attrs<'a>) -> Evaluated<'a> {
    check_name(name).map_err(|error| {
        Error::eval(Pos::NONE, format!("invalid derivation name: {error}. Please pass a different 'name'."))
    })?;
    let flag = |symbol: Symbol, text: &str| match attrs.get(symbol) {
        Some(cell) => {
            let what = format!("while evaluating the `{text}` attribute passed to builtins.derivationStrict");
            ev.force_bool(cell.get(), Pos::NONE, &what)
        }
        None => Ok(false),
    };
    let structured = flag(sym::STRUCTURED_ATTRS, "__structuredAttrs")?;
    let ignore_nulls = flag(sym::IGNORE_NULLS, "__ignoreNulls")?;
    let mut parts = Parts {
        drv: Derivation { name: name.to_owned(), ..Derivation::default() },
        context: 0,
        content_addressed: false,
        impure: false,
        output_hash: None,
        output_hash_algo: None,
        method: None,
        outputs: BTreeSet::from(["out".to_owned()]),
        json: structured.then(BTreeMap::new),
        structured: None,
    };
    let flat = ev.heap.flat(attrs);
    for index in super::attrs::by_name(ev, &flat) {
        let symbol = flat.symbols[index];
        if symbol == sym::IGNORE_NULLS {
            continue;
        }
        parts.add(ev, symbol, flat.values[index].get(), ignore_nulls).map_err(|error| {
            let what = format!("while evaluating attribute '{}' of derivation '{name}'", ev.attr_name(symbol));
            error.traced(flat.positions[index], what)
        })?;
    }
    parts.finish(ev)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Parts {
    fn add<'a>(&mut self, ev: &Evaluator<'a>, symbol: Symbol, value: Value<'a>, ignore_nulls: bool) -> Result<()> {
        if ignore_nulls && ev.force(value)?.same(Value::NULL) {
            return Ok(());
        }
        match symbol {
            sym::CONTENT_ADDRESSED => {
                if ev.force_bool(value, Pos::NONE, "")? {
                    self.content_addressed = true;
                    require(ev.settings.ca_derivations, "ca-derivations", "")?;
                }
            }
            sym::IMPURE => {
                if ev.force_bool(value, Pos::NONE, "")? {
                    self.impure = true;
                    require(ev.settings.impure_derivations, "impure-derivations", "")?;
                }
            }
            sym::ARGS => {
                for element in ev.force_list(value, Pos::NONE, "")?.iter() {
                    let mut argument = Vec::new();
                    let what = "while evaluating an element of the argument list";
                    ev.coerce_to_string(element, &mut argument, &mut self.context, Coerce::ALL, Pos::NONE, what)?;
                    self.drv.args.push(argument);
                }
            }
            _ if self.json.is_some() => self.add_structured(ev, symbol, value)?,
            _ => {
                let mut string = Vec::new();
                ev.coerce_to_string(value, &mut string, &mut self.context, Coerce::ALL, Pos::NONE, "")?;
                if symbol == sym::JSON {
                    ev.host.warn(&format!(
                        "In derivation '{}': setting structured attributes via '__json' is deprecated, and may be \
                         disallowed in future versions of Nix. Set '__structuredAttrs = true' instead.",
                        self.drv.name
                    ));
                    let json = crate::text::json::normalise_object(&string).map_err(|error| {
                        Error::eval(Pos::NONE, format!("cannot process {STRUCTURED} attribute: {error}"))
                    })?;
                    self.structured = Some(json);
                    return Ok(());
                }
                match symbol {
                    sym::BUILDER => self.drv.builder.clone_from(&string),
                    sym::SYSTEM => self.drv.platform.clone_from(&string),
                    sym::OUTPUT_HASH => self.output_hash = Some(text(&string)),
                    sym::OUTPUT_HASH_ALGO => self.output_hash_algo = parse_algo(ev, &string)?,
                    sym::OUTPUT_HASH_MODE => self.set_method(ev, &string)?,
                    sym::OUTPUTS => self.set_outputs(crate::text::strings::tokenize(&string, b" \t\n\r").map(text))?,
                    _ => {}
                }
                self.drv.env.insert(ev.symbols.text(symbol).to_vec(), string);
            }
        }
        Ok(())
    }

    fn add_structured<'a>(&mut self, ev: &Evaluator<'a>, symbol: Symbol, value: Value<'a>) -> Result<()> {
        if symbol == sym::STRUCTURED_ATTRS {
            return Ok(());
        }
        let mut json = Vec::new();
        super::structured::write_json(ev, value, true, &mut json, &mut self.context, true, Pos::NONE)?;
        let key = ev.symbols.text(symbol).to_vec();
        match symbol {
            sym::BUILDER => {
                let (builder, context) = ev.force_string(value, Pos::NONE, "")?;
                self.context = ev.contexts.union(self.context, context);
                self.drv.builder = builder.to_vec();
            }
            sym::SYSTEM => self.drv.platform = ev.force_string_no_context(value, Pos::NONE, "")?.to_vec(),
            sym::OUTPUT_HASH => self.output_hash = Some(text(ev.force_string_no_context(value, Pos::NONE, "")?)),
            sym::OUTPUT_HASH_ALGO => {
                self.output_hash_algo = parse_algo(ev, ev.force_string_no_context(value, Pos::NONE, "")?)?;
            }
            sym::OUTPUT_HASH_MODE => self.set_method(ev, ev.force_string_no_context(value, Pos::NONE, "")?)?,
            sym::OUTPUTS => {
                let names = ev.force_list(value, Pos::NONE, "")?;
                let names = names
                    .iter()
                    .map(|name| ev.force_string_no_context(name, Pos::NONE, "").map(text))
                    .collect::<Result<Vec<_>>>()?;
                self.set_outputs(names.into_iter())?;
            }
            _ => {}
        }
        const WITHOUT_EFFECT: [&[u8]; 6] = [
            b"allowedReferences",
            b"allowedRequisites",
            b"disallowedReferences",
            b"disallowedRequisites",
            b"maxSize",
            b"maxClosureSize",
        ];
        if WITHOUT_EFFECT.contains(&key.as_slice()) {
            let attribute = text(&key);
            ev.host.warn(&format!(
                "In a derivation named '{}', 'structuredAttrs' disables the effect of the derivation attribute \
                 '{attribute}'; use 'outputChecks.<output>.{attribute}' instead",
                self.drv.name
            ));
        }
        if let Some(attributes) = &mut self.json {
            attributes.insert(key, json);
        }
        Ok(())
    }

    fn set_method(&mut self, ev: &Evaluator<'_>, mode: &[u8]) -> Result<()> {
        let mode = text(mode);
        let method = match mode.as_str() {
            "recursive" => ContentAddressMethod::NixArchive,
            _ => mode.parse().map_err(|_| {
                Error::eval(Pos::NONE, format!("invalid value '{mode}' for 'outputHashMode' attribute"))
            })?,
        };
        if method == ContentAddressMethod::Text {
            let what = format!("text-hashed derivation '{}', outputHashMode = \"text\"", self.drv.name);
            require(ev.settings.dynamic_derivations, "dynamic-derivations", &what)?;
        }
        if method == ContentAddressMethod::Git {
            require(ev.settings.git_hashing, "git-hashing", "")?;
        }
        self.method = Some(method);
        Ok(())
    }

    fn set_outputs(&mut self, names: impl Iterator<Item = String>) -> Result<()> {
        self.outputs.clear();
        for name in names {
            if name == "drvPath" {
                return Err(Error::eval(Pos::NONE, "invalid derivation output name 'drvPath'"));
            }
            if self.outputs.contains(&name) {
                return Err(Error::eval(Pos::NONE, format!("duplicate derivation output '{name}'")));
            }
            self.outputs.insert(name);
        }
        if self.outputs.is_empty() {
            return Err(Error::eval(Pos::NONE, "derivation cannot have an empty set of outputs"));
        }
        Ok(())
    }

    fn finish<'a>(mut self, ev: &Evaluator<'a>) -> Evaluated<'a> {
        if let Some(attributes) = self.json.take() {
            let mut json = vec![b'{'];
            for (index, (key, value)) in attributes.iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                }
                crate::text::json::write_json_string(&mut json, key)
                    .map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
                json.push(b':');
                json.extend_from_slice(value);
            }
            json.push(b'}');
            self.structured = Some(json);
        }
        for element in ev.contexts.elements(self.context) {
            add_input(ev, &mut self.drv, &element)?;
        }
        if self.drv.builder.is_empty() {
            return Err(Error::eval(Pos::NONE, "required attribute 'builder' missing"));
        }
        if self.drv.platform.is_empty() {
            return Err(Error::eval(Pos::NONE, "required attribute 'system' missing"));
        }
        // An output's variable could be the other thing of this name.
        if self.outputs.contains(STRUCTURED) {
            let message = "Cannot have an environment variable named '__json'. This key is reserved for encoding \
                           structured attrs";
            return Err(Error::eval(Pos::NONE, message));
        }
        if let Some(json) = self.structured.take() {
            self.drv.env.insert(STRUCTURED.as_bytes().to_vec(), json);
        }
        let only_out = self.outputs.len() == 1 && self.outputs.contains("out");
        let is_text = self.method == Some(ContentAddressMethod::Text);
        if self.drv.name.ends_with(".drv") && !(is_text && only_out) {
            let message = "derivation names are allowed to end in '.drv' only if they produce a single derivation file";
            return Err(Error::eval(Pos::NONE, message));
        }
        if let Some(output_hash) = &self.output_hash {
            if !only_out {
                let message = "multiple outputs are not supported in fixed-output derivations";
                return Err(Error::eval(Pos::NONE, message));
            }
            let hash = parse_hash(ev, output_hash, self.output_hash_algo)?;
            let method = self.method.unwrap_or(ContentAddressMethod::Flat);
            let output = DerivationOutput::CaFixed(ContentAddress { method, hash });
            if let Some(path) = output.path(&ev.store, &self.drv.name, "out")? {
                self.drv.env.insert(b"out".to_vec(), ev.store.print(&path).into_bytes());
            }
            self.drv.outputs.insert("out".to_owned(), output);
        } else if self.content_addressed || self.impure {
            if self.content_addressed && self.impure {
                let message = "derivation cannot be both content-addressed and impure";
                return Err(Error::eval(Pos::NONE, message));
            }
            let algo = self.output_hash_algo.unwrap_or(HashAlgo::Sha256);
            let method = self.method.unwrap_or(ContentAddressMethod::NixArchive);
            for name in &self.outputs {
                self.drv.env.insert(name.clone().into_bytes(), hash_placeholder(name).into_bytes());
                let output = if self.impure {
                    DerivationOutput::Impure { method, algo }
                } else {
                    DerivationOutput::CaFloating { method, algo }
                };
                self.drv.outputs.insert(name.clone(), output);
            }
        } else {
            for name in &self.outputs {
                self.drv.env.insert(name.clone().into_bytes(), Vec::new());
                self.drv.outputs.insert(name.clone(), DerivationOutput::Deferred);
            }
        }
        let number = FxBuildHasher.hash_one(&self.drv);
        let path = match made_before(ev, number, &mut self.drv)? {
            Some(path) => path,
            None => make_anew(ev, number, &mut self.drv)?,
        };
        result(ev, &path, &self.drv)
    }
}

/// The path of a derivation that this evaluation has made before of the same; its outputs are put in place.
fn made_before(ev: &Evaluator<'_>, number: u64, drv: &mut Derivation) -> Result<Option<StorePath>> {
    let state = &ev.state.derivations;
    let Some(made) = state.made.borrow().get(&number).cloned() else { return Ok(None) };
    let Some(known) = state.known.borrow().get(&made.path).cloned() else { return Ok(None) };
    // the number may be that of two: nothing counts but what they are, and the contents need not say the name
    let mut outputs = drv.outputs.iter().zip(&made.outputs);
    let is_alike = outputs.all(|((name, blank), (made_name, output))| {
        let filled_in = matches!((blank, output), (DerivationOutput::Deferred, DerivationOutput::InputAddressed(_)));
        name == made_name && (filled_in || blank == output)
    });
    if !is_alike || drv.outputs.len() != made.outputs.len() || made.path.derivation_name()? != drv.name {
        return Ok(None);
    }
    let blank = std::mem::replace(&mut drv.outputs, made.outputs.clone());
    for (name, output) in &made.outputs {
        if let DerivationOutput::InputAddressed(path) = output {
            drv.env.insert(name.as_bytes().to_vec(), ev.store.print(path).into_bytes());
        }
    }
    if drv.to_aterm(&ev.store)?.as_slice() == &*known.contents {
        return Ok(Some(made.path.clone()));
    }
    for (name, output) in &made.outputs {
        if matches!(output, DerivationOutput::InputAddressed(_)) {
            drv.env.insert(name.as_bytes().to_vec(), Vec::new());
        }
    }
    drv.outputs = blank;
    Ok(None)
}

/// Computes the paths of a derivation and of its outputs, and remembers it.
fn make_anew(ev: &Evaluator<'_>, number: u64, drv: &mut Derivation) -> Result<StorePath> {
    if drv.outputs.values().any(|output| *output == DerivationOutput::Deferred) {
        drv.fill_in_output_paths(&ev.store, |input| ev.hash_modulo(input))?;
    }
    let (path, contents) = drv.to_file(&ev.store)?;
    let state = &ev.state.derivations;
    let is_known = state.known.borrow().contains_key(&path);
    if !is_known {
        let modulo = drv.hash_modulo(&ev.store, |input| ev.hash_modulo(input))?;
        let references = drv.input_srcs.iter().chain(drv.input_drvs.keys()).cloned().collect();
        let known = KnownDerivation { modulo, references, contents: contents.into() };
        state.known.borrow_mut().insert(path.clone(), Rc::new(known));
    }
    let made = Made { path: path.clone(), outputs: drv.outputs.clone() };
    state.made.borrow_mut().insert(number, Rc::new(made));
    Ok(path)
}

/// Adds what an element of a context stands for to the inputs.
fn add_input(ev: &Evaluator<'_>, drv: &mut Derivation, element: &Element) -> Result<()> {
    match element {
        Element::Opaque(path) => {
            drv.input_srcs.insert(path.parse()?);
        }
        Element::Built { drv: from, output } => {
            input_slot(&mut drv.input_drvs, from)?.outputs.insert(output.to_string());
        }
        Element::DrvDeep(path) => {
            // All paths that the derivation is made of, and all outputs of all derivations among them.
            let mut todo: Vec<StorePath> = vec![path.parse()?];
            let mut seen = BTreeSet::new();
            while let Some(path) = todo.pop() {
                if !seen.insert(path.clone()) {
                    continue;
                }
                if path.is_derivation() {
                    let known = ev.derivation(&path)?;
                    todo.extend(known.references.iter().cloned());
                    let slot = drv.input_drvs.entry(path.clone()).or_default();
                    slot.outputs.extend(known.modulo.outputs.iter().cloned());
                }
                drv.input_srcs.insert(path);
            }
        }
    }
    Ok(())
}

/// Where the outputs of an input derivation are listed.
fn input_slot<'d>(inputs: &'d mut BTreeMap<StorePath, InputOutputs>, from: &Derived) -> Result<&'d mut InputOutputs> {
    match from {
        Derived::Path(path) => Ok(inputs.entry(path.parse()?).or_default()),
        Derived::Output(from, output) => Ok(input_slot(inputs, from)?.dynamic.entry(output.to_string()).or_default()),
    }
}

/// Adds an attribute for each output: its path, or what stands for that until it is known.
fn add_outputs<'a>(
    ev: &Evaluator<'a>,
    path: &StorePath,
    drv: &Derivation,
    entries: &mut Vec<(Symbol, Pos, Value<'a>)>,
) -> Result<()> {
    let base: Rc<str> = Rc::from(path.as_str());
    for (name, output) in &drv.outputs {
        let text = match output.path(&ev.store, &drv.name, name)? {
            Some(path) => ev.store.print(&path),
            None => DownstreamPlaceholder::unknown_ca_output(path, name)?.render(),
        };
        let element = Element::Built { drv: Derived::Path(base.clone()), output: Rc::from(name.as_str()) };
        let value = ev.heap.string_with_context(text.as_bytes(), ev.contexts.single(element));
        entries.push((ev.symbols.intern(name.as_bytes()), Pos::NONE, value));
    }
    Ok(())
}

/// What `derivationStrict` gives.
fn result<'a>(ev: &Evaluator<'a>, path: &StorePath, drv: &Derivation) -> Evaluated<'a> {
    let base: Rc<str> = Rc::from(path.as_str());
    let drv_context = ev.contexts.single(Element::DrvDeep(base));
    let drv_path = ev.heap.string_with_context(ev.store.print(path).as_bytes(), drv_context);
    let mut entries = vec![(sym::DRV_PATH, Pos::NONE, drv_path)];
    add_outputs(ev, path, drv, &mut entries)?;
    Ok(ev.heap.attrs(&mut entries).into())
}

fn parse_algo(ev: &Evaluator<'_>, name: &[u8]) -> Result<Option<HashAlgo>> {
    // An unknown name counts as none, as in Nix.
    text(name).parse().ok().map(|algo| enabled_algo(ev, algo)).transpose()
}

/// The algorithm, if the settings allow it.
pub(super) fn enabled_algo(ev: &Evaluator<'_>, algo: HashAlgo) -> Result<HashAlgo> {
    if algo == HashAlgo::Blake3 {
        require(ev.settings.blake3_hashes, "blake3-hashes", "")?;
    }
    Ok(algo)
}

/// A hash that may be empty, which stands for zeros and is complained about.
pub(crate) fn parse_hash(ev: &Evaluator<'_>, hash: &str, algo: Option<HashAlgo>) -> Result<Hash> {
    if hash.starts_with("blake3") {
        enabled_algo(ev, HashAlgo::Blake3)?;
    }
    let parsed = Hash::parse_allow_empty(hash, algo).map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
    if hash.is_empty() {
        ev.host.warn(&format!("found empty hash, assuming '{}'", parsed.to_sri()));
    }
    Ok(parsed)
}

fn require(enabled: bool, feature: &str, reason: &str) -> Result<()> {
    if enabled {
        return Ok(());
    }
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    let message = format!(
        "experimental Nix feature '{feature}' is disabled{reason}; add '--extra-experimental-features {feature}' to enable it"
    );
    Err(Error::eval(Pos::NONE, message))
}

fn placeholder<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    let what = "while evaluating the first argument passed to builtins.placeholder";
    let output = ev.force_string_no_context(args[0], pos, what)?;
    Ok(ev.heap.string(hash_placeholder(&text(output)).as_bytes()))
}

fn output_of<'a>(ev: &Evaluator<'a>, args: &[Value<'a>], pos: Pos) -> Evaluated<'a> {
    require(ev.settings.dynamic_derivations, "dynamic-derivations", "")?;
    let what = "while evaluating the first argument to builtins.outputOf";
    let (string, context) = ev.force_string(args[0], pos, what)?;
    let elements = ev.contexts.elements(context);
    let [element] = elements.as_slice() else {
        let message = format!(
            "string '{}' has {} entries in its context. It should only have exactly one entry",
            text(string),
            elements.len()
        );
        return Err(Error::eval(Pos::NONE, message).traced(pos, what));
    };
    let shown = |expected: String| {
        if expected.as_bytes() == string {
            return Ok(());
        }
        let string = text(string);
        let message = match element {
            Element::Built { drv, output } => format!(
                "string '{string}' has context with the output '{output}' from derivation '{}', but the string is not the \
                 right placeholder for this derivation output. It should be '{expected}'",
                ev.show_derived(drv)
            ),
            _ => format!("path string '{string}' has context with the different path '{expected}'"),
        };
        Err(Error::eval(Pos::NONE, message).traced(pos, what))
    };
    let from = match element {
        Element::Opaque(path) => {
            shown(ev.store.print(&path.parse()?))?;
            Derived::Path(path.clone())
        }
        Element::Built { drv, output: inner } => {
            shown(output_string(ev, drv, inner)?)?;
            Derived::Output(Rc::new(drv.clone()), inner.clone())
        }
        Element::DrvDeep(_) => {
            let message = format!(
                "string '{}' has a context which refers to a complete source and binary closure. This is not supported at this time",
                text(string)
            );
            return Err(Error::eval(Pos::NONE, message).traced(pos, what));
        }
    };
    let what = "while evaluating the second argument to builtins.outputOf";
    let output = text(ev.force_string_no_context(args[1], pos, what)?);
    let string = output_string(ev, &from, &output)?;
    let context = ev.contexts.single(Element::Built { drv: from, output: Rc::from(output.as_str()) });
    Ok(ev.heap.string_with_context(string.as_bytes(), context))
}

/// What a string says that stands for an output: its path if that is known, else a placeholder.
fn output_string(ev: &Evaluator<'_>, drv: &Derived, output: &str) -> Result<String> {
    Ok(match ev.static_output(drv, output)? {
        Some(path) => ev.store.print(&path),
        None => ev.output_placeholder(drv, output)?.render(),
    })
}

/// What `import` gives for a derivation's file.
pub(super) fn to_value<'a>(ev: &Evaluator<'a>, path: &[u8], known: &KnownDerivation) -> Evaluated<'a> {
    let path = ev.store.parse(path)?;
    let base: Rc<str> = Rc::from(path.as_str());
    let drv = Derivation::parse(&ev.store, path.derivation_name()?, &known.contents)
        .map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
    // the variable, which isn't there if the attributes are structured
    let name = drv.env.get(b"name".as_slice()).map_or(&b""[..], Vec::as_slice);
    let deep = ev.contexts.single(Element::DrvDeep(base));
    let names: Vec<Value<'a>> = drv.outputs.keys().map(|name| ev.heap.string(name.as_bytes())).collect();
    let mut entries = vec![
        (sym::DRV_PATH, Pos::NONE, ev.heap.string_with_context(ev.store.print(&path).as_bytes(), deep)),
        (sym::NAME, Pos::NONE, ev.heap.string(name)),
        (sym::OUTPUTS, Pos::NONE, ev.heap.list(&names).into()),
    ];
    add_outputs(ev, &path, &drv, &mut entries)?;
    let attrs = ev.heap.attrs(&mut entries).into();
    let derivation = ev.eval_internal("derivation-of-file.nix")?;
    ev.call(derivation, &[attrs], Pos::NONE)
}

impl<'a> Evaluator<'a> {
    /// The derivation that a path in the store names, if this evaluation has made it.
    pub(crate) fn known_derivation(&self, path: &[u8]) -> Option<Rc<KnownDerivation>> {
        if !path.ends_with(b".drv") {
            return None;
        }
        let path = self.store.parse(path).ok()?;
        self.state.derivations.known.borrow().get(&path).cloned()
    }

    /// What stands for an output of a derivation whose outputs' paths are not known.
    ///
    /// # Errors
    /// When it is no derivation.
    pub(crate) fn output_placeholder(&self, drv: &Derived, output: &str) -> Result<DownstreamPlaceholder> {
        Ok(match drv {
            Derived::Path(path) => DownstreamPlaceholder::unknown_ca_output(&path.parse()?, output)?,
            Derived::Output(from, inner) => {
                DownstreamPlaceholder::unknown_derivation(&self.output_placeholder(from, inner)?, output)
            }
        })
    }

    /// The path of a derivation's output, if it is known before the build.
    ///
    /// # Errors
    /// When the derivation can't be read, or has no such output.
    pub(crate) fn static_output(&self, drv: &Derived, output: &str) -> Result<Option<StorePath>> {
        let Derived::Path(path) = drv else { return Ok(None) };
        let path: StorePath = path.parse()?;
        let printed = self.store.print(&path);
        let name = path
            .derivation_name()
            .map_err(|error| Error::eval(Pos::NONE, format!("error parsing derivation '{printed}': {error}")))?;
        let derivation = Derivation::parse(&self.store, name, &self.derivation(&path)?.contents)
            .map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
        let Some(found) = derivation.outputs.get(output) else {
            return Err(Error::eval(Pos::NONE, format!("derivation '{printed}' does not have output '{output}'")));
        };
        Ok(found.path(&self.store, name, output)?)
    }

    /// What the file of a derivation refers to, if the evaluation has made or read it.
    pub(crate) fn derivation_references(&self, path: &StorePath) -> Option<BTreeSet<StorePath>> {
        let known = self.state.derivations.known.borrow();
        known.get(path).map(|derivation| derivation.references.iter().cloned().collect())
    }

    /// Lets the file of a derivation be read that this evaluation has made.
    pub(crate) fn mount_derivation(&self, path: &str) {
        if let Some(derivation) = self.known_derivation(path.as_bytes())
            && !self.fs.is_mounted(Path::new(path))
        {
            let contents = derivation.contents.clone();
            self.fs.mount(Path::new(path), Mount::File { contents, executable: false });
        }
    }

    /// A derivation in the store, if `path` is that of one which was made or can be read.
    ///
    /// # Errors
    /// When it can't be read or is none.
    pub(super) fn derivation_at(&self, path: &[u8]) -> Result<Option<Rc<KnownDerivation>>> {
        match self.store.parse(path) {
            Ok(path) if path.is_derivation() => self.derivation(&path).map(Some),
            _ => Ok(None),
        }
    }

    /// A derivation that was made or can be read.
    fn derivation(&self, path: &StorePath) -> Result<Rc<KnownDerivation>> {
        if let Some(known) = self.state.derivations.known.borrow().get(path) {
            return Ok(known.clone());
        }
        let contents = self.read_file(self.store.print(path).as_bytes())?;
        let drv = Derivation::parse(&self.store, path.derivation_name()?, &contents)
            .map_err(|error| Error::eval(Pos::NONE, error.to_string()))?;
        let modulo = drv.hash_modulo(&self.store, |input| self.hash_modulo(input))?;
        let references = drv.input_srcs.iter().chain(drv.input_drvs.keys()).cloned().collect();
        let known = Rc::new(KnownDerivation { modulo, references, contents: contents.into() });
        self.state.derivations.known.borrow_mut().insert(path.clone(), known.clone());
        Ok(known)
    }

    fn hash_modulo(&self, path: &StorePath) -> Result<HashModulo> {
        Ok(self.derivation(path)?.modulo.clone())
    }

    /// Writes the files of a derivation and of all that it needs into a directory, each under its base name.
    ///
    /// Gives how many there are.
    ///
    /// # Errors
    /// When the path is no derivation that this evaluation has made, or a file can't be written.
    pub fn dump_derivations(&self, drv_path: &str, directory: &Path) -> Result<usize> {
        let root = self.store.parse(drv_path)?;
        let mut todo = vec![root];
        let mut seen: BTreeSet<StorePath> = BTreeSet::new();
        while let Some(path) = todo.pop() {
            if !path.is_derivation() || !seen.insert(path.clone()) {
                continue;
            }
            let known = self.derivation(&path)?;
            let file = directory.join(path.as_str());
            std::fs::write(&file, &known.contents).map_err(|error| {
                let message = format!("cannot write '{}': {error}", file.display());
                Error::new(crate::ErrorKind::File, Pos::NONE, message)
            })?;
            todo.extend(known.references.iter().cloned());
        }
        Ok(seen.len())
    }
}
