//! The rules of the language, one case per file.
//!
//! `lang/okay/NAME.nix` evaluates to what Nix printed into `NAME.exp`; `lang/fail/NAME.nix` fails with the first line of the
//! message that Nix printed into `NAME.err`. Adding a case is adding a file; only Nix writes the golden files.

use crate::support::{Nix, Printed, assert_none, cases, eval_file, folder, settings};
use std::path::Path;

/// Stands for the folder of the case.
const HERE: &str = "/HERE";

/// The golden text of a result, whose folder does not depend on the machine.
fn golden(result: Printed, path: &Path, fails: bool) -> String {
    let text = match result {
        Ok(value) if !fails => value,
        Err(message) if fails => message,
        Ok(value) => format!("no error, but {value}"),
        Err(message) => format!("error: {message}"),
    };
    let here = path.parent().expect("a case lies in a folder").to_str().expect("the path is UTF-8");
    text.replace(here, HERE) + "\n"
}

fn check(kind: &str, extension: &str, fails: bool) {
    let mut differences = Vec::new();
    for path in cases(kind) {
        let ours = golden(eval_file(settings(), &path), &path, fails);
        let file = path.with_extension(extension);
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| format!("{}: {error}\n", file.display()));
        if ours != expected {
            let name = path.file_name().expect("a case has a name").to_string_lossy();
            differences.push(format!("{kind}/{name}:\n    ours:     {ours}    expected: {expected}"));
        }
    }
    assert_none(&differences);
}

/// Compares the golden files with what Nix says now, or lets Nix write them.
fn check_golden(nix: &Nix, kind: &str, extension: &str, fails: bool) {
    let bless = std::env::var_os("BENTO_BLESS").is_some();
    let mut differences = Vec::new();
    for path in cases(kind) {
        let result = nix.eval_file(&path);
        if result.is_err() != fails {
            differences.push(format!("{}: Nix says {result:?}", path.display()));
            continue;
        }
        let text = golden(result, &path, fails);
        let file = path.with_extension(extension);
        if bless {
            std::fs::write(&file, text).expect("the golden file can be written");
        } else if std::fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            differences.push(format!("{}: Nix says {text}", file.display()));
        }
    }
    assert_none(&differences);
}

#[test]
fn evaluate_as_nix_does() {
    check("okay", "exp", false);
}

#[test]
fn fail_as_nix_does() {
    check("fail", "err", true);
}

#[test]
fn golden_files_come_from_nix() {
    let Some(nix) = Nix::find() else { return };
    check_golden(&nix, "okay", "exp", false);
    check_golden(&nix, "fail", "err", true);
    check_golden(&nix, "derivations", "exp", false);
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
