//! Store derivations: what one is, the file that it is written to (an ATerm), and the hashes that name its outputs.
//!
//! An input-addressed output's path is made of its derivation's *hash modulo*: the hash of the derivation with its own
//! output paths blank and every input derivation replaced by that one's hash modulo. A fixed-output derivation's is made
//! of its output's content alone, so that how a source is fetched has no influence on what is built from it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use thiserror::Error;

use crate::{
    content_address::{ContentAddress, ContentAddressError, ContentAddressMethod},
    hash::{Hash, HashAlgo, HashError, sha256},
    store_path::{DRV_EXTENSION, StoreDir, StorePath, StorePathError, output_path_name},
};

/// How deep outputs of outputs of derivations may nest in a derivation that is read.
const MAX_DYNAMIC_DEPTH: usize = 64;

/// What is wrong with a derivation. The texts are Nix's own where Nix has one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DerivationError {
    /// No outputs at all.
    #[error("must have at least one output")]
    NoOutputs,
    /// Outputs of different kinds.
    #[error("can't mix derivation output types")]
    MixedOutputs,
    /// A fixed output and another one.
    #[error("only one fixed output is allowed for now")]
    ManyFixedOutputs,
    /// A fixed output with another name.
    #[error("single fixed output must be named \"out\"")]
    FixedOutputName,
    /// Floating outputs that use different algorithms.
    #[error("all floating outputs must use the same hash algorithm")]
    MixedAlgos,
    /// A derivation uses an output that its input doesn't have.
    #[error("no hash for output '{output}' of derivation '{derivation}'")]
    NoSuchOutput {
        /// The missing output.
        output: String,
        /// The name of the derivation that uses it.
        derivation: String,
    },
    /// An output path other than the computed one.
    #[error("derivation has incorrect output '{actual}', should be '{expected}'")]
    WrongOutputPath {
        /// The full path that the derivation has.
        actual: String,
        /// The full path that it should have.
        expected: String,
    },
    /// An output path where it can't be known yet.
    #[error("derivation has incorrect output '{0}', should be deferred")]
    UnexpectedOutputPath(String),
    /// An output whose path should have been filled in.
    #[error("derivation has incorrect deferred output, should be '{0}'")]
    UnexpectedDeferred(String),
    /// The variable for an output is not there.
    #[error("derivation has missing environment variable '{output}', should be '{expected}' but is not present")]
    MissingVariable {
        /// The output.
        output: String,
        /// The full path that it should have.
        expected: String,
    },
    /// The variable for an output has another value.
    #[error(
        "derivation has incorrect environment variable '{output}', should be '{expected}' but is actually '{actual}'"
    )]
    WrongVariable {
        /// The output.
        output: String,
        /// The full path that it should have.
        expected: String,
        /// The value that it has.
        actual: String,
    },
    /// A path in it, or made from it, is not valid.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
}

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

/// An output of a derivation: what is known of its path before it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerivationOutput {
    /// The path follows from the derivation's inputs.
    InputAddressed(StorePath),
    /// The path follows from the content, which is known.
    CaFixed(ContentAddress),
    /// The path follows from the content, which is not known.
    CaFloating {
        /// What will be hashed.
        method: ContentAddressMethod,
        /// How it will be hashed.
        algo: HashAlgo,
    },
    /// The path will follow from the inputs, but some input's path is not known.
    Deferred,
    /// As [`DerivationOutput::CaFloating`], and every build makes another.
    Impure {
        /// What will be hashed.
        method: ContentAddressMethod,
        /// How it will be hashed.
        algo: HashAlgo,
    },
}

impl DerivationOutput {
    /// The output's path, if it is known before the build. `derivation` is the derivation's name, `output` the output's.
    ///
    /// # Errors
    /// A fixed output for which there can be no path.
    pub fn path(&self, store: &StoreDir, derivation: &str, output: &str) -> Result<Option<StorePath>, StorePathError> {
        match self {
            Self::InputAddressed(path) => Ok(Some(path.clone())),
            Self::CaFixed(address) => fixed_path(store, address, derivation, output).map(Some),
            Self::CaFloating { .. } | Self::Deferred | Self::Impure { .. } => Ok(None),
        }
    }
}

fn fixed_path(
    store: &StoreDir,
    address: &ContentAddress,
    derivation: &str,
    output: &str,
) -> Result<StorePath, StorePathError> {
    store.make_fixed_output_path(&output_path_name(derivation, output), address)
}

/// What all outputs of a derivation have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DerivationType {
    /// Paths that follow from the inputs; `deferred` if they can't be computed yet.
    InputAddressed {
        /// Whether the paths wait for an input's.
        deferred: bool,
    },
    /// Paths that follow from the content; `fixed` if that is known before the build.
    ContentAddressed {
        /// Whether the content is known before the build.
        fixed: bool,
    },
    /// Made anew by each build.
    Impure,
}

/// Which outputs of an input derivation are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputOutputs {
    /// These outputs.
    pub outputs: BTreeSet<String>,
    /// Outputs which are derivations themselves, and what is used of those (experimental in Nix: `dynamic-derivations`).
    pub dynamic: BTreeMap<String, InputOutputs>,
}

/// A recipe for outputs. Strings are bytes, as in Nix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Derivation {
    /// The name, without [`DRV_EXTENSION`]. The ATerm doesn't contain it: it is part of the file's name.
    pub name: String,
    /// The outputs by name.
    pub outputs: BTreeMap<String, DerivationOutput>,
    /// The derivations that are built first.
    pub input_drvs: BTreeMap<StorePath, InputOutputs>,
    /// Store paths that are used as they are.
    pub input_srcs: BTreeSet<StorePath>,
    /// The system to build on: `x86_64-linux`. Written as it is, so it can't contain quotes.
    pub platform: Vec<u8>,
    /// The program that builds.
    pub builder: Vec<u8>,
    /// Its arguments.
    pub args: Vec<Vec<u8>>,
    /// Its environment. Structured attributes are the variable `__json`.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The hash modulo of a derivation: what it counts as in the hashes of those that use it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashModulo {
    /// The SHA-256. All outputs have the same one, as there never is more than one fixed output.
    pub hash: [u8; 32],
    /// Whether output paths can't be computed from it, as the derivation or one below it has outputs that are not known
    /// before they are built.
    pub deferred: bool,
    /// The outputs' names, sorted.
    pub outputs: Arc<[String]>,
}

impl HashModulo {
    /// Whether the derivation has this output.
    #[must_use]
    pub fn has_output(&self, output: &str) -> bool {
        self.outputs.binary_search_by(|o| o.as_str().cmp(output)).is_ok()
    }
}

/// The part of an ATerm that differs between the file and the hash modulo.
enum Inputs<'d> {
    Paths,
    Hashes(&'d BTreeMap<[u8; 32], BTreeSet<&'d str>>),
}

impl Derivation {
    /// What all outputs have in common.
    ///
    /// # Errors
    /// No outputs, or outputs that can't be together in one derivation.
    pub fn derivation_type(&self) -> Result<DerivationType, DerivationError> {
        let mut decided = None;
        let mut floating_algo = None;
        for (name, output) in &self.outputs {
            let this = match output {
                DerivationOutput::InputAddressed(_) => DerivationType::InputAddressed { deferred: false },
                DerivationOutput::Deferred => DerivationType::InputAddressed { deferred: true },
                DerivationOutput::CaFixed(_) => DerivationType::ContentAddressed { fixed: true },
                DerivationOutput::CaFloating { .. } => DerivationType::ContentAddressed { fixed: false },
                DerivationOutput::Impure { .. } => DerivationType::Impure,
            };
            match decided.replace(this) {
                Some(before) if before != this => return Err(DerivationError::MixedOutputs),
                Some(DerivationType::ContentAddressed { fixed: true }) => {
                    return Err(DerivationError::ManyFixedOutputs);
                }
                _ => {}
            }
            match output {
                DerivationOutput::CaFixed(_) if name != "out" => return Err(DerivationError::FixedOutputName),
                DerivationOutput::CaFloating { algo, .. } if *floating_algo.get_or_insert(*algo) != *algo => {
                    return Err(DerivationError::MixedAlgos);
                }
                _ => {}
            }
        }
        decided.ok_or(DerivationError::NoOutputs)
    }

    /// The paths of the outputs, as far as they are known before the build.
    ///
    /// # Errors
    /// A fixed output for which there can be no path.
    pub fn output_paths(&self, store: &StoreDir) -> Result<BTreeMap<String, Option<StorePath>>, StorePathError> {
        self.outputs.iter().map(|(name, output)| Ok((name.clone(), output.path(store, &self.name, name)?))).collect()
    }

    /// The contents of the `.drv` file.
    ///
    /// # Errors
    /// A fixed output for which there can be no path.
    pub fn to_aterm(&self, store: &StoreDir) -> Result<Vec<u8>, DerivationError> {
        self.write(store, false, &Inputs::Paths)
    }

    /// The path of the `.drv` file.
    ///
    /// # Errors
    /// A derivation's name that is not valid, or a fixed output for which there can be no path.
    pub fn drv_path(&self, store: &StoreDir) -> Result<StorePath, DerivationError> {
        self.to_file(store).map(|(path, _)| path)
    }

    /// The path of the `.drv` file and its contents.
    ///
    /// # Errors
    /// Those of [`Derivation::drv_path`].
    pub fn to_file(&self, store: &StoreDir) -> Result<(StorePath, Vec<u8>), DerivationError> {
        let contents = self.to_aterm(store)?;
        let hash = Hash::from_sha256(sha256(&contents));
        let name = format!("{}{DRV_EXTENSION}", self.name);
        let path = store.make_text_path(&name, &hash, self.input_srcs.iter().chain(self.input_drvs.keys()))?;
        Ok((path, contents))
    }

    /// The hash modulo of this derivation, whose outputs are complete: what it counts as in those that use it.
    /// `lookup` gives that of an input derivation; it is called once for each, and should remember.
    ///
    /// # Errors
    /// Outputs that can't be together, an output of an input that doesn't exist, and what `lookup` returns.
    pub fn hash_modulo<E: From<DerivationError>>(
        &self,
        store: &StoreDir,
        lookup: impl FnMut(&StorePath) -> Result<HashModulo, E>,
    ) -> Result<HashModulo, E> {
        self.hash_with(store, false, lookup)
    }

    /// As [`Derivation::hash_modulo`], with this derivation's own output paths blank: what its output paths are made of.
    ///
    /// # Errors
    /// Those of [`Derivation::hash_modulo`].
    pub fn masked_hash_modulo<E: From<DerivationError>>(
        &self,
        store: &StoreDir,
        lookup: impl FnMut(&StorePath) -> Result<HashModulo, E>,
    ) -> Result<HashModulo, E> {
        self.hash_with(store, true, lookup)
    }

    fn hash_with<E: From<DerivationError>>(
        &self,
        store: &StoreDir,
        mask: bool,
        mut lookup: impl FnMut(&StorePath) -> Result<HashModulo, E>,
    ) -> Result<HashModulo, E> {
        let outputs = self.outputs.keys().cloned().collect();
        let kind = self.derivation_type()?;
        if kind == (DerivationType::ContentAddressed { fixed: true })
            && let Some((name, DerivationOutput::CaFixed(address))) = self.outputs.first_key_value()
        {
            let path = fixed_path(store, address, &self.name, name).map_err(DerivationError::from)?;
            let text =
                format!("fixed:out:{}:{}:{}", address.method_algo(), address.hash.to_base16(), store.print(&path));
            return Ok(HashModulo { hash: sha256(text.as_bytes()), deferred: false, outputs });
        }
        // Whether an input-addressed derivation is deferred is decided by its inputs, not by what it says of itself.
        let mut deferred = !matches!(kind, DerivationType::InputAddressed { .. });
        let mut inputs: BTreeMap<[u8; 32], BTreeSet<&str>> = BTreeMap::new();
        for (path, used) in &self.input_drvs {
            let modulo = lookup(path)?;
            deferred |= modulo.deferred;
            for output in &used.outputs {
                if !modulo.has_output(output) {
                    let (output, derivation) = (output.clone(), self.name.clone());
                    return Err(DerivationError::NoSuchOutput { output, derivation }.into());
                }
                inputs.entry(modulo.hash).or_default().insert(output);
            }
        }
        let hash = sha256(&self.write(store, mask, &Inputs::Hashes(&inputs))?);
        Ok(HashModulo { hash, deferred, outputs })
    }

    /// Computes the path of each deferred output, if it can be known before the build, and sets the output to it, as well
    /// as the variable of the same name where that is missing or empty. Outputs that have a path already are checked,
    /// and so is the variable of a fixed output.
    ///
    /// # Errors
    /// Those of [`Derivation::hash_modulo`]; an output or a variable that has another value than the computed path; an
    /// invalid name.
    pub fn fill_in_output_paths<E: From<DerivationError>>(
        &mut self,
        store: &StoreDir,
        lookup: impl FnMut(&StorePath) -> Result<HashModulo, E>,
    ) -> Result<(), E> {
        let computed = self.compute_output_paths(store, lookup)?;
        for (name, path) in computed {
            let Some(output) = self.outputs.get_mut(&name) else { continue };
            match (&*output, path) {
                (DerivationOutput::Deferred, Some(path)) => {
                    self.set_variable(store, &name, &path);
                    self.check_variable(store, &name, &path)?;
                    self.outputs.insert(name, DerivationOutput::InputAddressed(path));
                }
                (DerivationOutput::InputAddressed(actual), path) => check_path(store, actual, path.as_ref())?,
                (DerivationOutput::CaFixed(_), Some(path)) => {
                    self.set_variable(store, &name, &path);
                    self.check_variable(store, &name, &path)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks that the outputs' paths and their variables are the computed ones, and deferred only where they have to be.
    ///
    /// # Errors
    /// The first that is not right, and the errors of [`Derivation::hash_modulo`].
    pub fn check_output_paths<E: From<DerivationError>>(
        &self,
        store: &StoreDir,
        lookup: impl FnMut(&StorePath) -> Result<HashModulo, E>,
    ) -> Result<(), E> {
        for (name, path) in self.compute_output_paths(store, lookup)? {
            match (self.outputs.get(&name), path) {
                (Some(DerivationOutput::Deferred), Some(path)) => {
                    return Err(DerivationError::UnexpectedDeferred(store.print(&path)).into());
                }
                (Some(DerivationOutput::InputAddressed(actual)), path) => {
                    check_path(store, actual, path.as_ref())?;
                    self.check_variable(store, &name, actual)?;
                }
                (Some(DerivationOutput::CaFixed(_)), Some(path)) => self.check_variable(store, &name, &path)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The paths that the outputs should have, as far as they can be known before the build.
    fn compute_output_paths<E: From<DerivationError>>(
        &self,
        store: &StoreDir,
        lookup: impl FnMut(&StorePath) -> Result<HashModulo, E>,
    ) -> Result<Vec<(String, Option<StorePath>)>, E> {
        let modulo = match self.derivation_type()? {
            DerivationType::InputAddressed { .. } => Some(self.masked_hash_modulo(store, lookup)?),
            DerivationType::ContentAddressed { .. } | DerivationType::Impure => None,
        };
        self.outputs
            .iter()
            .map(|(name, output)| {
                let path = match &modulo {
                    Some(modulo) if modulo.deferred => None,
                    Some(modulo) => Some(store.make_output_path(&modulo.hash, name, &self.name)),
                    None => output.path(store, &self.name, name).transpose(),
                };
                Ok((name.clone(), path.transpose().map_err(DerivationError::from)?))
            })
            .collect()
    }

    fn set_variable(&mut self, store: &StoreDir, output: &str, path: &StorePath) {
        let value = self.env.entry(output.as_bytes().to_vec()).or_default();
        if value.is_empty() {
            *value = store.print(path).into_bytes();
        }
    }

    fn check_variable(&self, store: &StoreDir, output: &str, path: &StorePath) -> Result<(), DerivationError> {
        let expected = store.print(path);
        let output = output.to_owned();
        match self.env.get(output.as_bytes()) {
            None => Err(DerivationError::MissingVariable { output, expected }),
            Some(actual) if *actual != expected.as_bytes() => {
                let actual = String::from_utf8_lossy(actual).into_owned();
                Err(DerivationError::WrongVariable { output, expected, actual })
            }
            Some(_) => Ok(()),
        }
    }

    fn write(&self, store: &StoreDir, mask: bool, inputs: &Inputs<'_>) -> Result<Vec<u8>, DerivationError> {
        let strings = self.env.iter().map(|(k, v)| k.len() + v.len() + 8).sum::<usize>()
            + self.args.iter().map(|a| a.len() + 3).sum::<usize>();
        let paths = self.outputs.len() + self.input_drvs.len() + self.input_srcs.len();
        // Escaping makes strings a little longer.
        let mut out = Writer { out: Vec::with_capacity(strings + strings / 16 + paths * 112 + 256) };

        let dynamic = self.input_drvs.values().any(|node| !node.dynamic.is_empty());
        out.raw(if dynamic { "DrvWithVersion(\"xp-dyn-drv\",[" } else { "Derive([" });
        for (i, (name, output)) in self.outputs.iter().enumerate() {
            out.raw(if i == 0 { "(" } else { ",(" });
            out.quoted(name);
            let method_algo = |method: &ContentAddressMethod, algo: &HashAlgo| format!("{}{algo}", method.prefix());
            let (path, algo, hash) = match output {
                DerivationOutput::InputAddressed(path) => (Some(Cow::Borrowed(path)), String::new(), String::new()),
                DerivationOutput::CaFixed(address) => {
                    let path = fixed_path(store, address, &self.name, name)?;
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
                for (i, (path, node)) in self.input_drvs.iter().enumerate() {
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
        for (i, path) in self.input_srcs.iter().enumerate() {
            if i > 0 {
                out.raw(",");
            }
            out.path(store, path);
        }
        out.raw("],\"");
        out.out.extend_from_slice(&self.platform);
        out.raw("\",");
        out.string(&self.builder);
        out.raw(",[");
        for (i, arg) in self.args.iter().enumerate() {
            if i > 0 {
                out.raw(",");
            }
            out.string(arg);
        }
        out.raw("],[");
        for (i, (name, value)) in self.env.iter().enumerate() {
            out.raw(if i == 0 { "(" } else { ",(" });
            out.string(name);
            out.raw(",");
            let blank = mask && std::str::from_utf8(name).is_ok_and(|name| self.outputs.contains_key(name));
            out.string(if blank { b"" } else { value });
            out.raw(")");
        }
        out.raw("])");
        Ok(out.out)
    }

    /// Reads the contents of a `.drv` file. `name` is the derivation's name, see [`StorePath::derivation_name`].
    ///
    /// Only the form that Nix writes is accepted, but for the order of sets, which is Nix's affair when it writes.
    /// A fixed output's path is not compared with the computed one.
    ///
    /// # Errors
    /// The first byte that can't be right, and why.
    pub fn parse(store: &StoreDir, name: &str, contents: &[u8]) -> Result<Self, ParseError> {
        Parser { store, input: contents, at: 0 }.derivation(name)
    }
}

fn check_path(store: &StoreDir, actual: &StorePath, expected: Option<&StorePath>) -> Result<(), DerivationError> {
    match expected {
        Some(expected) if expected == actual => Ok(()),
        Some(expected) => {
            Err(DerivationError::WrongOutputPath { actual: store.print(actual), expected: store.print(expected) })
        }
        None => Err(DerivationError::UnexpectedOutputPath(store.print(actual))),
    }
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
        let mut done = 0;
        for (i, c) in text.iter().enumerate() {
            let escape = match c {
                b'"' | b'\\' => *c,
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                _ => continue,
            };
            self.out.extend_from_slice(&text[done..i]);
            self.out.extend_from_slice(&[b'\\', escape]);
            done = i + 1;
        }
        self.out.extend_from_slice(&text[done..]);
        self.out.push(b'"');
    }
}

struct Parser<'i> {
    store: &'i StoreDir,
    input: &'i [u8],
    at: usize,
}

type Parsed<T> = Result<T, ParseError>;

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
