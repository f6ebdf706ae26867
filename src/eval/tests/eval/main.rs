//! The evaluator, against what C++ Nix 2.34 says.
//!
//! `BENTO_NIX` names the folder of Nix's programs: with it, golden files are checked against Nix (and written, if `BENTO_BLESS`
//! is set too), and generated programs are compared. `BENTO_CORPORA` names a folder with public trees.

mod bad_input;
mod derivations;
mod differential;
mod golden;
mod nixpkgs;
mod store;
mod support;
