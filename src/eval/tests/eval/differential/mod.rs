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
//! A long run is `cargo test --release -p bento-eval --test eval generated -- --nocapture`. One finding of each kind is reduced
//! to a small program; it belongs into `lang/`.

mod both;
mod generate;
mod shrink;

use crate::support::{Nix, assert_none};
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

/// A folder with what the programs read, and the programs.
struct Workshop<'n> {
    nix: &'n Nix,
    folder: tempfile::TempDir,
    traces: bool,
    form: Form,
    files: u64,
}

impl Workshop<'_> {
    fn write(&mut self, program: &str) -> PathBuf {
        self.files += 1;
        let path = self.folder.path().join(format!("{}.nix", self.files));
        std::fs::write(&path, program).expect("the program can be written");
        path
    }

    /// What both make of one program, each in an evaluation of its own.
    fn alone(&mut self, program: &str) -> (Outcome, Outcome) {
        let files = [self.write(program)];
        let (mut ours, mut theirs) = (both::ours(&files, self.form), both::theirs(self.nix, &files, self.form));
        let _ = std::fs::remove_file(&files[0]);
        (ours.swap_remove(0), theirs.swap_remove(0))
    }
}

#[test]
fn generated_programs_have_nix_values() {
    let Some(nix) = Nix::find() else { return };
    let folder = tempfile::tempdir().expect("a directory");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/eval/differential/data");
    copy_folder(&data, &folder.path().join("data")).expect("what the programs read can be copied");
    let traces = std::env::var_os("BENTO_DIFFERENTIAL_TRACES").is_some();
    let mut workshop = Workshop { nix: &nix, folder, traces, form: Form::Xml, files: 0 };
    let grammar = Grammar::new();
    let first = number("BENTO_SEED").unwrap_or(1);
    let seconds = number("BENTO_DIFFERENTIAL_SECONDS").map(Duration::from_secs);
    let start = Instant::now();
    let mut kinds: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let (mut seed, mut failing, mut unsteady) = (first, 0, 0);
    loop {
        let over = seconds.map_or(seed - first >= BATCHES * BATCH, |limit| start.elapsed() >= limit);
        if over {
            break;
        }
        let form = if (seed - first) / BATCH % 4 == 0 { Form::Nix } else { Form::Xml };
        workshop.form = form;
        let programs: Vec<String> = (seed..seed + BATCH).map(|seed| grammar.program(seed)).collect();
        let files: Vec<PathBuf> = programs.iter().map(|program| workshop.write(program)).collect();
        let (ours, theirs) = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| both::theirs(&nix, &files, form));
            let ours = both::ours(&files, form);
            (ours, theirs.join().expect("Nix is asked"))
        });
        for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            if matches!(theirs, Outcome::Said(text) if text.contains("error:")) {
                failing += 1;
            }
            if ours.agrees(theirs, traces) {
                continue;
            }
            // The order of attributes, which shows in the order of errors, depends on what was evaluated before.
            let (ours, theirs) = workshop.alone(&programs[index]);
            if ours.agrees(&theirs, traces) {
                unsteady += 1;
                continue;
            }
            let kind = ours.kind(&theirs, traces);
            if let Some((count, _)) = kinds.get_mut(&kind)
                && (kind != "value" || *count > 4)
            {
                *count += 1;
                continue;
            }
            let found = report(&mut workshop, seed + index as u64, &programs[index], &kind);
            kinds.entry(kind).or_insert_with(|| (0, found)).0 += 1;
        }
        for file in files {
            let _ = std::fs::remove_file(file);
        }
        seed += BATCH;
    }
    let count = seed - first;
    println!(
        "{count} programs from {first} on, {failing} of them fail in Nix, in {:.0} s: {:.0} per second; {} kinds of differences, \
         {unsteady} programs that differ only together with others",
        start.elapsed().as_secs_f64(),
        count as f64 / start.elapsed().as_secs_f64(),
        kinds.len(),
    );
    let differences: Vec<String> = kinds.values().map(|(count, found)| format!("{count} x {found}")).collect();
    assert_none(&differences);
}

/// Reduces a program that shows a difference, and says what both make of it.
fn report(workshop: &mut Workshop<'_>, seed: u64, program: &str, kind: &str) -> String {
    let traces = workshop.traces;
    let small = shrink::shrink(program, |candidate| {
        // What can't be parsed, or shows the time, is told apart without Nix.
        let file = [workshop.write(candidate)];
        let ours = both::ours(&file, workshop.form).swap_remove(0);
        let _ = std::fs::remove_file(&file[0]);
        let misses = ["error: syntax error", "error: undefined variable", "currentTime = "];
        if matches!(&ours, Outcome::Said(text) if misses.iter().any(|miss| text.contains(miss))) {
            return false;
        }
        let (ours, theirs) = workshop.alone(candidate);
        !ours.agrees(&theirs, traces) && ours.kind(&theirs, traces) == kind
    });
    let (ours, theirs) = workshop.alone(&small);
    let show = |outcome: Outcome| match outcome {
        Outcome::Said(text) => text,
        Outcome::None(why) => why,
    };
    let found = format!("{kind}\nprogram {seed}:\n{small}\n-- ours:\n{}\n-- Nix:\n{}\n", show(ours), show(theirs));
    if let Some(folder) = std::env::var_os("BENTO_DIFFERENTIAL_FINDINGS") {
        let folder = PathBuf::from(folder);
        std::fs::create_dir_all(&folder).expect("the folder for findings can be made");
        let text = format!("{found}\n-- before it was reduced:\n{program}\n");
        std::fs::write(folder.join(format!("{seed}.txt")), text).expect("a finding can be written");
    }
    eprintln!("== {found}");
    found
}
