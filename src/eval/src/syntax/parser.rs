//! Tokens to a tree.
//!
//! Recursive descent, with levels of precedence for the operators. It accepts what Nix's LALR(1) grammar accepts, reports
//! errors where and as bison does (a token that fits nowhere is noticed after everything before it has been reduced), and
//! desugars as Nix's parser does.

use super::ast::{AttrName, Attrs, BinaryOp, Expr, Formal, Formals, Lambda, NO_POS, Node, Pos};
use super::attrs::Bindings;
use super::error::{ParseError, Result, Warning, fail};
use super::lexer::{Lexer, PathPiece};
use super::strings::IndentedPart;
use super::token::{Grouping, Token, level};
use crate::symbol::{Symbol, SymbolTable, sym};
use bumpalo::Bump;
use std::cell::{Cell, RefCell};
use std::str::FromStr;

/// How deeply a text may be nested: brackets, right-hand sides, bodies. The parser needs less than 6 KiB of stack for each.
pub const MAX_DEPTH: u32 = 10_000;

/// The height of the highest tree that the parser makes. Higher than [`MAX_DEPTH`], because `a + b + c + …` makes a tree that
/// leans to the left without being nested. Whoever walks a tree recursively can count on it.
pub const MAX_HEIGHT: u32 = 20_000;

/// More formal arguments than this can't be stored by Nix.
const MAX_FORMALS: usize = u16::MAX as usize;

/// What a text is parsed against. The default has no directory and no home, and allows nothing experimental.
#[derive(Clone, Copy, Default, Debug)]
pub struct ParseOptions<'o> {
    /// The absolute directory that relative paths start from: the one that the file lies in.
    pub base_path: &'o [u8],
    /// What `~` stands for, if that is known.
    pub home: Option<&'o [u8]>,
    /// Whether evaluation is pure, so that there is no `~`.
    pub pure: bool,
    /// Whether the experimental operators `<|` and `|>` are allowed.
    pub pipe_operators: bool,
    /// What is to be said about discouraged literals.
    pub lints: Lints,
    /// Where the warnings go; without it they are lost.
    pub warnings: Option<&'o RefCell<Vec<Warning>>>,
}

/// What to do about a discouraged way to write something.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Lint {
    /// Nothing.
    #[default]
    Ignore,
    /// Warn, and go on.
    Warn,
    /// Take it for an error.
    Fatal,
}

impl FromStr for Lint {
    type Err = ();

    /// `ignore`, `warn` or `fatal`.
    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        match text {
            "ignore" => Ok(Lint::Ignore),
            "warn" => Ok(Lint::Warn),
            "fatal" => Ok(Lint::Fatal),
            _ => Err(()),
        }
    }
}

/// Nix's settings about literals.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lints {
    /// `lint-url-literals`: URLs without quotes.
    pub url_literals: Lint,
    /// `lint-absolute-path-literals`: paths that start with `/` or `~/`.
    pub absolute_path_literals: Lint,
    /// `lint-short-path-literals`: relative paths that don't start with a dot.
    pub short_path_literals: Lint,
}

/// Parses a whole text.
///
/// The tree is allocated in `arena`, and nothing else stays there; names are interned in `symbols`. Needs up
/// to 64 MiB of stack for the deepest texts that are accepted. Positions are those that C++ Nix gives.
///
/// # Errors
///
/// Syntax errors, duplicate attributes and arguments, numbers out of range, and nesting beyond [`MAX_DEPTH`] or
/// [`MAX_HEIGHT`]: the first one, in the order and in the words of C++ Nix 2.34.
pub fn parse<'p>(
    arena: &'p Bump,
    symbols: &SymbolTable<'_>,
    source: &[u8],
    options: &ParseOptions<'_>,
) -> std::result::Result<Node<'p>, ParseError> {
    if u32::try_from(source.len()).is_err() || source.len() as u32 == NO_POS {
        return fail(NO_POS, "the file is too large to be parsed").map_err(|error| *error);
    }
    let mut parser = Parser {
        arena,
        symbols,
        options,
        lexer: Lexer::new(source, options.pipe_operators),
        depth: 0,
        height: 0,
        nodes: Vec::new(),
        parts: Vec::new(),
        names: Vec::new(),
        formals: Vec::new(),
        or_call: None,
        indented: Vec::new(),
        buffer: Vec::new(),
        bindings: Bindings::default(),
    };
    parser.file().map_err(|error| *error)
}

/// The parser's state. The vectors are stacks that nested constructs share: each notes the length at its start, pushes, and
/// takes its own part off at its end, so that only finished slices are allocated in the arena.
pub(super) struct Parser<'p, 's, 't> {
    pub(super) arena: &'p Bump,
    pub(super) symbols: &'s SymbolTable<'t>,
    pub(super) options: &'s ParseOptions<'s>,
    pub(super) lexer: Lexer<'s>,
    depth: u32,
    /// The height of the tree that was made last.
    pub(super) height: u32,
    pub(super) nodes: Vec<Node<'p>>,
    pub(super) parts: Vec<(Pos, Node<'p>)>,
    pub(super) names: Vec<AttrName<'p>>,
    formals: Vec<Formal<'p>>,
    /// From where to where the last [`Self::select`] read a call with the variable `or` that is not in parentheses.
    or_call: Option<(Pos, Pos)>,
    pub(super) indented: Vec<(Pos, IndentedPart<'p>)>,
    pub(super) buffer: Vec<u8>,
    pub(super) bindings: Bindings<'p>,
}

/// What a brace at the start of an expression turns out to be.
enum Brace<'p> {
    Set(Node<'p>),
    Formals(FormalSet),
}

/// `{ a, b ? c, ... }`; the arguments are on their stack from `start` on.
#[derive(Clone, Copy)]
struct FormalSet {
    start: usize,
    ellipsis: bool,
    /// The height of the highest default.
    height: u32,
}

impl<'p, 's> Parser<'p, 's, '_> {
    fn file(&mut self) -> Result<Node<'p>> {
        self.lexer.advance()?;
        let node = self.expr()?;
        if self.lexer.token != Token::Eof {
            return self.unexpected(&[Token::Eof]);
        }
        self.bindings.finish();
        Ok(node)
    }

    // ---- small tools

    #[inline]
    pub(super) fn token(&self) -> Token {
        self.lexer.token
    }

    #[inline]
    pub(super) fn advance(&mut self) -> Result<()> {
        self.lexer.advance()
    }

    /// Steps over `token`, which alone may stand here.
    #[inline]
    pub(super) fn expect(&mut self, token: Token) -> Result<()> {
        self.require(token)?;
        self.advance()
    }

    /// Checks that the current token is `token`.
    #[inline]
    pub(super) fn require(&self, token: Token) -> Result<()> {
        if self.token() == token { Ok(()) } else { self.unexpected(&[token]) }
    }

    /// The error for the current token. `expected` in the order of the tokens; empty if bison would list more than four.
    #[cold]
    pub(super) fn unexpected<T>(&self, expected: &[Token]) -> Result<T> {
        let mut message = format!("syntax error, unexpected {}", self.token().describe());
        for (n, token) in expected.iter().enumerate() {
            message.push_str(if n == 0 { ", expecting " } else { " or " });
            message.push_str(token.describe());
        }
        fail(self.lexer.error_pos(), message)
    }

    /// Says what `lint`, whose setting is `name`, has to say of the literal at `pos`; `message` is told whether that is fatal.
    #[cold]
    fn lint(&self, lint: Lint, name: &str, pos: Pos, message: impl FnOnce(bool) -> String) -> Result<()> {
        let fatal = lint == Lint::Fatal;
        let message = format!("{} ({name})", message(fatal));
        if fatal {
            return fail(pos, message);
        }
        self.warn(Warning::Literal { pos, message });
        Ok(())
    }

    #[cold]
    fn warn(&self, warning: Warning) {
        if let Some(warnings) = self.options.warnings {
            warnings.borrow_mut().push(warning);
        }
    }

    #[cold]
    fn too_deep<T>(&self) -> Result<T> {
        fail(self.lexer.pos(), "stack overflow (possible infinite recursion)")
    }

    #[inline]
    fn enter(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { self.too_deep() } else { Ok(()) }
    }

    #[inline]
    fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Notes that a tree with subtrees up to `height` high was put under `levels` new nodes.
    #[inline]
    pub(super) fn grow(&mut self, height: u32, levels: u32) -> Result<()> {
        self.height = height.saturating_add(levels);
        if self.height > MAX_HEIGHT { self.too_deep() } else { Ok(()) }
    }

    #[inline]
    pub(super) fn node(&self, expr: Expr<'p>) -> Node<'p> {
        self.arena.alloc(expr)
    }

    pub(super) fn intern(&self, text: &[u8]) -> Symbol {
        self.symbols.intern(text)
    }

    fn made_up(&self, name: Symbol) -> Node<'p> {
        self.node(Expr::Var { pos: NO_POS, name })
    }

    fn call(&self, pos: Pos, function: Node<'p>, args: &[Node<'p>]) -> Node<'p> {
        self.node(Expr::Call { pos, function, args: self.arena.alloc_slice_copy(args) })
    }

    /// Calls `function`; one argument more if it is a call already, however that came about.
    fn make_call(&mut self, pos: Pos, function: Node<'p>, arg: Node<'p>, height: u32) -> Result<Node<'p>> {
        self.grow(height, 1)?;
        Ok(match function {
            Expr::Call { pos, function, args } => {
                let base = self.nodes.len();
                self.nodes.extend_from_slice(args);
                self.nodes.push(arg);
                let call = self.call(*pos, function, &self.nodes[base..]);
                self.nodes.truncate(base);
                call
            }
            _ => self.call(pos, function, &[arg]),
        })
    }

    // ---- functions and statements

    /// `expr_function`: everything.
    pub(super) fn expr(&mut self) -> Result<Node<'p>> {
        self.enter()?;
        let pos = self.lexer.pos();
        let node = match self.token() {
            Token::Id => {
                let text = self.lexer.text();
                self.advance()?;
                match self.token() {
                    Token::Colon => {
                        self.advance()?;
                        let body = self.expr()?;
                        let arg = self.intern(text);
                        self.lambda(pos, Some(arg), None, body)?
                    }
                    Token::At => {
                        self.advance()?;
                        self.require(Token::BraceOpen)?;
                        self.advance()?;
                        let formals = self.formals_only()?;
                        self.expect(Token::Colon)?;
                        self.formals_body(pos, Some(text), formals)?
                    }
                    _ => {
                        let first = self.variable(pos, text);
                        self.operators(Some((pos, first)))?
                    }
                }
            }
            Token::BraceOpen => {
                self.advance()?;
                match self.brace(pos)? {
                    Brace::Set(set) => self.operators(Some((pos, set)))?,
                    Brace::Formals(formals) => self.function(pos, formals)?,
                }
            }
            Token::Let => {
                self.advance()?;
                if self.token() == Token::BraceOpen {
                    let first = self.let_set(pos)?;
                    self.operators(Some((pos, first)))?
                } else {
                    self.let_in(pos)?
                }
            }
            Token::Assert => {
                self.advance()?;
                let condition = self.expr()?;
                let height = self.height;
                self.expect(Token::Semicolon)?;
                let body = self.expr()?;
                self.grow(height.max(self.height), 1)?;
                self.node(Expr::Assert { pos, condition, body })
            }
            Token::With => {
                self.advance()?;
                let scope = self.expr()?;
                let height = self.height;
                self.expect(Token::Semicolon)?;
                let body = self.expr()?;
                self.grow(height.max(self.height), 1)?;
                self.node(Expr::With { pos, scope, body })
            }
            Token::If => {
                self.advance()?;
                let condition = self.expr()?;
                let mut height = self.height;
                self.expect(Token::Then)?;
                let then = self.expr()?;
                height = height.max(self.height);
                self.expect(Token::Else)?;
                let otherwise = self.expr()?;
                self.grow(height.max(self.height), 1)?;
                self.node(Expr::If { pos, condition, then, otherwise })
            }
            _ => self.operators(None)?,
        };
        self.leave();
        Ok(node)
    }

    fn lambda(
        &mut self,
        pos: Pos,
        arg: Option<Symbol>,
        formals: Option<&'p Formals<'p>>,
        body: Node<'p>,
    ) -> Result<Node<'p>> {
        self.grow(self.height, 1)?;
        Ok(self.node(Expr::Lambda(self.arena.alloc(Lambda { pos, name: Cell::new(None), arg, formals, body }))))
    }

    /// What follows `{ … }` when it can only be formal arguments.
    fn function(&mut self, pos: Pos, formals: FormalSet) -> Result<Node<'p>> {
        let mut arg = None;
        match self.token() {
            Token::Colon => {}
            Token::At => {
                self.advance()?;
                self.require(Token::Id)?;
                arg = Some(self.lexer.text());
                self.advance()?;
                self.require(Token::Colon)?;
            }
            _ => return self.unexpected(&[Token::Colon, Token::At]),
        }
        self.advance()?;
        self.formals_body(pos, arg, formals)
    }

    /// The body of a function with formal arguments. The name of the whole argument is interned after the body, as in C++ Nix.
    fn formals_body(&mut self, pos: Pos, arg: Option<&[u8]>, formals: FormalSet) -> Result<Node<'p>> {
        let FormalSet { start, ellipsis, height } = formals;
        let body = self.expr()?;
        let arg = arg.map(|text| self.intern(text));
        self.height = height.max(self.height);
        self.check_formals(pos, arg, start)?;
        let formals = self.arena.alloc_slice_fill_iter(self.formals.drain(start..));
        let formals = self.arena.alloc(Formals { formals, ellipsis });
        self.lambda(pos, arg, Some(formals), body)
    }

    /// No argument may occur twice.
    fn check_formals(&self, pos: Pos, arg: Option<Symbol>, start: usize) -> Result<()> {
        let formals = &self.formals[start..];
        let mut duplicate: Option<(Symbol, Pos)> = None;
        if formals.len() <= 16 {
            for (n, formal) in formals.iter().enumerate() {
                if formals[..n].iter().any(|earlier| earlier.name == formal.name) {
                    let this = (formal.name, formal.pos);
                    duplicate = Some(duplicate.map_or(this, |other| other.min(this)));
                }
            }
        } else {
            let mut names: Vec<_> = formals.iter().map(|formal| (formal.name, formal.pos)).collect();
            names.sort_unstable();
            duplicate = names.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| pair[1]);
        }
        if duplicate.is_none() {
            duplicate = arg.filter(|arg| formals.iter().any(|formal| formal.name == *arg)).map(|arg| (arg, pos));
        }
        if let Some((name, pos)) = duplicate {
            let name = String::from_utf8_lossy(self.symbols.text(name));
            return fail(pos, format!("duplicate formal function argument '{name}'"));
        }
        if formals.len() > MAX_FORMALS {
            return fail(pos, format!("too many formal arguments, implementation supports at most {MAX_FORMALS}"));
        }
        Ok(())
    }

    /// After the `{` of an expression: formal arguments or an attribute set, as far as `}`.
    fn brace(&mut self, pos: Pos) -> Result<Brace<'p>> {
        match self.token() {
            Token::BraceClose => {
                self.advance()?;
                if matches!(self.token(), Token::Colon | Token::At) {
                    return Ok(Brace::Formals(self.no_formals(false)));
                }
                self.height = 0;
                Ok(Brace::Set(self.empty_set(pos)))
            }
            Token::Ellipsis => self.formals_only().map(Brace::Formals),
            Token::Id => {
                let (name_pos, text) = (self.lexer.pos(), self.lexer.text());
                self.advance()?;
                if matches!(self.token(), Token::Question | Token::Comma | Token::BraceClose) {
                    return self.formals_from(Some((name_pos, text))).map(Brace::Formals);
                }
                let name = self.intern(text);
                self.set(pos, false, Some((name_pos, name))).map(Brace::Set)
            }
            _ => self.set(pos, false, None).map(Brace::Set),
        }
    }

    /// After the `{` of formal arguments.
    fn formals_only(&mut self) -> Result<FormalSet> {
        match self.token() {
            Token::BraceClose => {
                self.advance()?;
                Ok(self.no_formals(false))
            }
            Token::Ellipsis => {
                self.advance()?;
                self.expect(Token::BraceClose)?;
                Ok(self.no_formals(true))
            }
            Token::Id => self.formals_from(None),
            _ => self.unexpected(&[Token::Id, Token::Ellipsis, Token::BraceClose]),
        }
    }

    fn no_formals(&self, ellipsis: bool) -> FormalSet {
        FormalSet { start: self.formals.len(), ellipsis, height: 0 }
    }

    /// Formal arguments from the first one on, whose name may have been read already.
    fn formals_from(&mut self, mut read: Option<(Pos, &[u8])>) -> Result<FormalSet> {
        let start = self.formals.len();
        let mut height = 0;
        loop {
            let (pos, text) = match read.take() {
                Some(first) => first,
                None => {
                    let first = (self.lexer.pos(), self.lexer.text());
                    self.advance()?;
                    first
                }
            };
            let mut default = None;
            if self.token() == Token::Question {
                self.advance()?;
                default = Some(self.expr()?);
                height = height.max(self.height);
            }
            // After the default value, as in C++ Nix.
            let name = self.intern(text);
            self.formals.push(Formal { pos, name, default });
            let mut ellipsis = false;
            match self.token() {
                Token::Comma => {
                    self.advance()?;
                    match self.token() {
                        Token::Id => continue,
                        Token::Ellipsis => {
                            self.advance()?;
                            self.require(Token::BraceClose)?;
                            ellipsis = true;
                        }
                        Token::BraceClose => {}
                        _ => return self.unexpected(&[Token::Id, Token::Ellipsis, Token::BraceClose]),
                    }
                }
                Token::BraceClose => {}
                _ => return self.unexpected(&[Token::BraceClose, Token::Comma]),
            }
            self.advance()?;
            return Ok(FormalSet { start, ellipsis, height });
        }
    }

    fn let_in(&mut self, pos: Pos) -> Result<Node<'p>> {
        let frame = self.bindings.open();
        self.binds(frame, None)?;
        let height = self.height;
        if self.token() != Token::In {
            return self.unexpected(&[Token::In, Token::Inherit]);
        }
        let bindings = self.close_set(frame, NO_POS, false);
        self.advance()?;
        let body = self.expr()?;
        if !bindings.dynamic.borrow().is_empty() {
            return fail(pos, "dynamic attributes not allowed in let");
        }
        self.grow(height.max(self.height), 1)?;
        Ok(self.node(Expr::Let { bindings, body }))
    }

    /// `let { … }`, from its brace on.
    fn let_set(&mut self, pos: Pos) -> Result<Node<'p>> {
        self.require(Token::BraceOpen)?;
        self.advance()?;
        let subject = self.set(pos, true, None)?;
        self.grow(self.height, 1)?;
        let path = self.arena.alloc_slice_copy(&[AttrName::Static(sym::BODY)]);
        Ok(self.node(Expr::Select { pos: NO_POS, subject, path, default: None }))
    }

    fn empty_set(&self, pos: Pos) -> Node<'p> {
        self.node(Expr::Attrs(self.new_set(pos)))
    }

    /// The bindings of a set as far as its `}`; the name that the first one starts with may have been read already.
    fn set(&mut self, pos: Pos, recursive: bool, first: Option<(Pos, Symbol)>) -> Result<Node<'p>> {
        let frame = self.bindings.open();
        self.binds(frame, first)?;
        if self.token() != Token::BraceClose {
            let expected: &[Token] = if recursive { &[Token::Inherit, Token::BraceClose] } else { &[Token::Inherit] };
            return self.unexpected(expected);
        }
        let set: &Attrs<'p> = self.close_set(frame, pos, recursive);
        self.advance()?;
        Ok(self.node(Expr::Attrs(set)))
    }

    // ---- operators

    /// `expr_pipe_from`, `expr_pipe_into`, `expr_op`.
    fn operators(&mut self, first: Option<(Pos, Node<'p>)>) -> Result<Node<'p>> {
        let mut left = self.binary(level::ANY, first)?;
        match self.token() {
            Token::PipeInto => {
                while self.token() == Token::PipeInto {
                    let pos = self.lexer.pos();
                    let height = self.height;
                    self.advance()?;
                    let function = self.binary(level::ANY, None)?;
                    left = self.make_call(pos, function, left, height.max(self.height))?;
                }
                Ok(left)
            }
            Token::PipeFrom => self.pipe_from(left),
            _ => Ok(left),
        }
    }

    fn pipe_from(&mut self, function: Node<'p>) -> Result<Node<'p>> {
        self.enter()?;
        let pos = self.lexer.pos();
        let height = self.height;
        self.advance()?;
        let mut arg = self.binary(level::ANY, None)?;
        if self.token() == Token::PipeFrom {
            arg = self.pipe_from(arg)?;
        }
        self.leave();
        self.make_call(pos, function, arg, height.max(self.height))
    }

    /// Operands with operators of at least the given level between them.
    fn binary(&mut self, lowest: u8, first: Option<(Pos, Node<'p>)>) -> Result<Node<'p>> {
        let start = first.map_or_else(|| self.lexer.pos(), |(pos, _)| pos);
        let mut left = self.unary(first)?;
        let mut forbidden = 0;
        loop {
            let operator = self.token();
            let (level, grouping) = operator.binary();
            if level < lowest {
                return Ok(left);
            }
            if level == forbidden {
                return self.unexpected(&[]);
            }
            forbidden = if grouping == Grouping::None { level } else { 0 };
            left = self.operation(start, left, operator, level, grouping)?;
        }
    }

    /// One binary operator, which is the current token, and its right side.
    fn operation(
        &mut self,
        start: Pos,
        left: Node<'p>,
        operator: Token,
        level: u8,
        grouping: Grouping,
    ) -> Result<Node<'p>> {
        let pos = self.lexer.pos();
        let height = self.height;
        self.advance()?;
        if operator == Token::Question {
            let path = self.attr_path()?;
            self.grow(height.max(self.height), 1)?;
            return Ok(self.node(Expr::HasAttr { subject: left, path }));
        }
        let right_start = self.lexer.pos();
        self.enter()?;
        let right = self.binary(if grouping == Grouping::Right { level } else { level + 1 }, None)?;
        self.leave();
        let levels = if matches!(operator, Token::LessEq | Token::GreaterEq) { 2 } else { 1 };
        self.grow(height.max(self.height), levels)?;
        let operation = |pos, op| self.node(Expr::Binary { pos, op, left, right });
        let call = |name, args: [Node<'p>; 2]| self.call(pos, self.made_up(name), &args);
        Ok(match operator {
            Token::EqEq => operation(NO_POS, BinaryOp::Eq),
            Token::NotEq => operation(NO_POS, BinaryOp::NotEq),
            Token::AndAnd => operation(pos, BinaryOp::And),
            Token::OrOr => operation(pos, BinaryOp::Or),
            Token::Impl => operation(pos, BinaryOp::Impl),
            Token::Update => operation(pos, BinaryOp::Update),
            Token::Concat => operation(pos, BinaryOp::ConcatLists),
            Token::Less => call(sym::LESS_THAN, [left, right]),
            Token::Greater => call(sym::LESS_THAN, [right, left]),
            Token::LessEq => self.node(Expr::Not(call(sym::LESS_THAN, [right, left]))),
            Token::GreaterEq => self.node(Expr::Not(call(sym::LESS_THAN, [left, right]))),
            Token::Minus => call(sym::SUB, [left, right]),
            Token::Star => call(sym::MUL, [left, right]),
            Token::Slash => call(sym::DIV, [left, right]),
            // `+`: the only one left
            _ => {
                let parts = self.arena.alloc_slice_copy(&[(start, left), (right_start, right)]);
                self.node(Expr::ConcatStrings { pos, force_string: false, parts })
            }
        })
    }

    fn unary(&mut self, first: Option<(Pos, Node<'p>)>) -> Result<Node<'p>> {
        if first.is_some() {
            return self.application(first);
        }
        match self.token() {
            Token::Bang => {
                self.enter()?;
                self.advance()?;
                let operand = self.binary(level::ABOVE_NOT, None)?;
                self.leave();
                self.grow(self.height, 1)?;
                Ok(self.node(Expr::Not(operand)))
            }
            Token::Minus => {
                self.enter()?;
                let pos = self.lexer.pos();
                self.advance()?;
                let operand = self.unary(None)?;
                self.leave();
                self.grow(self.height, 1)?;
                let zero = self.node(Expr::Int(0));
                Ok(self.call(pos, self.made_up(sym::SUB), &[zero, operand]))
            }
            _ => self.application(None),
        }
    }

    /// `expr_app`: a function and its arguments.
    fn application(&mut self, first: Option<(Pos, Node<'p>)>) -> Result<Node<'p>> {
        let start = first.map_or_else(|| self.lexer.pos(), |(pos, _)| pos);
        let function = self.select(first)?;
        if !self.token().starts_operand() {
            return Ok(function);
        }
        let base = self.nodes.len();
        let mut height = self.height;
        let (pos, function) = match function {
            // an argument of a call in parentheses (or of `<…>`, which is a call too) is one more argument of that call
            Expr::Call { pos, function, args } => {
                self.nodes.extend_from_slice(args);
                (*pos, *function)
            }
            _ => {
                height += 1;
                (start, function)
            }
        };
        while self.token().starts_operand() {
            let arg = self.operand()?;
            height = height.max(self.height + 1);
            self.nodes.push(arg);
        }
        self.grow(height, 0)?;
        let call = self.call(pos, function, &self.nodes[base..]);
        self.nodes.truncate(base);
        Ok(call)
    }

    /// `expr_select` where it is a part of something else, which is where `f or` has another meaning than a variable would give it.
    fn operand(&mut self) -> Result<Node<'p>> {
        let node = self.select(None)?;
        if let Some((pos, end)) = self.or_call.take() {
            let text = String::from_utf8_lossy(self.lexer.slice(pos as usize, end as usize));
            self.warn(Warning::OrAsArgument { pos, text: text.replace("\r\n", "\n").replace('\r', "\n") });
        }
        Ok(node)
    }

    /// `expr_select`.
    fn select(&mut self, first: Option<(Pos, Node<'p>)>) -> Result<Node<'p>> {
        let (pos, subject) = match first {
            Some(first) => first,
            None => (self.lexer.pos(), self.simple()?),
        };
        match self.token() {
            Token::Dot => {
                let mut height = self.height;
                self.advance()?;
                let path = self.attr_path()?;
                height = height.max(self.height);
                let mut default = None;
                if self.token() == Token::OrKeyword {
                    self.advance()?;
                    self.enter()?;
                    default = Some(self.operand()?);
                    self.leave();
                    height = height.max(self.height);
                }
                self.grow(height, 1)?;
                self.or_call = None;
                Ok(self.node(Expr::Select { pos, subject, path, default }))
            }
            // `f or` calls `f` with the variable `or`: there was a function of that name before there was the keyword
            Token::OrKeyword => {
                self.or_call = Some((pos, self.lexer.pos() + self.lexer.text().len() as Pos));
                self.advance()?;
                self.grow(self.height, 1)?;
                let or = self.node(Expr::Var { pos, name: sym::OR });
                Ok(self.call(pos, subject, &[or]))
            }
            _ => {
                self.or_call = None;
                Ok(subject)
            }
        }
    }

    /// `attrpath`; sets the height to that of its highest dynamic name.
    fn attr_path(&mut self) -> Result<&'p [AttrName<'p>]> {
        let base = self.names.len();
        self.attr_names(None)?;
        let path = self.arena.alloc_slice_copy(&self.names[base..]);
        self.names.truncate(base);
        Ok(path)
    }

    // ---- operands

    fn variable(&mut self, pos: Pos, text: &[u8]) -> Node<'p> {
        self.height = 0;
        // no symbol of C++ Nix's
        if text == b"__curPos" {
            return self.node(Expr::CurPos(pos));
        }
        let name = self.intern(text);
        self.node(Expr::Var { pos, name })
    }

    /// `expr_simple`.
    fn simple(&mut self) -> Result<Node<'p>> {
        let pos = self.lexer.pos();
        self.height = 0;
        let node = match self.token() {
            Token::Id => self.variable(pos, self.lexer.text()),
            Token::Int => self.node(Expr::Int(self.lexer.int)),
            Token::Float => self.node(Expr::Float(self.lexer.float)),
            Token::Uri => {
                let text = self.lexer.text();
                if self.options.lints.url_literals != Lint::Ignore {
                    self.lint(self.options.lints.url_literals, "lint-url-literals", pos, |fatal| {
                        let judgement = if fatal { "disallowed" } else { "discouraged" };
                        let text = String::from_utf8_lossy(text);
                        format!("URL literals are {judgement}. Consider using a string literal \"{text}\" instead")
                    })?;
                }
                self.node(Expr::Str(self.arena.alloc_slice_copy(text)))
            }
            Token::SearchPath => {
                let text = self.lexer.text();
                let name = self.node(Expr::Str(self.arena.alloc_slice_copy(&text[1..text.len() - 1])));
                self.height = 1;
                self.call(pos, self.made_up(sym::FIND_FILE), &[self.made_up(sym::NIX_PATH), name])
            }
            Token::Quote => return self.string_expr(),
            Token::IndStringOpen => return self.indented_string(),
            Token::Path | Token::HomePath => return self.path(),
            Token::BracketOpen => return self.list(),
            Token::ParenOpen => {
                self.advance()?;
                let node = self.expr()?;
                self.require(Token::ParenClose)?;
                node
            }
            Token::BraceOpen => {
                self.advance()?;
                if self.token() == Token::BraceClose {
                    self.empty_set(pos)
                } else {
                    return self.set(pos, false, None);
                }
            }
            Token::Rec => {
                self.advance()?;
                self.expect(Token::BraceOpen)?;
                return self.set(pos, true, None);
            }
            Token::Let => {
                self.advance()?;
                return self.let_set(pos);
            }
            _ => return self.unexpected(&[]),
        };
        self.advance()?;
        Ok(node)
    }

    fn list(&mut self) -> Result<Node<'p>> {
        self.enter()?;
        self.advance()?;
        let base = self.nodes.len();
        let mut height = 0;
        while self.token() != Token::BracketClose {
            if !self.token().starts_operand() {
                return self.unexpected(&[]);
            }
            let element = self.operand()?;
            height = height.max(self.height);
            self.nodes.push(element);
        }
        self.advance()?;
        self.leave();
        self.grow(height, 1)?;
        let list = self.node(Expr::List(self.arena.alloc_slice_copy(&self.nodes[base..])));
        self.nodes.truncate(base);
        Ok(list)
    }

    /// A path and what is interpolated into it.
    fn path(&mut self) -> Result<Node<'p>> {
        let pos = self.lexer.pos();
        let path = self.path_start()?;
        let base = self.parts.len();
        self.parts.push((pos, path));
        let mut height = 0;
        let mut interpolated = false;
        loop {
            let piece = self.lexer.path_piece()?;
            // text directly after the beginning needs an interpolation after it
            if self.parts.len() > base + 1 && !interpolated && !matches!(piece, PathPiece::Interpolation) {
                return self.unexpected(&[Token::DollarCurly]);
            }
            let pos = self.lexer.pos();
            match piece {
                PathPiece::Text { start, end } => {
                    let text = self.arena.alloc_slice_copy(self.lexer.slice(start, end));
                    let text = self.node(Expr::Str(text));
                    self.parts.push((pos, text));
                }
                PathPiece::Interpolation => {
                    interpolated = true;
                    self.advance()?;
                    let node = self.expr()?;
                    height = height.max(self.height);
                    self.require(Token::BraceClose)?;
                    self.parts.push((pos, node));
                }
                PathPiece::End => break,
            }
        }
        self.lexer.advance_after_path()?;
        self.height = 0;
        let node = if self.parts.len() == base + 1 {
            path
        } else {
            self.grow(height, 1)?;
            let parts = self.arena.alloc_slice_copy(&self.parts[base..]);
            self.node(Expr::ConcatStrings { pos, force_string: false, parts })
        };
        self.parts.truncate(base);
        Ok(node)
    }

    /// The path literal that is the current token.
    fn path_start(&mut self) -> Result<Node<'p>> {
        let literal = self.lexer.text();
        let lints = self.options.lints;
        let not_portable = |kind: &str| {
            let pos = self.lexer.pos();
            self.lint(lints.absolute_path_literals, "lint-absolute-path-literals", pos, |_| {
                let literal = String::from_utf8_lossy(literal);
                format!(
                    "{kind} path literals are not portable. Consider replacing path literal '{literal}' by a string, \
                     relative path, or parameter"
                )
            })
        };
        if self.token() == Token::HomePath {
            if self.options.pure {
                let literal = String::from_utf8_lossy(literal);
                return fail(NO_POS, format!("the path '{literal}' can not be resolved in pure mode"));
            }
            if lints.absolute_path_literals != Lint::Ignore {
                not_portable("home")?;
            }
            let Some(home) = self.options.home else {
                return fail(NO_POS, "cannot determine user's home directory");
            };
            self.buffer.clear();
            self.buffer.extend_from_slice(home);
            self.buffer.extend_from_slice(&literal[1..]);
        } else {
            if literal[0] == b'/' {
                if lints.absolute_path_literals != Lint::Ignore {
                    not_portable("absolute")?;
                }
            } else if literal[0] != b'.' && lints.short_path_literals != Lint::Ignore {
                let pos = self.lexer.pos();
                self.lint(lints.short_path_literals, "lint-short-path-literals", pos, |_| {
                    let literal = String::from_utf8_lossy(literal);
                    format!("relative path literal '{literal}' should be prefixed with '.' for clarity: './{literal}'")
                })?;
            }
            self.buffer.clear();
            if literal[0] != b'/' {
                push_segments(&mut self.buffer, self.options.base_path);
            }
            push_segments(&mut self.buffer, literal);
            if self.buffer.is_empty() {
                self.buffer.push(b'/');
            }
            if literal.len() > 1 && literal.ends_with(b"/") {
                self.buffer.push(b'/');
            }
        }
        Ok(self.node(Expr::Path(self.arena.alloc_slice_copy(&self.buffer))))
    }
}

/// Appends a path's segments to a normalised absolute path (empty for `/`), following `.` and `..`.
fn push_segments(path: &mut Vec<u8>, segments: &[u8]) {
    for segment in segments.split(|&b| b == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => path.truncate(memchr::memrchr(b'/', path).unwrap_or(0)),
            _ => {
                path.push(b'/');
                path.extend_from_slice(segment);
            }
        }
    }
}
