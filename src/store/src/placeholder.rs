//! Placeholders: strings that stand for an output path which is not known before the build.

use crate::{
    base32,
    hash::{compress_hash, sha256},
    store_path::{StorePath, StorePathError, output_path_name},
};

/// What stands for the path of a derivation's own output (`builtins.placeholder`).
#[must_use]
pub fn hash_placeholder(output: &str) -> String {
    render(&sha256(format!("nix-output:{output}").as_bytes()))
}

/// What stands, in the derivations that use it, for the path of an output that is only known once it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DownstreamPlaceholder([u8; 32]);

impl DownstreamPlaceholder {
    /// For an output of a derivation whose output paths are not known: a content-addressed or impure one, or one that
    /// depends on such.
    ///
    /// # Errors
    /// `derivation` is not the path of a derivation.
    pub fn unknown_ca_output(derivation: &StorePath, output: &str) -> Result<Self, StorePathError> {
        let name = output_path_name(derivation.derivation_name()?, output);
        Ok(Self(sha256(format!("nix-upstream-output:{}:{name}", derivation.hash_part()).as_bytes())))
    }

    /// For an output of a derivation that is itself the output which `derivation` stands for.
    #[must_use]
    pub fn unknown_derivation(derivation: &Self, output: &str) -> Self {
        let hash = base32::encode(&compress_hash(&derivation.0));
        Self(sha256(format!("nix-computed-output:{hash}:{output}").as_bytes()))
    }

    /// The placeholder as it stands in a derivation.
    #[must_use]
    pub fn render(&self) -> String {
        render(&self.0)
    }
}

fn render(hash: &[u8; 32]) -> String {
    format!("/{}", base32::encode(hash))
}
