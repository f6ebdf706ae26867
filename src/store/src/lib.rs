//! The Nix store as data: hashes, store paths, NAR archives and derivations.
//!
//! Knows nothing of the Nix language and touches no store directory by itself.
