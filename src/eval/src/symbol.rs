//! Interned names: attribute names and variables.

use bumpalo::Bump;
use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::cell::RefCell;
use std::hash::Hasher;

/// An interned name. Two symbols of one [`SymbolTable`] are equal exactly when their texts are.
/// The order of symbols is the order of interning, which says nothing about the texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Symbol(pub u32);

macro_rules! well_known {
    ($($name:ident = $text:expr;)*) => {
        /// Symbols that every table holds, so that the evaluator needs no look-up for them.
        pub mod sym {
            #![allow(missing_docs)]
            use super::Symbol;
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            enum Index { $($name,)* }
            $(pub const $name: Symbol = Symbol(Index::$name as u32);)*
        }
        const WELL_KNOWN: &[&str] = &[$($text,)*];
    };
}

well_known! {
    // the first must be the empty text: Symbol(0) stands for "no name" where one is optional
    EMPTY = "";
    SUB = "__sub";
    LESS_THAN = "__lessThan";
    MUL = "__mul";
    DIV = "__div";
    FIND_FILE = "__findFile";
    NIX_PATH = "__nixPath";
    CUR_POS = "__curPos";
    OR = "or";
    BODY = "body";
    OVERRIDES = "__overrides";
    FUNCTOR = "__functor";
    TO_STRING = "__toString";
    STRUCTURED_ATTRS = "__structuredAttrs";
    IGNORE_NULLS = "__ignoreNulls";
    CONTENT_ADDRESSED = "__contentAddressed";
    IMPURE = "__impure";
    JSON = "__json";
    ARGS = "args";
    BUILDER = "builder";
    SYSTEM = "system";
    NAME = "name";
    VALUE = "value";
    OUTPUTS = "outputs";
    OUTPUT_HASH = "outputHash";
    OUTPUT_HASH_ALGO = "outputHashAlgo";
    OUTPUT_HASH_MODE = "outputHashMode";
    OUT_PATH = "outPath";
    DRV_PATH = "drvPath";
    OUT = "out";
    TYPE = "type";
    OUTPUT_NAME = "outputName";
    DRV_ATTRS = "drvAttrs";
    ALL = "all";
    DERIVATION = "derivation";
    FILE = "file";
    LINE = "line";
    COLUMN = "column";
    PATH = "path";
    ALL_OUTPUTS = "allOutputs";
    RIGHT = "right";
    WRONG = "wrong";
    SUCCESS = "success";
    KEY = "key";
    START_SET = "startSet";
    OPERATOR = "operator";
    PREFIX = "prefix";
    FILTER = "filter";
    RECURSIVE = "recursive";
    SHA256 = "sha256";
    URL = "url";
    VERSION = "version";
}

/// All names of one evaluation. Texts are bytes: Nix strings need not be UTF-8.
pub struct SymbolTable<'a> {
    arena: &'a Bump,
    names: RefCell<Vec<&'a [u8]>>,
    index: RefCell<HashTable<u32>>,
}

fn hash(text: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(text);
    hasher.finish()
}

impl<'a> SymbolTable<'a> {
    /// A table that holds the well-known symbols and keeps further texts in `arena`.
    pub fn new(arena: &'a Bump) -> Self {
        let table = SymbolTable {
            arena,
            names: RefCell::new(Vec::with_capacity(1 << 14)),
            index: RefCell::new(HashTable::with_capacity(1 << 14)),
        };
        for text in WELL_KNOWN {
            table.intern(text.as_bytes());
        }
        table
    }

    /// The symbol of `text`, made if there is none yet.
    pub fn intern(&self, text: &[u8]) -> Symbol {
        let mut names = self.names.borrow_mut();
        let mut index = self.index.borrow_mut();
        let hash_value = hash(text);
        if let Some(&id) = index.find(hash_value, |&id| names[id as usize] == text) {
            return Symbol(id);
        }
        let id = names.len() as u32;
        names.push(self.arena.alloc_slice_copy(text));
        index.insert_unique(hash_value, id, |&id| hash(names[id as usize]));
        Symbol(id)
    }

    /// The symbol of `text` if it was interned before.
    pub fn find(&self, text: &[u8]) -> Option<Symbol> {
        let names = self.names.borrow();
        self.index.borrow().find(hash(text), |&id| names[id as usize] == text).map(|&id| Symbol(id))
    }

    /// The text of `symbol`.
    pub fn text(&self, symbol: Symbol) -> &'a [u8] {
        self.names.borrow()[symbol.0 as usize]
    }
}
