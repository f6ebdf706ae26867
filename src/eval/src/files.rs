//! Files: parsing them, importing them, finding them.

use crate::error::{Error, ErrorKind, Result};
use crate::eval::{Evaluated, Evaluator};
use crate::expr::Expr;
use crate::fs::{FileSystem, FileType, FsError, Resolve, bytes_of, canonical, path_of};
use crate::position::Origin;
use crate::resolve::Resolver;
use crate::symbol::Symbol;
use crate::syntax::{self, ParseOptions, Warning};
use crate::value::{Attrs, Pos, Value};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What was read of files.
#[derive(Default)]
pub(crate) struct FileState<'a> {
    /// By the path that was imported: the file that it leads to.
    resolved: RefCell<FxHashMap<Vec<u8>, Rc<[u8]>>>,
    /// By the resolved path: the file's value.
    values: RefCell<FxHashMap<Rc<[u8]>, Value<'a>>>,
    /// What the entries of the search path lead to.
    search_path: RefCell<FxHashMap<Vec<u8>, Option<Vec<u8>>>>,
}

/// Where Nix's own files are: no directory of that name is ever read.
pub(crate) const INTERNAL: &str = "/nix-internal";

/// What `<nix/fetchurl.nix>` is: a derivation that the builder inside of Nix downloads.
const FETCHURL: &str = include_str!("internal/fetchurl.nix");

/// What `import` makes of a derivation.s file.
const DERIVATION_OF_FILE: &str = include_str!("internal/derivation-of-file.nix");

/// What `derivation` is.
const DERIVATION: &str = include_str!("internal/derivation.nix");

impl<'a> Evaluator<'a> {
    /// The error for a file that can't be read.
    #[cold]
    pub(crate) fn file_error(&self, error: &FsError, pos: Pos) -> Box<Error> {
        Error::new(ErrorKind::File, pos, error.to_string())
    }

    /// # Errors
    /// When evaluation is pure or restricted and the path may not be read.
    pub(crate) fn check_path(&self, path: &[u8]) -> Result<()> {
        if (self.settings.pure || self.settings.restricted) && !self.is_allowed(path) {
            let mode = if self.settings.pure {
                "pure evaluation mode (use '--impure' to override)"
            } else {
                "restricted mode"
            };
            let message = format!("access to absolute path '{}' is forbidden in {mode}", String::from_utf8_lossy(path));
            return Err(Error::new(ErrorKind::File, Pos::NONE, message));
        }
        Ok(())
    }

    /// The path with the links in all of its components resolved.
    ///
    /// # Errors
    /// When one of them can't be read.
    pub(crate) fn resolve_links(&self, path: &[u8], mode: Resolve) -> Result<PathBuf> {
        self.links.resolve(&*self.fs, path_of(path), mode).map_err(|error| self.file_error(&error, Pos::NONE))
    }

    /// The contents of a file, links followed.
    ///
    /// # Errors
    /// When it may not or can't be read.
    pub(crate) fn read_file(&self, path: &[u8]) -> Result<Vec<u8>> {
        self.check_path(path)?;
        let resolved = self.resolve_links(path, Resolve::Full)?;
        self.check_path(bytes_of(&resolved))?;
        self.fs.read_file(&resolved).map_err(|error| self.file_error(&error, Pos::NONE))
    }

    /// What a text of this evaluation is parsed against. Lints are not looked at.
    pub(crate) fn parse_options<'o>(&'o self, base_path: &'o [u8]) -> ParseOptions<'o> {
        ParseOptions {
            base_path,
            home: self.settings.home.as_deref(),
            pure: self.settings.pure,
            pipe_operators: self.settings.pipe_operators,
            ..ParseOptions::default()
        }
    }

    /// Parses a text and finds its variables' slots; `names`, sorted, are those of the environment that it will see.
    fn parse(&self, text: &[u8], origin: Origin, base_path: &[u8], names: &[Symbol]) -> Result<&'a Expr<'a>> {
        let base = self
            .positions
            .add(origin, text.len())
            .ok_or_else(|| Error::eval(Pos::NONE, "more than 4 GiB of Nix code were read"))?;
        let warnings = RefCell::default();
        let options =
            ParseOptions { lints: self.settings.lints, warnings: Some(&warnings), ..self.parse_options(base_path) };
        let place = |pos: syntax::ast::Pos| if pos == syntax::ast::NO_POS { Pos::NONE } else { Pos(base + pos) };
        self.with_parse_arena(|arena| {
            let parsed = syntax::parse(arena, &self.symbols, text, &options);
            for warning in warnings.take() {
                self.host.warn(&match warning {
                    Warning::Literal { pos, message } => self.render_warning(&message, place(pos)),
                    Warning::OrAsArgument { pos, text } => format!(
                        "at {}: This expression uses `or` as an identifier in a way that will change in a future Nix release.\n\
                         Wrap this entire expression in parentheses to preserve its current meaning:\n    ({text})\n\
                         Give feedback at https://github.com/NixOS/nix/pull/11121",
                        self.show_pos(place(pos)),
                    ),
                });
            }
            let node = parsed.map_err(|error| {
                let mut message = error.message;
                if let Some(previous) = error.previous {
                    message = format!("{message} at {}", self.show_pos(place(previous)));
                }
                Error::new(ErrorKind::Parse, place(error.pos), message)
            })?;
            let globals = self.globals.borrow().clone();
            let resolver = Resolver { heap: &self.heap, symbols: &self.symbols, globals: &globals, base };
            let expr =
                resolver.resolve(node, names).map_err(|undefined| self.undefined(undefined.name, undefined.pos))?;
            Ok(self.heap.arena().alloc(expr))
        })
    }

    fn parse_file(&self, path: &[u8], names: &[Symbol]) -> Result<&'a Expr<'a>> {
        let internal = path.strip_prefix(INTERNAL.as_bytes());
        let text = match internal {
            Some(b"/fetchurl.nix") => FETCHURL.as_bytes().to_vec(),
            Some(b"/derivation.nix") => DERIVATION.as_bytes().to_vec(),
            Some(b"/derivation-of-file.nix") => DERIVATION_OF_FILE.as_bytes().to_vec(),
            _ => self.read_file(path)?,
        };
        let directory = bytes_of(path_of(path).parent().unwrap_or(Path::new("/"))).to_vec();
        self.parse(&text, Origin::File(Rc::from(path)), &directory, names)
    }

    /// The file that a path stands for: links to files are followed, and a directory stands for its `default.nix`.
    fn resolve_file(&self, path: &[u8]) -> Result<Rc<[u8]>> {
        if let Some(resolved) = self.state.files.resolved.borrow().get(path) {
            return Ok(resolved.clone());
        }
        let mut current = path.to_vec();
        if !current.starts_with(INTERNAL.as_bytes()) {
            self.check_path(&current)?;
            let mut followed = 0;
            while current != b"/" {
                followed += 1;
                if followed >= 1024 {
                    let message = format!(
                        "too many symbolic links encountered while traversing the path '{}'",
                        String::from_utf8_lossy(path)
                    );
                    return Err(Error::new(ErrorKind::File, Pos::NONE, message));
                }
                // A link is followed, so that relative paths in the file start where the file really is.
                let place = self.resolve_links(&current, Resolve::Ancestors)?;
                match self.fs.lstat(&place).map_err(|error| self.file_error(&error, Pos::NONE))? {
                    Some(metadata) if metadata.file_type == FileType::Symlink => {
                        let target = self.fs.read_link(&place).map_err(|error| self.file_error(&error, Pos::NONE))?;
                        let parent = path_of(&current).parent().unwrap_or(Path::new("/")).to_owned();
                        current = bytes_of(&canonical(bytes_of(&parent.join(target)))).to_vec();
                    }
                    _ => break,
                }
            }
            let place = self.resolve_links(&current, Resolve::Full)?;
            match self.fs.lstat(&place).map_err(|error| self.file_error(&error, Pos::NONE))? {
                Some(metadata) if metadata.file_type == FileType::Directory => {
                    if current != b"/" {
                        current.push(b'/');
                    }
                    current.extend_from_slice(b"default.nix");
                }
                Some(_) => {}
                None => {
                    let message = format!("path '{}' does not exist", String::from_utf8_lossy(&current));
                    return Err(Error::new(ErrorKind::File, Pos::NONE, message));
                }
            }
        }
        let resolved: Rc<[u8]> = Rc::from(current);
        self.state.files.resolved.borrow_mut().insert(path.to_vec(), resolved.clone());
        Ok(resolved)
    }

    /// The value of a file, which is evaluated once. `path` is absolute; a directory stands for its `default.nix`.
    ///
    /// # Errors
    /// When it can't be read or parsed, or what evaluating it gives.
    pub fn eval_file(&self, path: &[u8]) -> Evaluated<'a> {
        self.force(self.file_value(&self.resolve_file(path)?)?)
    }

    /// As [`Evaluator::eval_file`], for a file that code imports: the trace of an error names it.
    pub(crate) fn import_file(&self, path: &[u8]) -> Evaluated<'a> {
        let resolved = self.resolve_file(path)?;
        self.force(self.file_value(&resolved)?).map_err(|error| {
            error.traced(Pos::NONE, format!("while evaluating the file '{}':", String::from_utf8_lossy(&resolved)))
        })
    }

    /// What stands for the value of a file until it is evaluated, the same each time.
    fn file_value(&self, resolved: &Rc<[u8]>) -> Result<Value<'a>> {
        if let Some(&known) = self.state.files.values.borrow().get(resolved) {
            return Ok(known);
        }
        let expr = self.parse_file(resolved, &[])?;
        let value = self.heap.thunk_of_expr(expr, self.heap.env(None, 0));
        self.state.files.values.borrow_mut().insert(resolved.clone(), value);
        Ok(value)
    }

    /// The value of a file that sees the attributes of `scope` as variables; it is evaluated each time.
    pub(crate) fn eval_file_in_scope(&self, path: &[u8], scope: Attrs<'a>) -> Evaluated<'a> {
        let resolved = self.resolve_file(path)?;
        let flat = self.heap.flat(scope);
        let env = self.heap.env(None, flat.len());
        for (slot, cell) in flat.values.iter().enumerate() {
            env.set(slot as u32, cell.get());
        }
        let expr = self.parse_file(&resolved, flat.symbols)?;
        self.eval(expr, env)
    }

    /// The syntax of a text or a file as `nix-instantiate --parse` prints it.
    ///
    /// # Errors
    /// When it is not Nix, or has undefined variables.
    pub fn show_syntax(&self, text: &[u8], origin: Origin, base_path: &[u8]) -> Result<Vec<u8>> {
        self.parse(text, origin, base_path, &[])?;
        let options = self.parse_options(base_path);
        let mut shown = Vec::new();
        self.with_parse_arena(|arena| {
            if let Ok(node) = syntax::parse(arena, &self.symbols, text, &options) {
                syntax::show(node, &self.symbols, &mut shown);
            }
        });
        Ok(shown)
    }

    /// The value of an expression; relative paths start from `base_path`, which is absolute.
    ///
    /// # Errors
    /// When it can't be parsed, or what evaluating it gives.
    pub fn eval_string(&self, text: &[u8], base_path: &[u8]) -> Evaluated<'a> {
        let expr = self.parse(text, Origin::String(Rc::from(text)), base_path, &[])?;
        self.eval(expr, self.heap.env(None, 0))
    }

    /// What stands for the value of an expression until it is needed.
    ///
    /// # Errors
    /// When it can't be parsed.
    pub fn delay_string(&self, text: &[u8], base_path: &[u8]) -> Result<Value<'a>> {
        let expr = self.parse(text, Origin::String(Rc::from(text)), base_path, &[])?;
        Ok(self.heap.thunk_of_expr(expr, self.heap.env(None, 0)))
    }

    /// As [`Evaluator::eval_string`], for a text that came from standard input.
    ///
    /// # Errors
    /// As there.
    pub fn eval_stdin(&self, text: &[u8], base_path: &[u8]) -> Evaluated<'a> {
        let expr = self.parse(text, Origin::Stdin(Rc::from(text)), base_path, &[])?;
        self.eval(expr, self.heap.env(None, 0))
    }

    /// The value of an expression that belongs to the evaluator.
    pub(crate) fn eval_internal(&self, name: &str) -> Evaluated<'a> {
        self.import_file(format!("{INTERNAL}/{name}").as_bytes())
    }

    /// Where an entry of the search path leads, if it exists.
    fn search_path_entry(&self, value: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(known) = self.state.files.search_path.borrow().get(value) {
            return Ok(known.clone());
        }
        let text = String::from_utf8_lossy(value);
        let is_url = text.starts_with("http://")
            || text.starts_with("https://")
            || text.starts_with("file://")
            || text.starts_with("channel:")
            || text.starts_with("git+");
        let found = if is_url || text.starts_with("flake:") {
            let what = format!("while looking up '{text}' of the search path");
            match self.fetch_search_path_entry(&text) {
                Ok(path) => Some(path),
                Err(error) => {
                    self.host.warn(&format!(
                        "Nix search path entry '{text}' cannot be downloaded, ignoring ({error}; {what})"
                    ));
                    None
                }
            }
        } else {
            let path = bytes_of(&canonical(value)).to_vec();
            let exists = self
                .fs
                .lstat(&self.resolve_links(&path, Resolve::Full)?)
                .map_err(|error| self.file_error(&error, Pos::NONE))?
                .is_some();
            exists.then_some(path)
        };
        if found.is_none() && !is_url {
            self.host.warn(&format!("Nix search path entry '{text}' does not exist, ignoring"));
        }
        self.state.files.search_path.borrow_mut().insert(value.to_vec(), found.clone());
        Ok(found)
    }

    /// Looks `name` (`a/b` for `<a/b>`) up in these entries: a prefix and what it stands for.
    ///
    /// # Errors
    /// When no entry has it.
    pub(crate) fn find_file(&self, entries: &[(Vec<u8>, Vec<u8>)], name: &[u8], pos: Pos) -> Result<Vec<u8>> {
        for (prefix, value) in entries {
            let rest = if prefix.is_empty() {
                Some(name)
            } else {
                match name.strip_prefix(prefix.as_slice()) {
                    Some(b"") => Some(&b""[..]),
                    Some(rest) => rest.strip_prefix(b"/"),
                    None => None,
                }
            };
            let Some(rest) = rest else { continue };
            let Some(mut path) = self.search_path_entry(value)? else { continue };
            if !rest.is_empty() {
                path.push(b'/');
                path.extend_from_slice(rest);
            }
            let path = canonical(&path);
            let exists = self
                .fs
                .lstat(&self.resolve_links(bytes_of(&path), Resolve::Full)?)
                .map_err(|error| self.file_error(&error, pos))?
                .is_some();
            if exists {
                return Ok(bytes_of(&path).to_vec());
            }
        }
        if name == b"nix/fetchurl.nix" {
            return Ok(format!("{INTERNAL}/fetchurl.nix").into_bytes());
        }
        let name = String::from_utf8_lossy(name);
        let message = if self.settings.pure {
            format!("cannot look up '<{name}>' in pure evaluation mode (use '--impure' to override)")
        } else {
            format!("file '{name}' was not found in the Nix search path (add it using $NIX_PATH or -I)")
        };
        Err(Error::new(ErrorKind::Throw, pos, message))
    }

    /// Looks `name` up in the search path of the settings: what `<name>` is.
    ///
    /// # Errors
    /// When no entry has it.
    pub fn find_file_in_search_path(&self, name: &[u8]) -> Result<Vec<u8>> {
        let entries: Vec<_> = self
            .settings
            .search_path
            .iter()
            .map(|(prefix, value)| (prefix.clone().into_bytes(), value.clone().into_bytes()))
            .collect();
        self.find_file(&entries, name, Pos::NONE)
    }
}
