//! Store derivations: what one is, the file that it is written to (an ATerm), and the hashes that name its outputs.
//!
//! An input-addressed output's path is made of its derivation's *hash modulo*: the hash of the derivation with its own
//! output paths blank and every input derivation replaced by that one's hash modulo. A fixed-output derivation's is made
//! of its output's content alone, so that how a source is fetched has no influence on what is built from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use thiserror::Error;

use crate::{
    aterm::{self, Inputs, ParseError},
    content_address::{ContentAddress, ContentAddressMethod},
    hash::{Hash, HashAlgo, sha256},
    store_path::{DRV_EXTENSION, StoreDir, StorePath, StorePathError, output_path_name},
};

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

/// An output of a derivation: what is known of its path before it is built.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

pub(crate) fn fixed_path(
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct InputOutputs {
    /// These outputs.
    pub outputs: BTreeSet<String>,
    /// Outputs which are derivations themselves, and what is used of those (experimental in Nix: `dynamic-derivations`).
    pub dynamic: BTreeMap<String, InputOutputs>,
}

/// A recipe for outputs. Strings are bytes, as in Nix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
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
        Ok(aterm::write(self, store, false, &Inputs::Paths)?)
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
        if let (DerivationType::ContentAddressed { fixed: true }, Some((name, DerivationOutput::CaFixed(address)))) =
            (kind, self.outputs.first_key_value())
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
        let hash = sha256(&aterm::write(self, store, mask, &Inputs::Hashes(&inputs)).map_err(DerivationError::from)?);
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

    /// Reads the contents of a `.drv` file. `name` is the derivation's name, see [`StorePath::derivation_name`].
    ///
    /// Only the form that Nix writes is accepted, but for the order of sets, which is Nix's affair when it writes.
    /// A fixed output's path is not compared with the computed one.
    ///
    /// # Errors
    /// The first byte that can't be right, and why.
    pub fn parse(store: &StoreDir, name: &str, contents: &[u8]) -> Result<Self, ParseError> {
        aterm::parse(store, name, contents)
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
