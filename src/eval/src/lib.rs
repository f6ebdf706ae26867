//! The Nix language, evaluated as C++ Nix 2.34 does.
//!
//! A library: it reads files through a trait, it never prints and never exits.

pub mod flake;
pub mod fs;
pub mod symbol;
pub mod syntax;
pub mod text;
