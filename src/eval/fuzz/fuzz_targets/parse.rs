//! Any bytes end in a tree or an error. A tree can be printed, and what is printed of it is stable.
//!
//! `cargo fuzz run parse -- -dict=nix.dict -max_len=4096`, with `RUSTC_BOOTSTRAP=1` on a stable toolchain; the cases of
//! `../tests/syntax` make a good first corpus.

#![no_main]

use bento_eval::symbol::SymbolTable;
use bento_eval::syntax::{LineIndex, ParseOptions, line_column, parse, show};
use bumpalo::Bump;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    let arena = Bump::new();
    let symbols = SymbolTable::new(&arena);
    let home = Some(&b"/home/user"[..]);
    let options = ParseOptions { base_path: b"/dir", home, pipe_operators: true, ..ParseOptions::default() };
    match parse(&arena, &symbols, source, &options) {
        Ok(node) => {
            let mut first = Vec::new();
            show(node, &symbols, &mut first);
            let again = parse(&arena, &symbols, source, &options).expect("what was parsed once is parsed again");
            let mut second = Vec::new();
            show(again, &symbols, &mut second);
            assert_eq!(first, second);
        }
        Err(error) => {
            assert!(!error.message.is_empty());
            for pos in [Some(error.pos), error.previous].into_iter().flatten() {
                // only what has no place in the text has no position
                if pos != u32::MAX {
                    assert!(pos as usize <= source.len());
                    assert_eq!(LineIndex::new(source).line_column(pos), line_column(source, pos));
                }
            }
        }
    }
});
