//! The text functions, as a user of the library sees them.
//!
//! `golden.rs` holds what C++ Nix 2.34 printed. Where the variable `BENTO_NIX` names the folder of its programs it is
//! asked again for all of that, and for many more inputs, made up from a fixed seed. `BENTO_FUZZ_SEED` and
//! `BENTO_FUZZ_ROUNDS` (of a thousand cases each) ask for other and for more regular expressions.

#[path = "text/golden.rs"]
mod golden;
#[path = "text/json.rs"]
mod json;
#[path = "text/number.rs"]
mod number;
#[path = "text/oracle.rs"]
mod oracle;
#[path = "text/print.rs"]
mod print;
#[path = "text/regex.rs"]
mod regex;
#[path = "text/strings.rs"]
mod strings;
#[path = "text/toml.rs"]
mod toml;
#[path = "text/value.rs"]
mod value;
#[path = "text/version.rs"]
mod version;
