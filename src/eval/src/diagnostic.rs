//! Errors as programs and people read them: complete without the evaluation that they come from, and rendered as Nix does.

use crate::error::{Error, ErrorKind, FrameKind};
use crate::eval::Evaluator;
use crate::files::INTERNAL;
use crate::fs::{FileSystem, path_of};
use crate::position::{Location, Origin};
use crate::value::Pos;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::rc::Rc;

/// An error with all that there is to say of it. It can be sent to other threads and processes; [`Evaluator::diagnose`]
/// makes it.
///
/// ```
/// use bento_eval::{ErrorKind, NoHost, RenderOptions, Settings, evaluate};
///
/// let diagnostic = evaluate(Settings::default(), NoHost, |evaluator| {
///     let value = evaluator.eval_string(b"let s = { port = 80; }; in s.prot", b"/");
///     value.map(|_| ()).map_err(|error| evaluator.diagnose(&error))
/// })?
/// .unwrap_err();
///
/// assert_eq!(diagnostic.kind, ErrorKind::Eval);
/// assert_eq!(diagnostic.message, "attribute 'prot' missing");
/// assert_eq!(diagnostic.place.as_ref().map(|place| (place.line, place.column)), Some((1, 28)));
/// assert_eq!(diagnostic.suggestions, ["port"]);
/// assert!(diagnostic.render(&RenderOptions::default()).ends_with("Did you mean port?"));
/// # Ok::<(), bento_eval::Aborted>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The message in Nix's words, without `error:`. It may have several lines.
    pub message: String,
    /// Where, if known.
    pub place: Option<Place>,
    /// How the evaluation got there, the outermost step first.
    pub steps: Vec<Step>,
    /// Names that are similar to one that was not found, the most similar one first.
    pub suggestions: Vec<String>,
    /// The NixOS options whose values were being worked out, the innermost first.
    pub options: Vec<NixosOption>,
    /// What to do about it, if that can be told. Whoever shows the error may know more, and say it here.
    pub hint: Option<String>,
}

/// One step of an evaluation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// What was being done.
    pub message: String,
    /// Where, if known.
    pub place: Option<Place>,
    /// Which traces show it.
    pub kind: FrameKind,
}

/// A place in a source, with the lines around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The source.
    pub source: Source,
    /// Counted from 1.
    pub line: u32,
    /// Counted from 1, in bytes.
    pub column: u32,
    /// The line, the one before and the one after, as far as they can be read, each with its number.
    pub excerpt: Vec<(u32, String)>,
}

/// Where a text comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A file: its path.
    File(String),
    /// An expression of the caller's.
    String,
    /// Standard input.
    Stdin,
}

/// A NixOS option in a trace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NixosOption {
    /// Its name, as the module system writes it.
    pub name: String,
    /// The modules whose definitions are concerned, as far as the module system tells.
    pub files: Vec<String>,
}

/// How an error is rendered.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions {
    /// Whether the text has escape sequences for colours.
    pub color: bool,
    /// Whether the whole trace is shown, calls of functions included, exactly as Nix does (`--show-trace`).
    ///
    /// Else a trace that leads through the NixOS module system is folded: it names the option and the modules, keeps the
    /// steps in other files than those of nixpkgs, and leaves out the rest. Any other trace ends after a few steps, as in
    /// Nix, except for those that the program itself has added (`builtins.addErrorContext`).
    pub show_trace: bool,
    /// Whether a text that leaves out steps mentions `--show-trace`.
    pub mention_show_trace: bool,
}

impl Default for RenderOptions {
    fn default() -> Self {
        RenderOptions { color: false, show_trace: false, mention_show_trace: true }
    }
}

impl<'a> Evaluator<'a> {
    /// An error with all that there is to say of it.
    pub fn diagnose(&self, error: &Error) -> Box<Diagnostic> {
        let mut places = Places { evaluator: self, sources: FxHashMap::default(), known: FxHashMap::default() };
        let steps: Vec<Step> = error
            .trace
            .iter()
            .rev()
            .filter(|frame| !frame.message.is_empty())
            .map(|frame| Step { message: frame.message.clone(), place: places.get(frame.pos), kind: frame.kind })
            .collect();
        let mut diagnostic = Box::new(Diagnostic {
            kind: error.kind,
            message: error.message.clone(),
            place: places.get(error.pos),
            options: options(&steps, &error.message),
            steps,
            suggestions: error.suggestions.clone(),
            hint: None,
        });
        diagnostic.hint = hint(&diagnostic);
        diagnostic
    }

    /// An error as text: [`Evaluator::diagnose`], then [`Diagnostic::render`].
    pub fn render_error(&self, error: &Error, options: &RenderOptions) -> String {
        self.diagnose(error).render(options)
    }

    /// A warning about a place as Nix prints it after `warning: `: the message, and the lines around the place.
    pub(crate) fn render_warning(&self, message: &str, pos: Pos) -> String {
        let mut places = Places { evaluator: self, sources: FxHashMap::default(), known: FxHashMap::default() };
        let options = &RenderOptions::default();
        let mut printer = Printer { options, out: format!("{message}\n") };
        if let Some(place) = places.get(pos) {
            printer.place("", &place);
        }
        indented(&printer.out, "", "         ")
    }
}

/// Places of an evaluation, with their excerpts.
struct Places<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    /// The lines of each file, read once; `None` if it can't be.
    sources: FxHashMap<Rc<[u8]>, Option<Rc<[String]>>>,
    known: FxHashMap<Pos, Option<Place>>,
}

impl Places<'_, '_> {
    fn get(&mut self, pos: Pos) -> Option<Place> {
        if let Some(known) = self.known.get(&pos) {
            return known.clone();
        }
        let place = self.evaluator.locate(pos).map(|location| self.place(&location));
        self.known.insert(pos, place.clone());
        place
    }

    fn place(&mut self, location: &Location) -> Place {
        let source = match &location.origin {
            Origin::File(path) => Source::File(String::from_utf8_lossy(path).into_owned()),
            Origin::String(_) => Source::String,
            Origin::Stdin(_) => Source::Stdin,
        };
        let lines = self.lines(location).unwrap_or_default();
        let numbered = (1u32..).zip(lines.iter());
        let near = location.line.saturating_sub(1)..=location.line + 1;
        let excerpt = numbered.filter(|(number, _)| near.contains(number)).map(|(number, text)| (number, text.clone()));
        Place { source, line: location.line, column: location.column, excerpt: excerpt.collect() }
    }

    fn lines(&mut self, location: &Location) -> Option<Rc<[String]>> {
        match &location.origin {
            Origin::String(text) | Origin::Stdin(text) => Some(split_lines(text)),
            Origin::File(path) => {
                let evaluator = self.evaluator;
                let read = || evaluator.fs.read_file(path_of(path)).ok().map(|text| split_lines(&text));
                self.sources.entry(path.clone()).or_insert_with(read).clone()
            }
        }
    }
}

/// The lines of a text; `\n`, `\r\n` and a lone `\r` end one. An empty text has none.
fn split_lines(text: &[u8]) -> Rc<[String]> {
    if text.is_empty() {
        return Rc::default();
    }
    let text = String::from_utf8_lossy(text);
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r')).map(str::to_owned).collect()
}

/// What stands between `before` and `after` in `text`.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.rsplit_once(after).map(|(found, _)| found)
}

/// The name of the option that the module system says it is working on.
fn option_of(step: &Step) -> Option<&str> {
    between(&step.message, "while evaluating the option `", "'")
}

/// The module whose definitions the module system says it is working on.
fn definitions_of(step: &Step) -> Option<&str> {
    between(&step.message, "while evaluating definitions from `", "'")
}

/// The options in the steps, the innermost first. The files that the message names (`- In `FILE'`) are the innermost one's; if
/// no step names an option, the message may.
fn options(steps: &[Step], message: &str) -> Vec<NixosOption> {
    let mut options: Vec<NixosOption> = Vec::new();
    for step in steps {
        if let Some(name) = option_of(step) {
            if options.last().is_none_or(|last| last.name != name) {
                options.push(NixosOption { name: name.to_owned(), files: Vec::new() });
            }
        } else if let (Some(file), Some(last)) = (definitions_of(step), options.last_mut())
            && !last.files.iter().any(|known| known == file)
        {
            last.files.push(file.to_owned());
        }
    }
    let files = message.lines().filter_map(|line| between(line.trim_start().strip_prefix("- ")?, "In `", "'"));
    let files: Vec<String> = files.map(str::to_owned).collect();
    if options.is_empty()
        && let Some((_, rest)) = message.lines().next().and_then(|line| line.split_once("option `"))
        && let Some((name, _)) = rest.split_once('\'')
    {
        options.push(NixosOption { name: name.to_owned(), files: Vec::new() });
    }
    if let (Some(last), false) = (options.last_mut(), files.is_empty()) {
        last.files = files;
    }
    options.reverse();
    options
}

/// What every NixOS module may take as an argument.
const MODULE_ARGUMENTS: [&str; 6] = ["config", "lib", "modulesPath", "options", "pkgs", "utils"];

/// What to do about an error, if that can be told from its message and its trace.
fn hint(diagnostic: &Diagnostic) -> Option<String> {
    let missing_argument = |step: &Step| {
        between(&step.message, "noting that argument `", "` is not externally provided")
            .or_else(|| between(&step.message, "noting that argument `", "' is not externally provided"))
            .map(str::to_owned)
    };
    let variable = between(&diagnostic.message, "undefined variable '", "'");
    if let Some(name) = variable.filter(|name| MODULE_ARGUMENTS.contains(name)) {
        return Some(format!(
            "in a NixOS module, `{name}' is an argument: let the file start with `{{ {name}, ... }}:'"
        ));
    }
    if let Some(name) = diagnostic.steps.last().and_then(missing_argument)
        && diagnostic.message.starts_with(&format!("attribute '{name}' missing"))
    {
        return Some(format!(
            "no module is given an argument `{name}': pass it in the `specialArgs' of `nixosSystem', or define \
             `_module.args.{name}'"
        ));
    }
    match (diagnostic.kind, diagnostic.options.first()) {
        (ErrorKind::InfiniteRecursion, Some(option)) => Some(format!(
            "the value of `{}' depends on itself: look for what reads it, through `config', to define it",
            option.name
        )),
        _ => None,
    }
}

const RED: &str = "\x1b[31;1m";
const YELLOW: &str = "\x1b[35;1m";
const BLUE: &str = "\x1b[34;1m";
const NORMAL: &str = "\x1b[0m";

/// What is indented by the width of `error: `.
const INDENT: &str = "       ";

/// How many steps in the user's own files a folded trace has, the innermost ones.
const OWN_STEPS: usize = 4;

/// How many options a folded trace names that need the innermost one.
const NEEDED_BY: usize = 4;

impl Diagnostic {
    /// The error as Nix prints it: the trace with the outermost step first, the message, the lines around the place, and
    /// names that may have been meant; and the hint. Without a newline at the end.
    pub fn render(&self, options: &RenderOptions) -> String {
        let mut printer = Printer { options, out: String::new() };
        let prefix = format!("{}error:{} ", printer.color(RED), printer.color(NORMAL));
        let modules = if options.show_trace { None } else { self.nixpkgs() };
        let has_trace = match &modules {
            Some(nixpkgs) => printer.folded_trace(self, nixpkgs),
            None => {
                // Calls count as steps only where they are shown.
                let shown = |step: &&Step| options.show_trace || step.kind != FrameKind::Call;
                let steps: Vec<&Step> = self.steps.iter().filter(shown).collect();
                printer.trace(&steps);
                !steps.is_empty()
            }
        };
        if has_trace {
            let _ = write!(printer.out, "\n{prefix}");
        }
        let _ = writeln!(printer.out, "{}", self.message);
        if let Some(place) = &self.place {
            match &modules {
                Some(nixpkgs) if nixpkgs.is_library(place) => printer.place_only("", place),
                _ => printer.place("", place),
            }
        }
        if let Some((last, others)) = self.suggestions.split_last() {
            let shown =
                if others.is_empty() { last.clone() } else { format!("one of {} or {last}", others.join(", ")) };
            let _ = writeln!(printer.out, "Did you mean {shown}?");
        }
        if let (Some(hint), false) = (&self.hint, options.show_trace) {
            let _ = writeln!(printer.out, "\n{}hint:{} {hint}", printer.color(YELLOW), printer.color(NORMAL));
        }
        indented(&printer.out, &prefix, INDENT)
    }

    /// The nixpkgs whose module system the trace leads through.
    fn nixpkgs(&self) -> Option<Nixpkgs<'_>> {
        let places = self.steps.iter().filter_map(|step| step.place.as_ref()).chain(&self.place);
        places
            .filter_map(Place::file)
            .find_map(|file| file.strip_suffix("lib/modules.nix"))
            .map(|root| Nixpkgs { root })
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}

impl Place {
    /// The path of the file, if it is in one.
    pub fn file(&self) -> Option<&str> {
        match &self.source {
            Source::File(path) => Some(path),
            Source::String | Source::Stdin => None,
        }
    }
}

impl std::fmt::Display for Place {
    /// As `FILE:LINE:COLUMN`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = match &self.source {
            Source::File(path) => path,
            Source::String => "«string»",
            Source::Stdin => "«stdin»",
        };
        write!(f, "{source}:{}:{}", self.line, self.column)
    }
}

/// A tree of nixpkgs, whose files are not the user's.
struct Nixpkgs<'d> {
    /// Its path, with a slash at the end.
    root: &'d str,
}

impl Nixpkgs<'_> {
    /// Whether a place is in the user's own files.
    fn is_own(&self, place: &Place) -> bool {
        place.file().is_none_or(|file| !file.starts_with(self.root) && !file.starts_with(INTERNAL))
    }

    /// Whether a place is in the library of nixpkgs.
    fn is_library(&self, place: &Place) -> bool {
        place.file().and_then(|file| file.strip_prefix(self.root)).is_some_and(|file| file.starts_with("lib/"))
    }
}

/// Prints an error.
struct Printer<'o> {
    options: &'o RenderOptions,
    out: String,
}

impl Printer<'_> {
    fn color(&self, code: &'static str) -> &'static str {
        if self.options.color { code } else { "" }
    }

    fn note(&mut self, text: &str) {
        let (start, end) = (self.color(YELLOW), self.color(NORMAL));
        let _ = writeln!(self.out, "\n{start}({text}){end}");
    }

    /// The steps from the outermost one inwards. A step counts one, one with a place two; more than three are not shown.
    fn trace(&mut self, steps: &[&Step]) {
        let mut seen: FxHashSet<&Step> = FxHashSet::default();
        let mut skipped: Vec<&Step> = Vec::new();
        let mut count = 0;
        let mut truncated = false;
        for step in steps {
            truncated |= !self.options.show_trace && count > 3;
            if truncated && step.kind != FrameKind::Context {
                continue;
            }
            if !seen.insert(step) {
                skipped.push(step);
                continue;
            }
            self.skipped(&mut skipped, &mut count);
            count += 1;
            self.step(step, &mut count);
        }
        self.skipped(&mut skipped, &mut count);
        if truncated && self.options.mention_show_trace {
            self.note("stack trace truncated; use '--show-trace' to show the full, detailed trace");
        }
    }

    fn skipped(&mut self, skipped: &mut Vec<&Step>, count: &mut usize) {
        if skipped.len() > 5 {
            self.note(&format!("{} duplicate frames omitted", skipped.len()));
        } else {
            for step in skipped.iter() {
                self.step(step, count);
            }
        }
        skipped.clear();
    }

    fn step(&mut self, step: &Step, count: &mut usize) {
        let _ = writeln!(self.out, "\n… {}", step.message);
        if let Some(place) = &step.place {
            self.place("  ", place);
            *count += 1;
        }
    }

    /// The trace of an error in a NixOS configuration: the option and its modules, what the program itself says, and the
    /// innermost steps in the user's own files. Whether there is anything.
    fn folded_trace(&mut self, diagnostic: &Diagnostic, nixpkgs: &Nixpkgs<'_>) -> bool {
        let steps = &diagnostic.steps;
        let is_own = |step: &&Step| step.place.as_ref().is_some_and(|place| nixpkgs.is_own(place));
        let mut kept: FxHashSet<&Step> = FxHashSet::default();
        for step in steps.iter().rev().filter(|step| step.kind == FrameKind::Step).filter(is_own) {
            if kept.len() == OWN_STEPS {
                break;
            }
            kept.insert(step);
        }
        if kept.is_empty() {
            // Better a call than no place at all.
            kept.extend(steps.iter().rev().find(is_own));
        }
        let is_option = |step: &Step| option_of(step).is_some() || definitions_of(step).is_some();
        kept.extend(steps.iter().filter(|step| step.kind == FrameKind::Context && !is_option(step)));
        let named = steps.iter().any(is_option);
        if named && let Some((option, others)) = diagnostic.options.split_first() {
            self.option(option, others);
        }
        let mut shown: FxHashSet<&Step> = FxHashSet::default();
        let mut folded = 0;
        for step in steps {
            if kept.contains(step) && shown.insert(step) {
                self.step(step, &mut 0);
            } else if step.kind != FrameKind::Call && !is_option(step) {
                folded += 1;
            }
        }
        if folded > 0 {
            let how = if self.options.mention_show_trace { "; use '--show-trace' to see them" } else { "" };
            let what = if folded == 1 { "step" } else { "steps" };
            self.note(&format!("{folded} {what} inside of nixpkgs folded{how}"));
        }
        named || !shown.is_empty() || folded > 0
    }

    /// The option that is at fault, where it is defined, and which others need it.
    fn option(&mut self, option: &NixosOption, others: &[NixosOption]) {
        let _ = writeln!(self.out, "\n… while evaluating the option `{}'", option.name);
        for file in &option.files {
            let _ = writeln!(self.out, "  defined in {}{file}{}", self.color(YELLOW), self.color(NORMAL));
        }
        if let Some((first, rest)) = others.split_first() {
            let _ = write!(self.out, "  which `{}' needs", first.name);
            for other in rest.iter().take(NEEDED_BY - 1) {
                let _ = write!(self.out, ", which `{}' needs", other.name);
            }
            let _ = writeln!(self.out, "{}", if rest.len() >= NEEDED_BY { ", and so on" } else { "" });
        }
    }

    /// The place alone.
    fn place_only(&mut self, indent: &str, place: &Place) {
        let (blue, yellow, normal) = (self.color(BLUE), self.color(YELLOW), self.color(NORMAL));
        let _ = writeln!(self.out, "{indent}{blue}at {yellow}{place}{normal}");
    }

    /// The place and the lines around it.
    fn place(&mut self, indent: &str, place: &Place) {
        let (blue, yellow, red, normal) = (self.color(BLUE), self.color(YELLOW), self.color(RED), self.color(NORMAL));
        let _ = write!(self.out, "{indent}{blue}at {yellow}{place}{normal}:");
        for (number, text) in &place.excerpt {
            let _ = write!(self.out, "\n {number:>5}| {text}");
            if *number == place.line && place.column > 0 {
                let spaces = " ".repeat(place.column as usize);
                let _ = write!(self.out, "\n      |{spaces}{red}^{normal}");
            }
        }
        if !place.excerpt.is_empty() {
            self.out.push('\n');
        }
    }
}

/// `text` with `first` before its first line and `others` before each other one, no line ending in spaces.
fn indented(text: &str, first: &str, others: &str) -> String {
    let mut result = String::with_capacity(text.len() * 2);
    for (index, line) in text.trim_end().split('\n').enumerate() {
        if index > 0 {
            result.push('\n');
        }
        let line = format!("{}{line}", if index == 0 { first } else { others });
        result.push_str(line.trim_end());
    }
    result
}
