//! The text functions, as a user of the library sees them.
//!
//! Tables hold what C++ Nix 2.34 printed. The differential tests ask it again, for inputs made up from a fixed seed,
//! where the variable `BENTO_NIX` names the folder of its programs.

#[path = "text/oracle.rs"]
mod oracle;
#[path = "text/regex.rs"]
mod regex;
