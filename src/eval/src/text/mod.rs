//! Text functions behind the language's builtins, independent of the evaluator's values.
//!
//! Everything here works on bytes (a Nix string is a byte string, not text), is pure, and follows C++ Nix 2.34 to the
//! byte: what it prints reaches derivations and so store paths. Nothing here recurses to a depth that its input chooses.

pub mod builder;
pub mod escape;
pub mod json;
pub mod number;
pub mod regex;
pub mod strings;
pub mod toml;
pub mod version;
