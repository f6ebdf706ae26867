//! The Nix store as data: hashes, store paths, NAR archives and derivations.
//!
//! Knows nothing of the Nix language and touches no store directory by itself.

pub mod base32;
pub mod content_address;
pub mod derivation;
pub mod hash;
pub mod placeholder;
pub mod store_path;
