//! Interned names: attribute names and variables.

use bumpalo::Bump;
use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::cell::{Cell, RefCell};
use std::hash::Hasher;

/// An interned name. Two symbols of one [`SymbolTable`] are equal exactly when their texts are.
/// The order of symbols is the order of interning, which says nothing about the texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Symbol(pub u32);

/// The first symbols of every table. The order is that of C++ Nix 2.34, because programs can see it: `deepSeq` and `==` go
/// through a set in the order of its symbols, and of the arguments that a function lacks the first in that order is named.
#[rustfmt::skip]
const WELL_KNOWN: &[&str] = &[
    // Symbol(0) stands for "no name" where one is optional.
    "",
    // what the evaluator itself looks for
    "<with>", "outPath", "drvPath", "type", "meta", "name", "value", "system", "__overrides", "outputs", "outputName",
    "__ignoreNulls", "file", "line", "column", "__functor", "__toString", "right", "wrong", "__structuredAttrs",
    "__json", "allowedReferences", "allowedRequisites", "disallowedReferences", "disallowedRequisites", "maxSize",
    "maxClosureSize", "builder", "args", "__contentAddressed", "__impure", "outputHash", "outputHashAlgo",
    "outputHashMode", "recurseForDerivations", "description", "self", "startSet", "operator", "key", "path", "prefix",
    "outputSpecified", "__sub", "__lessThan", "__mul", "__div", "or", "__findFile", "__nixPath", "body",
    // the builtins
    "builtins", "true", "false", "null", "__currentTime", "currentTime", "__currentSystem", "currentSystem",
    "__nixVersion", "nixVersion", "__storeDir", "storeDir", "__langVersion", "langVersion", "__traceVerbose",
    "traceVerbose", "nixPath", "scopedImport", "import", "__typeOf", "typeOf", "isNull", "__isFunction", "isFunction",
    "__isInt", "isInt", "__isFloat", "isFloat", "__isString", "isString", "__isBool", "isBool", "__isPath", "isPath",
    "__genericClosure", "genericClosure", "break", "abort", "throw", "__addErrorContext", "addErrorContext", "__ceil",
    "ceil", "__floor", "floor", "__tryEval", "tryEval", "__getEnv", "getEnv", "__seq", "seq", "__deepSeq", "deepSeq",
    "__trace", "trace", "__warn", "warn", "derivationStrict", "placeholder", "__toPath", "toPath", "__storePath",
    "storePath", "__pathExists", "pathExists", "baseNameOf", "dirOf", "__readFile", "readFile", "findFile",
    "__hashFile", "hashFile", "__readFileType", "readFileType", "__readDir", "readDir", "__toXML", "toXML", "__toJSON",
    "toJSON", "__fromJSON", "fromJSON", "__toFile", "toFile", "__filterSource", "filterSource", "__path", "__attrNames",
    "attrNames", "__attrValues", "attrValues", "__getAttr", "getAttr", "__unsafeGetAttrPos", "unsafeGetAttrPos",
    "__hasAttr", "hasAttr", "__isAttrs", "isAttrs", "removeAttrs", "__listToAttrs", "listToAttrs", "__intersectAttrs",
    "intersectAttrs", "__catAttrs", "catAttrs", "__functionArgs", "functionArgs", "__mapAttrs", "mapAttrs",
    "__zipAttrsWith", "zipAttrsWith", "__isList", "isList", "__elemAt", "elemAt", "__head", "head", "__tail", "tail",
    "map", "__filter", "filter", "__elem", "elem", "__concatLists", "concatLists", "__length", "length", "__foldl'",
    "foldl'", "__any", "any", "__all", "all", "__genList", "genList", "__sort", "sort", "__partition", "partition",
    "__groupBy", "groupBy", "__concatMap", "concatMap", "__add", "add", "sub", "mul", "div", "__bitAnd", "bitAnd",
    "__bitOr", "bitOr", "__bitXor", "bitXor", "lessThan", "toString", "__substring", "substring", "__stringLength",
    "stringLength", "__hashString", "hashString", "__convertHash", "convertHash", "__match", "match", "__split",
    "split", "__concatStringsSep", "concatStringsSep", "__replaceStrings", "replaceStrings", "__parseDrvName",
    "parseDrvName", "__compareVersions", "compareVersions", "__splitVersion", "splitVersion",
    "__unsafeDiscardStringContext", "unsafeDiscardStringContext", "__hasContext", "hasContext",
    "__unsafeDiscardOutputDependency", "unsafeDiscardOutputDependency", "__addDrvOutputDependencies",
    "addDrvOutputDependencies", "__getContext", "getContext", "__appendContext", "appendContext", "fetchMercurial",
    "fetchTree", "fetchFinalTree", "__fetchurl", "fetchurl", "fetchTarball", "fetchGit", "fromTOML", "__getFlake",
    "getFlake", "__parseFlakeRef", "parseFlakeRef", "__flakeRefToString", "flakeRefToString",
    // what the definition of `derivation` adds
    "derivation", "strict", "drvAttrs", "commonAttrs", "outputsList", "x", "outputToAttrListElement",
];

/// The symbol of a text that every table holds.
const fn well_known(text: &str) -> Symbol {
    let mut index = 0;
    while index < WELL_KNOWN.len() {
        let (text, other) = (text.as_bytes(), WELL_KNOWN[index].as_bytes());
        let mut same = 0;
        while same < text.len() && same < other.len() && text[same] == other[same] {
            same += 1;
        }
        if same == text.len() && same == other.len() {
            return Symbol(index as u32);
        }
        index += 1;
    }
    panic!("not a well-known symbol")
}

/// Symbols that the evaluator needs, without a look-up.
pub mod sym {
    #![allow(missing_docs)]
    use super::{Symbol, well_known};
    pub const OUT_PATH: Symbol = well_known("outPath");
    pub const DRV_PATH: Symbol = well_known("drvPath");
    pub const TYPE: Symbol = well_known("type");
    pub const NAME: Symbol = well_known("name");
    pub const VALUE: Symbol = well_known("value");
    pub const SYSTEM: Symbol = well_known("system");
    pub const OVERRIDES: Symbol = well_known("__overrides");
    pub const OUTPUTS: Symbol = well_known("outputs");
    pub const OUTPUT_NAME: Symbol = well_known("outputName");
    pub const IGNORE_NULLS: Symbol = well_known("__ignoreNulls");
    pub const FILE: Symbol = well_known("file");
    pub const LINE: Symbol = well_known("line");
    pub const COLUMN: Symbol = well_known("column");
    pub const FUNCTOR: Symbol = well_known("__functor");
    pub const TO_STRING: Symbol = well_known("__toString");
    pub const RIGHT: Symbol = well_known("right");
    pub const WRONG: Symbol = well_known("wrong");
    pub const STRUCTURED_ATTRS: Symbol = well_known("__structuredAttrs");
    pub const JSON: Symbol = well_known("__json");
    pub const BUILDER: Symbol = well_known("builder");
    pub const ARGS: Symbol = well_known("args");
    pub const CONTENT_ADDRESSED: Symbol = well_known("__contentAddressed");
    pub const IMPURE: Symbol = well_known("__impure");
    pub const OUTPUT_HASH: Symbol = well_known("outputHash");
    pub const OUTPUT_HASH_ALGO: Symbol = well_known("outputHashAlgo");
    pub const OUTPUT_HASH_MODE: Symbol = well_known("outputHashMode");
    pub const START_SET: Symbol = well_known("startSet");
    pub const OPERATOR: Symbol = well_known("operator");
    pub const KEY: Symbol = well_known("key");
    pub const PATH: Symbol = well_known("path");
    pub const PREFIX: Symbol = well_known("prefix");
    pub const SUB: Symbol = well_known("__sub");
    pub const LESS_THAN: Symbol = well_known("__lessThan");
    pub const MUL: Symbol = well_known("__mul");
    pub const DIV: Symbol = well_known("__div");
    pub const OR: Symbol = well_known("or");
    pub const FIND_FILE: Symbol = well_known("__findFile");
    pub const NIX_PATH: Symbol = well_known("__nixPath");
    pub const BODY: Symbol = well_known("body");
}

/// All names of one evaluation. Texts are bytes: Nix strings need not be UTF-8.
pub struct SymbolTable<'a> {
    arena: &'a Bump,
    names: RefCell<Vec<&'a [u8]>>,
    index: RefCell<HashTable<u32>>,
    /// By the last digits of its place in memory, a text that was looked up: programs look up the same strings again and again.
    known: Box<[Cell<Option<Known<'a>>>]>,
}

/// A text that stays where it is, and its symbol.
#[derive(Clone, Copy)]
struct Known<'a> {
    text: &'a [u8],
    symbol: Symbol,
}

impl<'a> Known<'a> {
    /// The symbol of the text in a cell if it is the very same.
    #[inline]
    fn symbol_of(cell: &Cell<Option<Self>>, text: &'a [u8]) -> Option<Symbol> {
        cell.get().filter(|known| std::ptr::eq(known.text, text)).map(|known| known.symbol)
    }
}

/// How many texts are kept with their places.
const KNOWN: usize = 1 << 12;

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
            known: vec![Cell::new(None); KNOWN].into(),
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

    /// As [`SymbolTable::intern`], for a text that stays where it is as long as the table: a program's string.
    #[inline]
    pub fn intern_kept(&self, text: &'a [u8]) -> Symbol {
        let cell = self.known_cell(text);
        if let Some(symbol) = Known::symbol_of(cell, text) {
            return symbol;
        }
        let symbol = self.intern(text);
        cell.set(Some(Known { text, symbol }));
        symbol
    }

    /// As [`SymbolTable::find`], for a text that stays where it is as long as the table.
    #[inline]
    pub fn find_kept(&self, text: &'a [u8]) -> Option<Symbol> {
        let cell = self.known_cell(text);
        Known::symbol_of(cell, text).or_else(|| {
            let symbol = self.find(text)?;
            cell.set(Some(Known { text, symbol }));
            Some(symbol)
        })
    }

    #[inline]
    fn known_cell(&self, text: &'a [u8]) -> &Cell<Option<Known<'a>>> {
        let place = text.as_ptr().addr();
        &self.known[((place >> 3) ^ (place >> 15)) % KNOWN]
    }

    /// The text of `symbol`.
    pub fn text(&self, symbol: Symbol) -> &'a [u8] {
        self.names.borrow()[symbol.0 as usize]
    }
}
