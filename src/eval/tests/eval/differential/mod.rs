//! Generated programs, evaluated by both.
//!
//! The programs are typed, so that most have a value, and their parts are as frequent as in nixpkgs: see `rules.txt`. What is
//! compared is the value as `builtins.trace` shows it, an error's message and place, and all that was traced on the way.
//!
//! | variable | |
//! |---|---|
//! | `BENTO_DIFFERENTIAL_SECONDS` | how long to go on; without it there are a few hundred programs |
//! | `BENTO_SEED` | the number of the first program; they are the same in every run |
//! | `BENTO_DIFFERENTIAL_TRACES` | compares the steps that led to an error, too |
//! | `BENTO_DIFFERENTIAL_FINDINGS` | a folder for what was found, as it is found |
//!
//! A long run is `cargo test --release -p bento-eval --test eval differential -- --nocapture`. One finding of each kind is reduced
//! to a small program; it belongs into `lang/`.

mod both;
mod generate;
mod shrink;

use crate::support::{Nix, assert_none, eval, settings};
use both::{Form, Outcome};
use generate::Grammar;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many programs are evaluated in one go.
const BATCH: u64 = 150;
/// How many batches there are if no time is given.
const BATCHES: u64 = 3;

/// A number from the environment.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Copies a folder of plain files.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A folder with what the programs read, and what has come of the programs so far.
struct Comparison<'n> {
    nix: &'n Nix,
    folder: tempfile::TempDir,
    traces: bool,
    form: Form,
    files: u64,
    /// By kind, how many differences there are, and the first of them reduced.
    differences: BTreeMap<String, (u64, String)>,
    programs: u64,
    failing: u64,
    too_large: u64,
    /// How many programs differ only together with others: the order of attributes, which shows in the order of errors,
    /// depends on what was evaluated before.
    unsteady: u64,
}

impl<'n> Comparison<'n> {
    fn new(nix: &'n Nix) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/eval/differential/data");
        copy_folder(&data, &folder.path().join("data")).expect("what the programs read can be copied");
        Comparison {
            nix,
            folder,
            traces: std::env::var_os("BENTO_DIFFERENTIAL_TRACES").is_some(),
            form: Form::Xml,
            files: 0,
            differences: BTreeMap::new(),
            programs: 0,
            failing: 0,
            too_large: 0,
            unsteady: 0,
        }
    }

    fn write(&mut self, program: &str) -> PathBuf {
        self.files += 1;
        let path = self.folder.path().join(format!("{}.nix", self.files));
        std::fs::write(&path, program).expect("the program can be written");
        path
    }

    /// What both make of one program, each in an evaluation of its own.
    fn alone(&mut self, program: &str) -> (Outcome, Outcome) {
        let files = [self.write(program)];
        let ours = both::ours(&files, self.form).swap_remove(0);
        let theirs =
            if ours.is_too_large() { ours.clone() } else { both::theirs(self.nix, &files, self.form).swap_remove(0) };
        let _ = std::fs::remove_file(&files[0]);
        (ours, theirs)
    }

    /// Compares what both make of these programs, which have names.
    fn add(&mut self, batch: Vec<(String, String)>) {
        self.programs += batch.len() as u64;
        let files: Vec<PathBuf> = batch.iter().map(|(_, program)| self.write(program)).collect();
        let outcomes = both::ours(&files, self.form);
        let mut rest: Vec<(&PathBuf, &(String, String), Outcome)> =
            files.iter().zip(&batch).zip(outcomes).map(|((file, program), ours)| (file, program, ours)).collect();
        rest.retain(|(_, _, ours)| !ours.is_too_large());
        self.too_large += (batch.len() - rest.len()) as u64;
        let compared: Vec<PathBuf> = rest.iter().map(|(file, _, _)| (*file).clone()).collect();
        let theirs = both::theirs(self.nix, &compared, self.form);
        for ((_, (name, program), ours), theirs) in rest.into_iter().zip(theirs) {
            self.failing += u64::from(theirs.is_error());
            if ours.agrees(&theirs, self.traces) {
                continue;
            }
            let (ours, theirs) = self.alone(program);
            if ours.agrees(&theirs, self.traces) {
                self.unsteady += 1;
                continue;
            }
            let kind = ours.kind(&theirs, self.traces);
            if let Some((count, _)) = self.differences.get_mut(&kind) {
                *count += 1;
                continue;
            }
            let found = report(self, name, program, &kind);
            self.differences.insert(kind, (1, found));
        }
        for file in &files {
            let _ = std::fs::remove_file(file);
        }
    }

    /// Says what was compared, and fails if there are differences.
    fn end(self) {
        println!(
            "{} programs, {} fail in Nix, {} are too large to compare; {} kinds of differences, {} programs differ only \
             together with others",
            self.programs,
            self.failing,
            self.too_large,
            self.differences.len(),
            self.unsteady,
        );
        let differences: Vec<String> =
            self.differences.values().map(|(count, found)| format!("{count} x {found}")).collect();
        assert_none(&differences);
    }
}

#[test]
fn generated_programs_have_nix_values() {
    let Some(nix) = Nix::find() else { return };
    let mut comparison = Comparison::new(&nix);
    let grammar = Grammar::new();
    let first = number("BENTO_SEED").unwrap_or(1);
    let seconds = number("BENTO_DIFFERENTIAL_SECONDS").map(Duration::from_secs);
    let start = Instant::now();
    for batch in 0.. {
        if seconds.map_or(batch >= BATCHES, |limit| start.elapsed() >= limit) {
            break;
        }
        comparison.form = if batch.is_multiple_of(4) { Form::Nix } else { Form::Xml };
        let seeds = first + batch * BATCH..first + (batch + 1) * BATCH;
        comparison.add(seeds.map(|seed| (format!("{seed}"), grammar.program(seed))).collect());
    }
    let passed = start.elapsed().as_secs_f64();
    println!("from {first} on, {passed:.0} s: {:.0} per second", comparison.programs as f64 / passed);
    comparison.end();
}

/// Arguments of all kinds; those that fail show in which order they are evaluated.
const ARGUMENTS: [&str; 17] = [
    "(throw \"evaluated\")",
    "1",
    "(-1)",
    "1.5",
    "true",
    "null",
    "\"a\"",
    "\"sha256\"",
    "./data/set.nix",
    "[ ]",
    "[ 1 ]",
    "[ \"a\" ]",
    "[ { a = 1; } ]",
    "{ }",
    "{ a = 1; }",
    "(x: x)",
    "(x: y: x)",
];

/// Builtins that differ in ways that are no matter of the language, or that take no arguments.
const UNLIKE: [&str; 14] = [
    // network and store
    "fetchClosure",
    "fetchFinalTree",
    "fetchGit",
    "fetchMercurial",
    "fetchTarball",
    "fetchTree",
    "fetchurl",
    "getFlake",
    "storePath",
    // the debugger
    "break",
    // constants
    "builtins",
    "currentTime",
    "nixPath",
    // its errors are another library's
    "fromTOML",
];

#[test]
fn builtins_take_their_arguments_as_nix_does() {
    let Some(nix) = Nix::find() else { return };
    let names = eval(settings(), "builtins.concatStringsSep \" \" (builtins.attrNames builtins)").expect("a value");
    let names: Vec<&str> = names.trim_matches('"').split(' ').filter(|name| !UNLIKE.contains(name)).collect();
    let mut programs = Vec::new();
    for name in names {
        for first in ARGUMENTS {
            programs.push(format!("builtins.{name} {first}"));
            for second in ARGUMENTS {
                programs.push(format!("builtins.{name} {first} {second}"));
                for third in ARGUMENTS {
                    programs.push(format!("builtins.{name} {first} {second} {third}"));
                }
            }
        }
    }
    // All of them only in a long run; the step shares no factor with the number of arguments.
    let step = if number("BENTO_DIFFERENTIAL_SECONDS").is_some() { 1 } else { 601 };
    let mut comparison = Comparison::new(&nix);
    let chosen: Vec<&String> = programs.iter().step_by(step).collect();
    for batch in chosen.chunks(BATCH as usize) {
        comparison.add(batch.iter().map(|program| ((*program).clone(), (*program).clone())).collect());
    }
    comparison.end();
}

/// Reduces a program that shows a difference, and says what both make of it.
fn report(comparison: &mut Comparison<'_>, name: &str, program: &str, kind: &str) -> String {
    let traces = comparison.traces;
    let small = shrink::shrink(program, |candidate| {
        // What can't be parsed, or shows the time, is told apart without Nix.
        let file = [comparison.write(candidate)];
        let ours = both::ours(&file, comparison.form).swap_remove(0);
        let _ = std::fs::remove_file(&file[0]);
        let misses = ["error: syntax error", "error: undefined variable", "currentTime = "];
        if matches!(&ours, Outcome::Said(text) if misses.iter().any(|miss| text.contains(miss))) {
            return false;
        }
        let (ours, theirs) = comparison.alone(candidate);
        !ours.is_too_large() && !ours.agrees(&theirs, traces) && ours.kind(&theirs, traces) == kind
    });
    let (ours, theirs) = comparison.alone(&small);
    let show = |outcome: Outcome| match outcome {
        Outcome::Said(text) => text,
        Outcome::None(why) => why,
    };
    let found = format!("{kind}\nprogram {name}:\n{small}\n-- ours:\n{}\n-- Nix:\n{}\n", show(ours), show(theirs));
    if let Some(folder) = std::env::var_os("BENTO_DIFFERENTIAL_FINDINGS") {
        let folder = PathBuf::from(folder);
        std::fs::create_dir_all(&folder).expect("the folder for findings can be made");
        let text = format!("{found}\n-- before it was reduced:\n{program}\n");
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        std::fs::write(folder.join(format!("{name}.txt")), text).expect("a finding can be written");
    }
    eprintln!("== {found}");
    found
}
