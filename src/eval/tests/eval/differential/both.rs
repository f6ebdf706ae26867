//! Programs evaluated by bento and by C++ Nix, many in one go.

use crate::support::{Nix, settings};
use bento_eval::value::{Kind, Value};
use bento_eval::{Evaluator, Host, RenderOptions, Settings, evaluate};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much memory a batch's values may take.
const MAX_HEAP: usize = 1 << 30;
/// How many parts a value may have, counted as often as they are shown.
const MAX_PARTS: usize = 100_000;
/// How long C++ Nix may take for a batch.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// What came of one program: everything that was said while it was evaluated, its value or its error at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Said(String),
    /// No result at all: a crash, or more time or memory than there is.
    None(String),
}

const PANIC: &str = "a panic";

impl Outcome {
    /// Whether this is about the same as what C++ Nix gives; without `traces` the steps that led to an error are not compared.
    pub(super) fn agrees(&self, theirs: &Outcome, traces: bool) -> bool {
        match (self, theirs) {
            (Outcome::Said(ours), Outcome::Said(theirs)) => {
                // Which lists print as repeated depends on the places that they were copied to.
                let repeated =
                    |text: &str| text.rsplit_once(VALUE).is_some_and(|(_, value)| value.contains("«repeated»"));
                repeated(ours) || repeated(theirs) || essence(ours, traces) == essence(theirs, traces)
            }
            _ => false,
        }
    }

    /// Whether the program takes too much of something, so that there is nothing to compare.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self, Outcome::None(why) if why != PANIC)
    }

    /// Whether it ends with an error.
    pub(super) fn is_error(&self) -> bool {
        matches!(self, Outcome::Said(text) if text.lines().any(|line| line.starts_with("error:")))
    }

    /// What is said first where bento and C++ Nix differ, with everything that varies from program to program taken out.
    pub(super) fn kind(&self, theirs: &Outcome, traces: bool) -> String {
        let (ours, theirs) = match (self, theirs) {
            (Outcome::Said(ours), Outcome::Said(theirs)) => (essence(ours, traces), essence(theirs, traces)),
            (ours, theirs) => return format!("{} / {}", ours.label(), theirs.label()),
        };
        let (ours_fails, theirs_fail) = (ours.contains("error: "), theirs.contains("error: "));
        if ours_fails != theirs_fail {
            return format!(
                "fails: {ours_fails} / {theirs_fail}: {}",
                abstracted(if ours_fails { &ours } else { &theirs })
            );
        }
        if !ours_fails {
            let differs = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
            let (ours, theirs) = differs.unwrap_or_default();
            return format!("value: {} / {}", unquoted(ours), unquoted(theirs));
        }
        format!("{} / {}", abstracted(&ours), abstracted(&theirs))
    }

    fn label(&self) -> &str {
        match self {
            Outcome::Said(_) => "a result",
            Outcome::None(why) => why,
        }
    }
}

/// The first line of the last error, without quoted parts and numbers.
fn abstracted(text: &str) -> String {
    unquoted(text.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or_default())
}

/// The start of a line, without quoted parts and numbers.
fn unquoted(line: &str) -> String {
    let mut quoted = false;
    line.chars()
        .filter(|&c| {
            if matches!(c, '\'' | '"' | '«' | '»') {
                quoted = !quoted;
            }
            !quoted && !c.is_ascii_digit()
        })
        .take(80)
        .collect()
}

/// A line of XML without a position in the definition of `derivation`, which is written otherwise here.
fn placed_nowhere(line: &str) -> String {
    if !line.contains("path=\"/derivation-internal.nix\"") {
        return line.to_owned();
    }
    let is_place = |word: &&str| ["column=", "line=", "path="].iter().any(|place| word.starts_with(place));
    let indent = &line[..line.len() - line.trim_start().len()];
    let words: Vec<&str> = line.split_whitespace().filter(|word| !is_place(word)).collect();
    format!("{indent}{}>", words.join(" ").trim_end_matches('>'))
}

/// What is compared: with `traces` everything, else all but the steps before the last error.
///
/// Whether a function, an empty set or a position in a message was evaluated before is not: none needs an evaluation here, so
/// messages show what C++ Nix does if nobody has asked for it. Neither are the details of what is wrong with a text in TOML.
fn essence(said: &str, traces: bool) -> String {
    const TOML: &str = "error: while parsing TOML:";
    let (said, value) = said.rsplit_once(VALUE).unwrap_or((said, ""));
    let value = value.lines().map(placed_nowhere).collect::<Vec<_>>().join("\n");
    // C++ Nix expands tabs, and leaves out carriage returns.
    let said = said.replace('\r', "");
    let lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut said = lines.collect::<Vec<_>>().join("\n");
    for (varies, instead) in [
        ("{ }", "«thunk»"),
        ("«repeated»", "«thunk»"),
        ("«none»", "none"),
        ("«nix-internal»/derivation-internal.nix:30:1", "none"),
    ] {
        said = said.replace(varies, instead);
    }
    for place in ["column = ", "line = "] {
        let mut parts = said.split(place);
        let mut shown = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            shown.push_str(place);
            shown.push_str(part.trim_start_matches("«thunk»").trim_start_matches(|c: char| c.is_ascii_digit()));
        }
        said = shown;
    }
    let mut parts = said.split("«lambda");
    let mut said = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        said.push_str("«thunk»");
        said.push_str(part.split_once('»').map_or("", |(_, rest)| rest));
    }
    if let Some((before, _)) = said.split_once(TOML) {
        said.truncate(before.len() + TOML.len());
    }
    let lines: Vec<&str> = said.lines().collect();
    let is_error = |line: &&str| line.trim_start().starts_with("error:");
    let first = lines.iter().position(|line| line.starts_with("error:"));
    let last = lines.iter().rposition(is_error);
    match (first, last) {
        (Some(first), Some(last)) if !traces => {
            let mut text = lines[..first].join("\n") + "\n";
            let mut message = true;
            for line in lines[last..].iter().map(|line| line.trim_start()) {
                message &= !line.starts_with("at ");
                if message || line.starts_with("Did you mean") {
                    text.push_str(line);
                    text.push('\n');
                }
            }
            text
        }
        _ => lines.join("\n") + "\n" + &value,
    }
}

/// The expression that evaluates a program in full.
fn expression(program: &Path) -> String {
    format!("let v = import {}; in builtins.deepSeq v v", program.display())
}

/// How values are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// In Nix's syntax.
    Nix,
    /// With the positions of attributes and functions.
    Xml,
}

/// What is said before a value.
const VALUE: &str = "value: ";

struct Listener(Arc<Mutex<String>>);

impl Listener {
    fn say(&self, kind: &str, message: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.push_str(kind);
        said.push_str(message);
        said.push('\n');
    }
}

impl Host for Listener {
    fn env(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn warn(&self, message: &str) {
        self.say("warning: ", message);
    }
    fn evaluation_warning(&self, message: &str) {
        self.say("evaluation warning: ", message);
    }
    fn trace(&self, message: &str) {
        self.say("trace: ", message);
    }
}

/// What the programs in these files give, evaluated by bento one after the other. What has no result here must not be given to
/// C++ Nix, unless it is a panic: it has no limits.
pub(super) fn ours(files: &[PathBuf], form: Form) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    while outcomes.len() < files.len() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::new(Mutex::new(String::new()));
        let rest = &files[outcomes.len()..];
        let collected = Arc::clone(&done);
        let listener = Listener(Arc::clone(&said));
        let push = |outcome| collected.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            evaluate(Settings { max_heap: MAX_HEAP, ..settings() }, listener, |evaluator| {
                for file in rest {
                    let result = evaluator.eval_string(expression(file).as_bytes(), b"/");
                    let mut text = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
                    if let Ok(value) = result
                        && !has_at_most(evaluator, value, &mut { MAX_PARTS })
                    {
                        push(Outcome::None("too large a value".to_owned()));
                        continue;
                    }
                    let value = result.and_then(|value| match form {
                        Form::Nix => evaluator.print(value, true),
                        Form::Xml => evaluator.print_xml(value, true, true),
                    });
                    match value {
                        Ok(value) => {
                            text.push_str(VALUE);
                            text.push_str(&String::from_utf8_lossy(&value));
                        }
                        Err(error) => {
                            let options = RenderOptions { show_trace: true, ..RenderOptions::default() };
                            text.push_str(&evaluator.render_error(&error, &options));
                        }
                    }
                    push(Outcome::Said(text.trim_end_matches('\n').to_owned()));
                }
            })
        }));
        outcomes.append(&mut done.lock().unwrap_or_else(PoisonError::into_inner));
        match result {
            Ok(Ok(())) => {}
            Ok(Err(aborted)) => outcomes.push(Outcome::None(aborted.to_string())),
            Err(_) => outcomes.push(Outcome::None(PANIC.to_owned())),
        }
    }
    outcomes
}

/// Whether an evaluated value has at most `left` parts; each that it has is taken off.
fn has_at_most<'a>(evaluator: &Evaluator<'a>, value: Value<'a>, left: &mut usize) -> bool {
    let own = match value.resolved().kind() {
        Kind::Str(text) => 1 + text.bytes().len() / 64,
        _ => 1,
    };
    if own > *left {
        return false;
    }
    *left -= own;
    match value.resolved().kind() {
        Kind::List(list) => list.iter().all(|element| has_at_most(evaluator, element, left)),
        // A derivation has itself as an attribute.
        Kind::Attrs(attrs) => {
            let is_derivation = evaluator.is_derivation(attrs).unwrap_or_default();
            is_derivation
                || evaluator.heap.flat(attrs).iter().all(|(_, _, slot)| has_at_most(evaluator, slot.get(), left))
        }
        _ => true,
    }
}

/// What ends the output of the program of this index.
fn marker(index: usize) -> String {
    format!("trace: end of program {index}\n")
}

/// What the programs in these files give, evaluated by C++ Nix: in one process as long as none crashes. Another one prints the
/// values of those that have one.
pub(super) fn theirs(nix: &Nix, files: &[PathBuf], form: Form) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    while outcomes.len() < files.len() {
        let (said, why) = run(nix, &files[outcomes.len()..]);
        let mut rest = said.as_str();
        for index in 0.. {
            let Some((before, after)) = rest.split_once(&marker(index)) else { break };
            outcomes.push(Outcome::Said(before.trim_end_matches('\n').to_owned()));
            rest = after;
        }
        if outcomes.len() < files.len() {
            outcomes.push(Outcome::None(why.to_owned()));
        }
    }
    let mut good: Vec<(&PathBuf, &mut String)> = files
        .iter()
        .zip(&mut outcomes)
        .filter(|(_, outcome)| !outcome.is_error())
        .filter_map(|(file, outcome)| match outcome {
            Outcome::Said(text) => Some((file, text)),
            Outcome::None(_) => None,
        })
        .collect();
    let mut first = 0;
    while first < good.len() {
        let mut command = nix.printer();
        if form == Form::Xml {
            command.arg("--xml");
        }
        command.args(good[first..].iter().map(|(file, _)| file));
        let output = command.stderr(Stdio::null()).output().expect("nix-instantiate runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let values: Vec<&str> = match form {
            // A path may have a newline.
            Form::Nix if good.len() == first + 1 => vec![printed.as_str()],
            Form::Nix => printed.lines().collect(),
            Form::Xml => printed.split_inclusive("</expr>\n").collect(),
        };
        for ((_, text), value) in good[first..].iter_mut().zip(values) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(VALUE);
            text.push_str(value.trim_end_matches('\n'));
            first += 1;
        }
        // One that can't be printed says nothing.
        if !output.status.success() {
            first += 1;
        }
    }
    outcomes
}

/// What Nix's interactive evaluator says to all programs, as far as it gets, and why it gets no further.
fn run(nix: &Nix, files: &[PathBuf]) -> (String, &'static str) {
    let mut input = String::new();
    for (index, file) in files.iter().enumerate() {
        let end = marker(index);
        input.push_str(&format!("{}\nbuiltins.trace \"{}\" null\n", expression(file), &end[7..end.len() - 1]));
    }
    let mut command = nix.repl();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nix runs");
    let (mut stdin, mut stderr) = (child.stdin.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    // It may end before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stderr.read_to_end(&mut said);
        said
    });
    let start = Instant::now();
    let mut why = "a crash";
    while child.try_wait().expect("nix runs").is_none() {
        if start.elapsed() > TIME_LIMIT {
            why = "no end";
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = writer.join();
    let said = reader.join().unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    // Before the first program it says its version and how to get help.
    let greeting = "Nix 2";
    let said = match said.split_once('\n') {
        Some((first, rest)) if first.starts_with(greeting) => rest.trim_start_matches("Type :? for help.\n").to_owned(),
        _ => said,
    };
    (said, why)
}
