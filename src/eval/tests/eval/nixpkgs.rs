//! nixpkgs' own tests of its library.

use crate::support::{eval_file, settings};
use std::path::PathBuf;

#[test]
fn pass_the_tests_of_nixpkgs_lib() {
    let Some(corpora) = std::env::var_os("BENTO_CORPORA") else {
        println!("skipped: BENTO_CORPORA does not name a folder with nixpkgs-26.11");
        return;
    };
    let file = PathBuf::from(corpora).join("nixpkgs-26.11/lib/tests/misc.nix");
    // A list of the tests that fail.
    assert_eq!(eval_file(settings(), &file).as_deref(), Ok("[ ]"));
}
