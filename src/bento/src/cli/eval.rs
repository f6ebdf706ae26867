//! `bento eval`: the evaluator's own front, with the options and the output of `nix-instantiate`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bento_eval::flake::LoadOptions;
use bento_eval::fs::{bytes_of, path_of};
use bento_eval::text::strings::canon_path;
use bento_eval::value::{Attrs, Pos, Value};
use bento_eval::{Aborted, Coerce, Error, Evaluator, Origin, RenderOptions, SearchPath, Settings};

use clap::{ArgAction, Args};

use super::fetching::{FetchArgs, LockArgs};
use super::terminal::{Terminal, say};
use crate::nix_conf::{self, is_pseudo_url, is_true};
use crate::store::{NixStore, store_dir};

/// Evaluate Nix code and print its value, as `nix-instantiate --eval` does
#[derive(Args)]
#[command(args_override_self = true)]
pub(super) struct Eval {
    /// Files (a directory stands for its default.nix, <NAME> for a file on the search path, - for standard input), or
    /// expressions with --expr [default: ./default.nix]
    #[arg(value_name = "FILE|EXPR")]
    inputs: Vec<OsString>,

    /// The arguments are expressions, not files
    #[arg(short = 'E', long)]
    expr: bool,

    /// Evaluate a flake's outputs, or of REF#PATH what PATH leads to in them
    #[arg(long, value_name = "REF", conflicts_with_all = ["expr", "inputs"])]
    flake: Option<String>,

    /// Select what PATH leads to; may be given several times
    #[arg(short = 'A', long = "attr", value_name = "PATH")]
    attrs: Vec<String>,

    /// Pass the value of EXPR as argument NAME to functions
    #[arg(long, num_args = 2, value_names = ["NAME", "EXPR"], allow_hyphen_values = true)]
    arg: Vec<String>,

    /// Pass TEXT as argument NAME to functions
    #[arg(long, num_args = 2, value_names = ["NAME", "TEXT"], allow_hyphen_values = true)]
    argstr: Vec<String>,

    /// Pass the contents of FILE as argument NAME to functions
    #[arg(long, num_args = 2, value_names = ["NAME", "FILE"])]
    arg_from_file: Vec<String>,

    /// Pass what is read from standard input as argument NAME to functions
    #[arg(long, value_name = "NAME")]
    arg_from_stdin: Option<String>,

    /// Look <NAME> up here first: NAME=PATH, or a directory; may be given several times
    #[arg(short = 'I', long = "include", value_name = "ENTRY")]
    include: Vec<String>,

    /// Evaluate; what happens anyway
    #[arg(long, visible_alias = "eval-only")]
    eval: bool,

    /// Evaluate everything in the value
    #[arg(long)]
    strict: bool,

    /// Print the value as JSON
    #[arg(long, conflicts_with_all = ["raw", "xml"])]
    json: bool,

    /// Print the string that the value is, with nothing around it
    #[arg(long, conflicts_with = "xml")]
    raw: bool,

    /// Print the value as XML
    #[arg(long)]
    xml: bool,

    /// Leave the places of definitions out of XML
    #[arg(long)]
    no_location: bool,

    /// Only parse, and print the syntax
    #[arg(long, visible_alias = "parse-only")]
    parse: bool,

    /// Print the paths of the derivations that the value stands for
    #[arg(long)]
    drv_path: bool,

    /// As --drv-path, and write the derivations and all that they need as files into DIR
    #[arg(long, value_name = "DIR")]
    dump_drvs: Option<PathBuf>,

    /// As --drv-path, and put the derivations and all that they need into the Nix store
    #[arg(long)]
    add_to_store: bool,

    /// As --add-to-store, and keep the derivations from the garbage collector: as long as the link LINK is there, which is
    /// made, for the first one, LINK-2 for the second, and so on
    #[arg(long, value_name = "LINK")]
    add_root: Option<PathBuf>,

    /// Let nothing be built for what the evaluation reads (import from derivation)
    #[arg(long, overrides_with = "allow_import_from_derivation")]
    no_allow_import_from_derivation: bool,

    /// Undo --no-allow-import-from-derivation
    #[arg(long)]
    allow_import_from_derivation: bool,

    /// Accepted, as --add-to-store and what has to be built first is all that is written to the store in either mode
    #[arg(long)]
    read_write_mode: bool,

    /// Show the whole trace of an error
    #[arg(long, overrides_with = "no_show_trace")]
    show_trace: bool,

    /// Show the start of an error's trace only
    #[arg(long)]
    no_show_trace: bool,

    /// Allow nothing that depends on more than the code and what it locks by hash
    #[arg(long, overrides_with = "impure")]
    pure_eval: bool,

    /// Undo --pure-eval
    #[arg(long, visible_alias = "no-pure-eval")]
    impure: bool,

    /// Allow only files on the search path to be read
    #[arg(long, overrides_with = "no_restrict_eval")]
    restrict_eval: bool,

    /// Undo --restrict-eval
    #[arg(long)]
    no_restrict_eval: bool,

    /// Let builtins.traceVerbose speak
    #[arg(long)]
    trace_verbose: bool,

    /// What builtins.currentSystem is
    #[arg(long, visible_alias = "eval-system", value_name = "SYSTEM")]
    system: Option<String>,

    /// How deep calls may be nested
    #[arg(long, value_name = "DEPTH")]
    max_call_depth: Option<String>,

    /// Allow these experimental features of the language only
    #[arg(long, value_name = "FEATURES")]
    experimental_features: Vec<String>,

    /// Allow these experimental features of the language too
    #[arg(long, value_name = "FEATURES")]
    extra_experimental_features: Vec<String>,

    /// What to do about absolute path literals
    #[arg(long, value_name = "ignore|warn|fatal")]
    lint_absolute_path_literals: Option<String>,

    /// What to do about path literals without "./"
    #[arg(long, value_name = "ignore|warn|fatal")]
    lint_short_path_literals: Option<String>,

    /// What to do about URL literals
    #[arg(long, value_name = "ignore|warn|fatal")]
    lint_url_literals: Option<String>,

    #[command(flatten)]
    fetch: FetchArgs,

    #[command(flatten)]
    lock: LockArgs,

    /// Give one of Nix's settings a value; may be given several times
    #[arg(long = "option", num_args = 2, value_names = ["NAME", "VALUE"], action = ArgAction::Append)]
    options: Vec<String>,
}

/// Where the text of an input comes from.
#[derive(Clone)]
enum Input {
    /// A file or a directory, as it was named.
    File(Vec<u8>),
    /// What `<NAME>` is on the search path.
    SearchPath(Vec<u8>),
    /// A tarball.
    Url(String),
    Expr(Vec<u8>),
    Stdin(Vec<u8>),
    Flake(String),
}

/// An argument for functions.
enum Argument {
    Expr(String),
    Text(Vec<u8>),
}

/// Everything that an evaluation needs besides its settings.
struct Task {
    inputs: Vec<Input>,
    attrs: Vec<String>,
    arguments: BTreeMap<String, Argument>,
    base_dir: Vec<u8>,
    load: LoadOptions,
    output: Output,
    strict: bool,
    render: RenderOptions,
}

/// What is printed.
enum Output {
    Value,
    Json,
    Raw,
    Xml { location: bool },
    Syntax,
    DrvPath(Instantiation),
}

/// What is done with derivations besides printing their paths.
#[derive(Default)]
struct Instantiation {
    /// Where they are written to as files.
    dump: Option<PathBuf>,
    /// Whether they are put into the store.
    add: bool,
    /// What is linked to the first of them.
    root: Option<PathBuf>,
    /// How many were linked to.
    roots: Cell<usize>,
}

impl Eval {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (settings, show_trace) = self.settings()?;
        let store = NixStore::new(settings.store.clone());
        let terminal = Terminal::new(store.clone());
        let color = terminal.color;
        let task = self.task(RenderOptions { color, show_trace, ..RenderOptions::default() })?;
        let code = bento_eval::evaluate(settings, terminal, move |evaluator| -> u8 {
            let failed = match run(evaluator, &store, &task) {
                Ok(()) => None,
                Err(Failure::Eval(error)) => Some(evaluator.render_error(&error, &task.render)),
                Err(Failure::Other(error)) => Some(format!("error: {error:#}")),
            };
            if let Some(message) = &failed {
                say(message);
            }
            store.close();
            // The values are the operating system's to free, all at once.
            std::process::exit(i32::from(failed.is_some()))
        });
        match code {
            Ok(code) => Ok(ExitCode::from(code)),
            Err(error @ Aborted::Memory { .. }) => {
                bail!(
                    "{error}, which is all that one can have: evaluate its parts by themselves, each with a -A of its own"
                )
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The evaluator's settings, and whether whole traces are shown.
    fn settings(&self) -> Result<(Settings, bool)> {
        let base_dir = std::env::current_dir().context("cannot tell the working directory")?;
        let machine = nix_conf::settings();
        let abort_on_warn = std::env::var("NIX_ABORT_ON_WARN").is_ok_and(|value| is_true(&value) == Some(true));
        let mut settings = Settings {
            store: store_dir()?,
            home: std::env::var_os("HOME").map(OsString::into_vec),
            pure: (machine.pure || self.pure_eval) && !self.impure,
            restricted: (machine.restricted || self.restrict_eval) && !self.no_restrict_eval,
            trace_verbose: machine.trace_verbose || self.trace_verbose,
            abort_on_warn: machine.abort_on_warn || abort_on_warn,
            ..machine
        };
        let mut show_trace = (nix_conf::shows_trace() || self.show_trace) && !self.no_show_trace;
        let mut nix_path = nix_conf::search_path();
        let mut option = |settings: &mut Settings, name: &str, value: &str| -> Result<()> {
            let entries = || value.split_whitespace().map(str::to_owned);
            match name {
                "show-trace" => {
                    show_trace = is_true(value)
                        .with_context(|| format!("Boolean setting '{name}' has invalid value '{value}'"))?;
                }
                "nix-path" => nix_path = entries().collect(),
                "extra-nix-path" => nix_path.extend(entries()),
                _ if nix_conf::set(settings, name, value)? => {}
                _ => say(&format!("warning: unknown setting '{name}'")),
            }
            Ok(())
        };
        for pair in self.options.chunks_exact(2) {
            option(&mut settings, &pair[0], &pair[1])?;
        }
        for features in &self.experimental_features {
            option(&mut settings, "experimental-features", features)?;
        }
        for features in &self.extra_experimental_features {
            option(&mut settings, "extra-experimental-features", features)?;
        }
        if self.no_allow_import_from_derivation || self.allow_import_from_derivation {
            settings.allow_import_from_derivation = self.allow_import_from_derivation;
        }
        for (name, value) in [
            ("system", &self.system),
            ("max-call-depth", &self.max_call_depth),
            ("lint-absolute-path-literals", &self.lint_absolute_path_literals),
            ("lint-short-path-literals", &self.lint_short_path_literals),
            ("lint-url-literals", &self.lint_url_literals),
        ] {
            if let Some(value) = value {
                option(&mut settings, name, value)?;
            }
        }
        self.fetch.apply(&mut settings.fetch)?;
        if !settings.pure && !settings.restricted {
            nix_path.extend(nix_conf::channels());
        }
        settings.search_path = search_path(self.include.iter().chain(&nix_path), &base_dir)?;
        Ok((settings, show_trace))
    }

    fn task(self, render: RenderOptions) -> Result<Task> {
        let base_dir = std::env::current_dir().context("cannot tell the working directory")?;
        let base_dir = base_dir.into_os_string().into_vec();
        let output = if self.parse {
            Output::Syntax
        } else if self.drv_path || self.dump_drvs.is_some() || self.add_to_store || self.add_root.is_some() {
            let add = self.add_to_store || self.add_root.is_some();
            let root = self.add_root.map(|root| Path::new(OsStr::from_bytes(&base_dir)).join(root));
            Output::DrvPath(Instantiation { dump: self.dump_drvs, add, root, roots: Cell::new(0) })
        } else if self.json {
            Output::Json
        } else if self.raw {
            Output::Raw
        } else if self.xml {
            Output::Xml { location: !self.no_location }
        } else {
            Output::Value
        };
        let mut arguments = BTreeMap::new();
        for pair in self.arg.chunks_exact(2) {
            arguments.insert(pair[0].clone(), Argument::Expr(pair[1].clone()));
        }
        for pair in self.argstr.chunks_exact(2) {
            arguments.insert(pair[0].clone(), Argument::Text(pair[1].clone().into_bytes()));
        }
        for pair in self.arg_from_file.chunks_exact(2) {
            let text = std::fs::read(&pair[1]).with_context(|| format!("cannot read '{}'", pair[1]))?;
            arguments.insert(pair[0].clone(), Argument::Text(text));
        }
        if let Some(name) = self.arg_from_stdin {
            arguments.insert(name, Argument::Text(read_stdin()?));
        }
        let load = self.lock.options()?;
        let mut inputs = Vec::new();
        if let Some(reference) = self.flake {
            inputs.push(Input::Flake(reference));
        }
        for input in self.inputs {
            inputs.push(input_of(input, self.expr)?);
        }
        if inputs.is_empty() {
            if self.expr {
                bail!("--expr needs an expression");
            }
            inputs.push(Input::File(b"./default.nix".to_vec()));
        }
        let attrs = if self.attrs.is_empty() { vec![String::new()] } else { self.attrs };
        Ok(Task { inputs, attrs, arguments, base_dir, load, output, strict: self.strict, render })
    }
}

/// What an argument stands for.
fn input_of(argument: OsString, is_expr: bool) -> Result<Input> {
    let bytes = argument.into_vec();
    if bytes == b"-" {
        return Ok(Input::Stdin(read_stdin()?));
    }
    if is_expr {
        return Ok(Input::Expr(bytes));
    }
    if let Some(name) = bytes.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">")) {
        return Ok(Input::SearchPath(name.to_vec()));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) if is_pseudo_url(&text) => Input::Url(text),
        Ok(text) => Input::File(text.into_bytes()),
        Err(error) => Input::File(error.into_bytes()),
    })
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).context("cannot read standard input")?;
    Ok(text)
}

/// The search path of these entries. Relative paths start from `base_dir`.
fn search_path<'e>(entries: impl Iterator<Item = &'e String>, base_dir: &Path) -> Result<SearchPath> {
    entries
        .map(|entry| {
            let (prefix, value) = entry.split_once('=').unwrap_or(("", entry));
            let value = if is_pseudo_url(value) || value.starts_with("flake:") {
                value.to_owned()
            } else {
                let path = base_dir.join(value).into_os_string().into_string();
                path.ok().with_context(|| format!("the search path's entry '{entry}' is not valid UTF-8"))?
            };
            Ok((prefix.to_owned(), value))
        })
        .collect()
}

/// Why an evaluation ended without a result.
enum Failure {
    Eval(Box<Error>),
    Other(anyhow::Error),
}

impl From<Box<Error>> for Failure {
    fn from(error: Box<Error>) -> Self {
        Failure::Eval(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Other(error)
    }
}

/// Evaluates and prints everything that was asked for.
fn run(evaluator: &Evaluator<'_>, store: &NixStore, task: &Task) -> Result<(), Failure> {
    if matches!(task.output, Output::Syntax) {
        for input in &task.inputs {
            let mut text = show_syntax(evaluator, task, input)?;
            text.push(b'\n');
            print(&text)?;
        }
        return Ok(());
    }
    let auto_args = auto_args(evaluator, task)?;
    for input in &task.inputs {
        let (root, prefix) = evaluate(evaluator, task, input)?;
        let root = evaluator.select_path(root, &prefix, auto_args)?;
        for path in &task.attrs {
            let value = evaluator.select_path(root, path, auto_args)?;
            print(&show(evaluator, store, task, value, auto_args)?)?;
        }
    }
    Ok(())
}

/// Prints a part of the result. Nobody wanting more of it is no error, but there is no need to go on then.
fn print(text: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::Other(anyhow::Error::new(error).context("cannot print the result"))),
    }
}

fn auto_args<'a>(evaluator: &Evaluator<'a>, task: &Task) -> Result<Attrs<'a>, Failure> {
    let mut entries = Vec::with_capacity(task.arguments.len());
    for (name, argument) in &task.arguments {
        let value = match argument {
            Argument::Expr(text) => evaluator.delay_string(text.as_bytes(), &task.base_dir)?,
            Argument::Text(text) => evaluator.heap.string(text),
        };
        entries.push((evaluator.symbols.intern(name.as_bytes()), Pos::NONE, value));
    }
    Ok(evaluator.heap.attrs(&mut entries))
}

/// An input's value, and the selection path that the input itself has.
fn evaluate<'a>(evaluator: &Evaluator<'a>, task: &Task, input: &Input) -> Result<(Value<'a>, String), Failure> {
    let value = match input {
        Input::File(name) => evaluator.eval_file(&absolute(task, name))?,
        Input::SearchPath(name) => evaluator.eval_file(&evaluator.find_file_in_search_path(name)?)?,
        Input::Url(url) => {
            let fetch = evaluator.eval_string(b"builtins.fetchTarball", &task.base_dir)?;
            let address = match url.strip_prefix("channel:") {
                Some(channel) => format!("https://channels.nixos.org/{channel}/nixexprs.tar.xz"),
                None => url.clone(),
            };
            let fetched = evaluator.call(fetch, &[evaluator.heap.string(address.as_bytes())], Pos::NONE)?;
            let (path, _) = evaluator.to_string(fetched, Coerce::PLAIN, Pos::NONE, "while fetching the given file")?;
            evaluator.eval_file(&path)?
        }
        Input::Expr(text) => evaluator.eval_string(text, &task.base_dir)?,
        Input::Stdin(text) => evaluator.eval_stdin(text, &task.base_dir)?,
        Input::Flake(reference) => {
            return Ok(evaluator.flake_outputs_with(reference, path_of(&task.base_dir), &task.load)?);
        }
    };
    Ok((value, String::new()))
}

/// The absolute path of a file that was named on the command line.
fn absolute(task: &Task, name: &[u8]) -> Vec<u8> {
    canon_path(bytes_of(&path_of(&task.base_dir).join(path_of(name))))
}

/// An input's syntax.
fn show_syntax(evaluator: &Evaluator<'_>, task: &Task, input: &Input) -> Result<Vec<u8>, Failure> {
    let name = match input {
        Input::Expr(text) => {
            return Ok(evaluator.show_syntax(text, Origin::String(text.as_slice().into()), &task.base_dir)?);
        }
        Input::Stdin(text) => {
            return Ok(evaluator.show_syntax(text, Origin::Stdin(text.as_slice().into()), &task.base_dir)?);
        }
        Input::File(name) => absolute(task, name),
        Input::SearchPath(name) => evaluator.find_file_in_search_path(name)?,
        Input::Url(text) | Input::Flake(text) => {
            return Err(Failure::Other(anyhow!("--parse takes files and expressions, not '{text}'")));
        }
    };
    let shown = String::from_utf8_lossy(&name).into_owned();
    let mut path = path_of(&name).canonicalize().with_context(|| format!("cannot find '{shown}'"))?;
    if path.is_dir() {
        path.push("default.nix");
    }
    let text = std::fs::read(&path).with_context(|| format!("cannot read '{shown}'"))?;
    let directory = bytes_of(path.parent().unwrap_or(Path::new("/")));
    Ok(evaluator.show_syntax(&text, Origin::File(bytes_of(&path).into()), directory)?)
}

/// What is printed for one value.
fn show<'a>(
    evaluator: &Evaluator<'a>,
    store: &NixStore,
    task: &Task,
    value: Value<'a>,
    auto_args: Attrs<'a>,
) -> Result<Vec<u8>, Failure> {
    if let Output::DrvPath(instantiation) = &task.output {
        return instantiate(evaluator, store, instantiation, value, auto_args);
    }
    // As Nix does it: a function that needs no arguments is only called if some were given.
    let value = if auto_args.is_empty() { value } else { evaluator.auto_call(auto_args, value)? };
    let mut text = match task.output {
        Output::Json => evaluator.print_json(value, task.strict)?,
        Output::Raw => {
            let what = "while generating the nix-instantiate output";
            return Ok(evaluator.to_string(value, Coerce::COPY, Pos::NONE, what)?.0);
        }
        Output::Xml { location } => return Ok(evaluator.print_xml(value, task.strict, location)?),
        _ => {
            let value = if task.strict { evaluator.force_deep(value)? } else { value };
            evaluator.print(value, task.strict)?
        }
    };
    text.push(b'\n');
    Ok(text)
}

/// The paths of the derivations that a value stands for, once all that was asked for is done with them.
fn instantiate<'a>(
    evaluator: &Evaluator<'a>,
    store: &NixStore,
    instantiation: &Instantiation,
    value: Value<'a>,
    auto_args: Attrs<'a>,
) -> Result<Vec<u8>, Failure> {
    let Instantiation { dump, add, root, roots } = instantiation;
    let found = evaluator.instantiables(value, auto_args)?;
    if let Some(dir) = dump {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory '{}'", dir.display()))?;
        for derivation in &found {
            evaluator.dump_derivations(&derivation.drv_path, dir)?;
        }
    }
    let parse = |path: &String| store.dir().parse(path).context("a derivation has a path that is none");
    if *add {
        let drvs = found.iter().map(|derivation| parse(&derivation.drv_path)).collect::<Result<Vec<_>>>()?;
        store.add(evaluator, &drvs)?;
    }
    let mut text = Vec::new();
    for derivation in found {
        match root {
            None => text.extend_from_slice(derivation.drv_path.as_bytes()),
            Some(root) => {
                roots.set(roots.get() + 1);
                let mut link = root.clone().into_os_string();
                if roots.get() > 1 {
                    link.push(format!("-{}", roots.get()));
                }
                store.add_root(&parse(&derivation.drv_path)?, Path::new(&link))?;
                text.extend_from_slice(link.as_bytes());
            }
        }
        if derivation.output != "out" {
            text.push(b'!');
            text.extend_from_slice(derivation.output.as_bytes());
        }
        text.push(b'\n');
    }
    Ok(text)
}
