//! Flakes: references, lock files, and the sources that they stand for.
//!
//! [`load`] gives a flake with all of its inputs resolved, and everything that calling its `outputs` needs but values:
//! the evaluator reads `flake.nix` for it (through [`FlakeHost`]) and turns the [nodes](LockedFlake) into attribute
//! sets. As with Nix's `--no-write-lock-file`, a lock file that doesn't fit what `flake.nix` declares is brought up to
//! date in memory.

mod archive;
mod cache;
mod error;
pub mod fetch;
mod forge;
mod git;
mod git_cli;
mod http;
pub mod lock;
pub mod reference;
mod registry;
mod resolve;
mod settings;
mod url;

pub use error::FlakeError;
pub(crate) use fetch::local_path;
pub use registry::UseRegistries;
pub use resolve::{LoadOptions, LockPolicy, LockedFlake, NodeSource, Update, load};
pub use settings::{FetchSettings, Registries, RegistryEntry};

use lock::InputPath;
use reference::{Attr, Attrs, FlakeRef, ParseOptions};
use std::collections::BTreeMap;
use std::path::Path;

/// What `flake.nix` says of itself, without `outputs`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FlakeDeclaration {
    /// The attribute `description`.
    pub description: Option<String>,
    /// The attribute `inputs`, without `self`.
    pub inputs: BTreeMap<String, InputDeclaration>,
    /// The attributes of `inputs.self`: how the flake itself wants to be fetched.
    pub self_attrs: Attrs,
    /// The names of the arguments that `outputs` takes as a set pattern, without the optional ones' defaults. Those
    /// that are not in `inputs` are looked up in the registry.
    pub output_arguments: Vec<String>,
}

/// One input, as `flake.nix` declares it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputDeclaration {
    /// Where it comes from; `None` if it isn't said.
    pub flake_ref: Option<FlakeRef>,
    /// Whether it is a flake, not just a source.
    pub is_flake: bool,
    /// The input, seen from the declaring flake, that it is the same as.
    pub follows: Option<InputPath>,
    /// What is declared for its own inputs.
    pub overrides: BTreeMap<String, InputDeclaration>,
}

impl Default for InputDeclaration {
    fn default() -> Self {
        InputDeclaration { flake_ref: None, is_flake: true, follows: None, overrides: BTreeMap::new() }
    }
}

impl InputDeclaration {
    /// A declaration from the attributes that `flake.nix` has for an input: `attrs` are those other than `flake`,
    /// `follows` and `inputs`, `url` included.
    ///
    /// # Errors
    /// When the attributes make no reference, or when it has both a reference and `follows`.
    pub fn new(
        mut attrs: Attrs,
        is_flake: bool,
        follows: Option<&str>,
        overrides: BTreeMap<String, InputDeclaration>,
    ) -> Result<Self, FlakeError> {
        let flake_ref = if attrs.contains_key("type") {
            Some(FlakeRef::from_attrs(attrs)?)
        } else {
            let url = attrs.remove("url");
            if let Some((name, _)) = attrs.first_key_value() {
                return Err(FlakeError::Declaration(format!("unexpected flake input attribute '{name}'")));
            }
            match url {
                None => None,
                Some(Attr::String(url)) => {
                    let options = ParseOptions { is_flake, preserve_relative_paths: true, ..ParseOptions::default() };
                    Some(FlakeRef::parse(&url, options)?)
                }
                Some(_) => return Err(FlakeError::Declaration("expected a string or a path as 'url'".to_owned())),
            }
        };
        let follows = follows.map(lock::parse_input_path).transpose()?;
        if flake_ref.is_some() && follows.is_some() {
            return Err(FlakeError::Declaration(
                "flake input has both a flake reference and a follows attribute".to_owned(),
            ));
        }
        Ok(InputDeclaration { flake_ref, is_flake, follows, overrides })
    }
}

/// What [`load`] needs an evaluator for.
pub trait FlakeHost {
    /// The evaluator's error.
    type Error: From<FlakeError>;

    /// Evaluates what the `flake.nix` of `flake_ref` declares. `path`, the file, is one of the fetcher's overlay and exists.
    ///
    /// # Errors
    /// When the file is not a flake's.
    fn read_flake(&self, path: &Path, flake_ref: &FlakeRef) -> Result<FlakeDeclaration, Self::Error>;

    /// Says what was being done when `error` came up.
    fn add_context(&self, error: Self::Error, context: String) -> Self::Error;
}
