//! What can be asked to be built: store paths, and outputs of derivations.

use std::collections::BTreeSet;

use crate::store_path::{StoreDir, StorePath};

/// One store object: there already, or an output of a derivation that may itself still have to be built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SingleDerivedPath {
    /// A store path.
    Opaque(StorePath),
    /// An output of a derivation.
    Built {
        /// The derivation.
        drv: Box<SingleDerivedPath>,
        /// The output's name.
        output: String,
    },
}

impl SingleDerivedPath {
    /// The store path that it all starts from.
    #[must_use]
    pub fn base(&self) -> &StorePath {
        match self {
            Self::Opaque(path) => path,
            Self::Built { drv, .. } => drv.base(),
        }
    }

    /// As people write it: `/nix/store/…-hello.drv^out`.
    #[must_use]
    pub fn show(&self, store: &StoreDir) -> String {
        self.print(store, '^')
    }

    fn print(&self, store: &StoreDir, separator: char) -> String {
        match self {
            Self::Opaque(path) => store.print(path),
            Self::Built { drv, output } => format!("{}{separator}{output}", drv.print(store, separator)),
        }
    }
}

/// Which outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutputsSpec {
    /// All that it has.
    All,
    /// These; there is at least one.
    Names(BTreeSet<String>),
}

/// A store path, or outputs of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DerivedPath {
    /// A store path.
    Opaque(StorePath),
    /// Outputs of a derivation.
    Built {
        /// The derivation.
        drv: SingleDerivedPath,
        /// The outputs.
        outputs: OutputsSpec,
    },
}

impl DerivedPath {
    /// All outputs of the derivation at this path.
    #[must_use]
    pub fn outputs_of(drv: StorePath) -> Self {
        Self::Built { drv: SingleDerivedPath::Opaque(drv), outputs: OutputsSpec::All }
    }

    /// As people write it: `/nix/store/…-hello.drv^dev,out`.
    #[must_use]
    pub fn show(&self, store: &StoreDir) -> String {
        self.print(store, '^')
    }

    /// As it stands in the worker protocol from version 1.30 on, where `!` separates.
    #[must_use]
    pub(crate) fn legacy(&self, store: &StoreDir) -> String {
        self.print(store, '!')
    }

    fn print(&self, store: &StoreDir, separator: char) -> String {
        match self {
            Self::Opaque(path) => store.print(path),
            Self::Built { drv, outputs } => {
                let drv = drv.print(store, separator);
                match outputs {
                    OutputsSpec::All => format!("{drv}{separator}*"),
                    OutputsSpec::Names(names) => {
                        let names: Vec<&str> = names.iter().map(String::as_str).collect();
                        format!("{drv}{separator}{}", names.join(","))
                    }
                }
            }
        }
    }
}
