//! Text to syntax tree: the lexer, the parser and the tree they make.

pub mod ast;
