//! The ATerm form of a store derivation: what a `.drv` file contains.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use thiserror::Error;

use crate::{
    content_address::{ContentAddress, ContentAddressError, ContentAddressMethod},
    derivation::{Derivation, DerivationOutput, InputOutputs, fixed_path},
    hash::{Hash, HashAlgo, HashError},
    store_path::{StoreDir, StorePath, StorePathError},
};

/// How deep outputs of outputs of derivations may nest in a derivation that is read.
const MAX_DYNAMIC_DEPTH: usize = 64;

/// Why a file is not a store derivation, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{reason} at byte {offset} of the derivation")]
pub struct ParseError {
    /// Bytes from the start of the file to what is wrong.
    pub offset: usize,
    /// What is wrong.
    pub reason: ParseReason,
}

/// What is wrong with a file that should be a store derivation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseReason {
    /// Something else stands where only this may stand.
    #[error("expected string '{0}'")]
    Expected(&'static str),
    /// Neither a comma nor the end of the list.
    #[error("expected ',' or ']'")]
    ExpectedListEnd,
    /// Neither `Derive` nor `DrvWithVersion`.
    #[error("derivation does not start with 'Derive' or 'DrvWithVersion'")]
    Start,
    /// A version that Nix 2.34 doesn't know either.
    #[error("Unknown derivation ATerm format version '{0}'")]
    Version(String),
    /// No quote that ends a string.
    #[error("unterminated string in derivation")]
    UnterminatedString,
    /// A path that is not absolute.
    #[error("bad path '{0}' in derivation")]
    BadPath(String),
    /// A path that is not a store path.
    #[error(transparent)]
    StorePath(StorePathError),
    /// A name that is not text.
    #[error("output name is not UTF-8")]
    NameNotUtf8,
    /// The same key twice, or the same element of a set.
    #[error("'{0}' occurs twice")]
    Duplicate(String),
    /// An entry of the input derivations that is neither a list nor a pair.
    #[error("invalid inputDrvs entry in derivation")]
    InputEntry,
    /// Dynamic inputs nested too deep.
    #[error("dynamic inputs are nested more than {MAX_DYNAMIC_DEPTH} deep")]
    TooDeep,
    /// An impure output that has a path.
    #[error("impure derivation output should not specify output path")]
    ImpurePath,
    /// A floating output that has a path.
    #[error("content-addressing derivation output should not specify output path")]
    FloatingPath,
    /// A hash without an algorithm.
    #[error("derivation output has a hash but no hash algorithm")]
    HashWithoutAlgo,
    /// A hash or its algorithm is wrong.
    #[error(transparent)]
    ContentAddress(ContentAddressError),
    /// More after the end.
    #[error("derivation has trailing bytes")]
    Trailing,
}

/// The part of an ATerm that differs between the file and the hash modulo.
pub(crate) enum Inputs<'d> {
    Paths,
    Hashes(&'d BTreeMap<[u8; 32], BTreeSet<&'d str>>),
}

pub(crate) fn write(
    drv: &Derivation,
    store: &StoreDir,
    mask: bool,
    inputs: &Inputs<'_>,
) -> Result<Vec<u8>, StorePathError> {
    let strings = drv.env.iter().map(|(k, v)| k.len() + v.len() + 8).sum::<usize>()
        + drv.args.iter().map(|a| a.len() + 3).sum::<usize>();
    let paths = drv.outputs.len() + drv.input_drvs.len() + drv.input_srcs.len();
    // Escaping makes strings a little longer.
    let mut out = Writer { out: Vec::with_capacity(strings + strings / 16 + paths * 112 + 256) };

    let dynamic = drv.input_drvs.values().any(|node| !node.dynamic.is_empty());
    out.raw(if dynamic { "DrvWithVersion(\"xp-dyn-drv\",[" } else { "Derive([" });
    for (i, (name, output)) in drv.outputs.iter().enumerate() {
        out.raw(if i == 0 { "(" } else { ",(" });
        out.quoted(name);
        let method_algo = |method: &ContentAddressMethod, algo: &HashAlgo| format!("{}{algo}", method.prefix());
        let (path, algo, hash) = match output {
            DerivationOutput::InputAddressed(path) => (Some(Cow::Borrowed(path)), String::new(), String::new()),
            DerivationOutput::CaFixed(address) => {
                let path = fixed_path(store, address, &drv.name, name)?;
                (Some(Cow::Owned(path)), address.method_algo(), address.hash.to_base16())
            }
            DerivationOutput::CaFloating { method, algo } => (None, method_algo(method, algo), String::new()),
            DerivationOutput::Deferred => (None, String::new(), String::new()),
            DerivationOutput::Impure { method, algo } => (None, method_algo(method, algo), "impure".to_owned()),
        };
        match path {
            Some(path) if !mask => {
                out.raw(",");
                out.path(store, &path);
            }
            _ => out.raw(",\"\""),
        }
        for text in [algo, hash] {
            out.raw(",");
            out.quoted(&text);
        }
        out.raw(")");
    }
    out.raw("],[");
    match inputs {
        Inputs::Paths => {
            for (i, (path, node)) in drv.input_drvs.iter().enumerate() {
                out.raw(if i == 0 { "(" } else { ",(" });
                out.path(store, path);
                out.raw(",");
                out.input(node);
                out.raw(")");
            }
        }
        Inputs::Hashes(hashes) => {
            for (i, (hash, outputs)) in hashes.iter().enumerate() {
                out.raw(if i == 0 { "(" } else { ",(" });
                out.quoted(&Hash::from_sha256(*hash).to_base16());
                out.raw(",");
                out.quoted_list(outputs.iter().copied());
                out.raw(")");
            }
        }
    }
    out.raw("],[");
    for (i, path) in drv.input_srcs.iter().enumerate() {
        if i > 0 {
            out.raw(",");
        }
        out.path(store, path);
    }
    out.raw("],\"");
    out.out.extend_from_slice(&drv.platform);
    out.raw("\",");
    out.string(&drv.builder);
    out.raw(",[");
    for (i, arg) in drv.args.iter().enumerate() {
        if i > 0 {
            out.raw(",");
        }
        out.string(arg);
    }
    out.raw("],[");
    for (i, (name, value)) in drv.env.iter().enumerate() {
        out.raw(if i == 0 { "(" } else { ",(" });
        out.string(name);
        out.raw(",");
        let blank = mask && std::str::from_utf8(name).is_ok_and(|name| drv.outputs.contains_key(name));
        out.string(if blank { b"" } else { value });
        out.raw(")");
    }
    out.raw("])");
    Ok(out.out)
}

struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn raw(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// A string that needs no escapes.
    fn quoted(&mut self, text: &str) {
        self.out.push(b'"');
        self.raw(text);
        self.out.push(b'"');
    }

    fn quoted_list<'s>(&mut self, items: impl IntoIterator<Item = &'s str>) {
        self.raw("[");
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.raw(",");
            }
            self.quoted(item);
        }
        self.raw("]");
    }

    fn path(&mut self, store: &StoreDir, path: &StorePath) {
        self.out.push(b'"');
        self.raw(store.as_str());
        self.out.push(b'/');
        self.raw(path.as_str());
        self.out.push(b'"');
    }

    fn input(&mut self, node: &InputOutputs) {
        let outputs = node.outputs.iter().map(String::as_str);
        if node.dynamic.is_empty() {
            return self.quoted_list(outputs);
        }
        self.raw("(");
        self.quoted_list(outputs);
        self.raw(",[");
        for (i, (name, node)) in node.dynamic.iter().enumerate() {
            self.raw(if i == 0 { "(" } else { ",(" });
            self.quoted(name);
            self.raw(",");
            self.input(node);
            self.raw(")");
        }
        self.raw("])");
    }

    fn string(&mut self, text: &[u8]) {
        self.out.push(b'"');
        // Lines are long as a rule, and most texts have neither of these.
        let has_rare = memchr::memchr2(b'\t', b'\r', text).is_some();
        let mut done = 0;
        for at in memchr::memchr3_iter(b'"', b'\\', b'\n', text) {
            self.line(&text[done..at], has_rare);
            self.out.extend_from_slice(&[b'\\', if text[at] == b'\n' { b'n' } else { text[at] }]);
            done = at + 1;
        }
        self.line(&text[done..], has_rare);
        self.out.push(b'"');
    }

    /// Writes a text in which nothing has to be escaped but tabs and carriage returns, if it may have such.
    fn line(&mut self, text: &[u8], may_have_rare: bool) {
        let mut done = 0;
        if may_have_rare {
            for at in memchr::memchr2_iter(b'\t', b'\r', text) {
                self.out.extend_from_slice(&text[done..at]);
                self.out.extend_from_slice(if text[at] == b'\t' { b"\\t" } else { b"\\r" });
                done = at + 1;
            }
        }
        self.out.extend_from_slice(&text[done..]);
    }
}

struct Parser<'i> {
    store: &'i StoreDir,
    input: &'i [u8],
    at: usize,
}

type Parsed<T> = Result<T, ParseError>;

pub(crate) fn parse(store: &StoreDir, name: &str, contents: &[u8]) -> Result<Derivation, ParseError> {
    Parser { store, input: contents, at: 0 }.derivation(name)
}

impl<'i> Parser<'i> {
    fn derivation(mut self, name: &str) -> Parsed<Derivation> {
        let versioned = if self.skip("Derive(") {
            false
        } else if self.skip("DrvWithVersion(") {
            let at = self.at;
            let version = self.string()?;
            if *version != *b"xp-dyn-drv" {
                return Err(fail(at, ParseReason::Version(lossy(&version))));
            }
            self.expect(",")?;
            true
        } else {
            return Err(fail(0, ParseReason::Start));
        };
        let mut drv = Derivation { name: name.to_owned(), ..Derivation::default() };
        self.list(|p| {
            p.expect("(")?;
            let (at, name) = (p.at, p.name()?);
            p.expect(",")?;
            let output = p.output()?;
            p.expect(")")?;
            unique(at, &name, drv.outputs.contains_key(&name))?;
            drv.outputs.insert(name, output);
            Ok(())
        })?;
        self.expect(",")?;
        self.list(|p| {
            p.expect("(")?;
            let (at, path) = (p.at, p.path()?);
            p.expect(",")?;
            let node = p.input(versioned, 0)?;
            p.expect(")")?;
            unique(at, &path, drv.input_drvs.contains_key(&path))?;
            drv.input_drvs.insert(path, node);
            Ok(())
        })?;
        self.expect(",")?;
        self.list(|p| {
            let (at, path) = (p.at, p.path()?);
            unique(at, &path, drv.input_srcs.contains(&path))?;
            drv.input_srcs.insert(path);
            Ok(())
        })?;
        self.expect(",")?;
        drv.platform = self.string()?.into_owned();
        self.expect(",")?;
        drv.builder = self.string()?.into_owned();
        self.expect(",")?;
        self.list(|p| {
            drv.args.push(p.string()?.into_owned());
            Ok(())
        })?;
        self.expect(",")?;
        self.list(|p| {
            p.expect("(")?;
            let (at, name) = (p.at, p.string()?);
            p.expect(",")?;
            let value = p.string()?.into_owned();
            p.expect(")")?;
            unique(at, &String::from_utf8_lossy(&name), drv.env.contains_key(&*name))?;
            drv.env.insert(name.into_owned(), value);
            Ok(())
        })?;
        self.expect(")")?;
        if self.at == self.input.len() { Ok(drv) } else { Err(fail(self.at, ParseReason::Trailing)) }
    }

    fn rest(&self) -> &'i [u8] {
        self.input.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text.as_bytes());
        if found {
            self.at += text.len();
        }
        found
    }

    fn expect(&mut self, text: &'static str) -> Parsed<()> {
        if self.skip(text) { Ok(()) } else { Err(fail(self.at, ParseReason::Expected(text))) }
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        self.expect("[")?;
        if self.skip("]") {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.skip("]") {
                return Ok(());
            }
            if !self.skip(",") {
                return Err(fail(self.at, ParseReason::ExpectedListEnd));
            }
        }
    }

    fn string(&mut self) -> Parsed<Cow<'i, [u8]>> {
        let start = self.at;
        self.expect("\"")?;
        let unterminated = || fail(start, ParseReason::UnterminatedString);
        let rest = self.rest();
        let mut done = 0;
        let mut unescaped = Vec::new();
        loop {
            let next = done + memchr::memchr2(b'"', b'\\', &rest[done..]).ok_or_else(unterminated)?;
            if rest[next] == b'"' {
                self.at += next + 1;
                return Ok(if unescaped.is_empty() {
                    Cow::Borrowed(&rest[done..next])
                } else {
                    unescaped.extend_from_slice(&rest[done..next]);
                    Cow::Owned(unescaped)
                });
            }
            unescaped.extend_from_slice(&rest[done..next]);
            unescaped.push(match *rest.get(next + 1).ok_or_else(unterminated)? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            done = next + 2;
        }
    }

    fn name(&mut self) -> Parsed<String> {
        let at = self.at;
        String::from_utf8(self.string()?.into_owned()).map_err(|_| fail(at, ParseReason::NameNotUtf8))
    }

    fn path(&mut self) -> Parsed<StorePath> {
        let at = self.at;
        let path = self.string()?;
        self.store_path(at, &path)
    }

    fn store_path(&self, at: usize, path: &[u8]) -> Parsed<StorePath> {
        if !path.starts_with(b"/") {
            return Err(fail(at, ParseReason::BadPath(lossy(path))));
        }
        self.store.parse(path).map_err(|e| fail(at, ParseReason::StorePath(e)))
    }

    /// The path, the algorithm and the hash of an output.
    fn output(&mut self) -> Parsed<DerivationOutput> {
        let path_at = self.at;
        let path = self.string()?;
        self.expect(",")?;
        let algo_at = self.at;
        let algo = lossy(&self.string()?);
        self.expect(",")?;
        let hash_at = self.at;
        let hash = lossy(&self.string()?);
        if algo.is_empty() {
            return match (path.is_empty(), hash.is_empty()) {
                (_, false) => Err(fail(hash_at, ParseReason::HashWithoutAlgo)),
                (true, true) => Ok(DerivationOutput::Deferred),
                (false, true) => Ok(DerivationOutput::InputAddressed(self.store_path(path_at, &path)?)),
            };
        }
        let (method, algo) = ContentAddressMethod::split_prefix(&algo);
        let bad_hash = |at| move |e: HashError| fail(at, ParseReason::ContentAddress(e.into()));
        let algo: HashAlgo = algo.parse().map_err(bad_hash(algo_at))?;
        match hash.as_str() {
            "impure" if path.is_empty() => Ok(DerivationOutput::Impure { method, algo }),
            "impure" => Err(fail(path_at, ParseReason::ImpurePath)),
            "" if path.is_empty() => Ok(DerivationOutput::CaFloating { method, algo }),
            "" => Err(fail(path_at, ParseReason::FloatingPath)),
            hash => {
                self.store_path(path_at, &path)?;
                let hash = Hash::parse_unprefixed(hash, algo).map_err(bad_hash(hash_at))?;
                Ok(DerivationOutput::CaFixed(ContentAddress { method, hash }))
            }
        }
    }

    fn input(&mut self, versioned: bool, depth: usize) -> Parsed<InputOutputs> {
        let mut node = InputOutputs::default();
        let at = self.at;
        if depth >= MAX_DYNAMIC_DEPTH {
            return Err(fail(at, ParseReason::TooDeep));
        }
        if versioned && self.skip("(") {
            self.output_names(&mut node.outputs)?;
            self.expect(",")?;
            self.list(|p| {
                p.expect("(")?;
                let (at, name) = (p.at, p.name()?);
                p.expect(",")?;
                let child = p.input(versioned, depth + 1)?;
                p.expect(")")?;
                unique(at, &name, node.dynamic.contains_key(&name))?;
                node.dynamic.insert(name, child);
                Ok(())
            })?;
            self.expect(")")?;
        } else if versioned && !self.rest().starts_with(b"[") {
            return Err(fail(at, ParseReason::InputEntry));
        } else {
            self.output_names(&mut node.outputs)?;
        }
        Ok(node)
    }

    fn output_names(&mut self, names: &mut BTreeSet<String>) -> Parsed<()> {
        self.list(|p| {
            let (at, name) = (p.at, p.name()?);
            unique(at, &name, names.contains(&name))?;
            names.insert(name);
            Ok(())
        })
    }
}

fn fail(offset: usize, reason: ParseReason) -> ParseError {
    ParseError { offset, reason }
}

fn unique(at: usize, what: &impl ToString, taken: bool) -> Parsed<()> {
    if taken { Err(fail(at, ParseReason::Duplicate(what.to_string()))) } else { Ok(()) }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
