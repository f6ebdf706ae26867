//! The rules of the language, one case per file.
//!
//! `lang/okay/NAME.nix` evaluates to what Nix printed into `NAME.exp`; `lang/fail/NAME.nix` fails with the error that Nix
//! printed into `NAME.err`: message, places and the whole trace. Adding a case is adding a file; only Nix writes the golden
//! files.

use crate::support::{Nix, Printed, assert_none, cases, eval_file, folder, rendered_error_of_file, settings};
use std::path::Path;

/// Stands for the folder of the case.
const HERE: &str = "/HERE";

/// A golden text, whose folder does not depend on the machine.
fn golden(text: &str, path: &Path) -> String {
    let here = path.parent().expect("a case lies in a folder").to_str().expect("the path is UTF-8");
    text.replace(here, HERE) + "\n"
}

fn value(result: Printed, path: &Path) -> String {
    golden(&result.unwrap_or_else(|message| format!("error: {message}")), path)
}

fn name(path: &Path) -> String {
    path.file_stem().expect("a case has a name").to_string_lossy().into_owned()
}

/// The golden file of a case.
fn expected(path: &Path, extension: &str) -> String {
    let file = path.with_extension(extension);
    std::fs::read_to_string(&file).unwrap_or_else(|error| format!("{}: {error}\n", file.display()))
}

/// Compares the golden files with what Nix says now, or lets Nix write them.
fn check_golden(kind: &str, extension: &str, nix_says: impl Fn(&Path) -> String) {
    let bless = std::env::var_os("BENTO_BLESS").is_some();
    let mut differences = Vec::new();
    for path in cases(kind) {
        let text = nix_says(&path);
        if bless {
            std::fs::write(path.with_extension(extension), text).expect("the golden file can be written");
        } else if expected(&path, extension) != text {
            differences.push(format!("{}: Nix says {text}", path.display()));
        }
    }
    assert_none(&differences);
}

#[test]
fn evaluate_as_nix_does() {
    let mut differences = Vec::new();
    for path in cases("okay") {
        let (ours, expected) = (value(eval_file(settings(), &path), &path), expected(&path, "exp"));
        if ours != expected {
            differences.push(format!("{}:\n    ours:     {ours}    expected: {expected}", name(&path)));
        }
    }
    assert_none(&differences);
}

#[test]
fn fail_as_nix_does() {
    let mut differences = Vec::new();
    for path in cases("fail") {
        let (ours, expected) = (golden(&rendered_error_of_file(&path), &path), expected(&path, "err"));
        if ours != expected {
            differences.push(format!("{}:\n--- ours\n{ours}--- expected\n{expected}", name(&path)));
        }
    }
    assert_none(&differences);
}

#[test]
fn golden_files_come_from_nix() {
    let Some(nix) = Nix::find() else { return };
    check_golden("okay", "exp", |path| value(nix.eval_file(path), path));
    check_golden("derivations", "exp", |path| value(nix.eval_file(path), path));
    check_golden("fail", "err", |path| golden(&nix.rendered_error_of_file(path), path));
}

#[test]
fn every_case_has_its_golden_file_and_every_golden_file_its_case() {
    for (kind, extension) in [("okay", "exp"), ("fail", "err"), ("derivations", "exp")] {
        let mut stray = Vec::new();
        for entry in std::fs::read_dir(folder(kind)).expect("the folder of cases is readable") {
            let path = entry.expect("the folder of cases is readable").path();
            let other = match path.extension().and_then(|found| found.to_str()) {
                Some("nix") => path.with_extension(extension),
                Some(found) if found == extension => path.with_extension("nix"),
                _ => continue,
            };
            if !other.exists() {
                stray.push(format!("{} is missing", other.display()));
            }
        }
        assert_none(&stray);
    }
}
