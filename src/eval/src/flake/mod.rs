//! Flakes: references, lock files, and the sources that they stand for.

mod error;
pub mod lock;
pub mod reference;
mod url;

pub use error::FlakeError;
