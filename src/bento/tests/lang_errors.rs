//! The errors of Nix's own language tests, as `bento eval` prints them: message, places and the whole trace.
//!
//! `BENTO_CORPORA` names the folder with the tests (`nix-2.34-tests`). What is expected is in each test's `.err.exp`, which C++
//! Nix wrote.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many tests there are of this kind in Nix 2.34.8.
const CASES: usize = 109;

/// Those that print something else, and why.
const DIFFERENT: [(&str, &str); 7] = [
    ("attr-name-type", "the expression in an attribute path's `${}` is not kept, and shows as `…`"),
    ("derivation-name", "Nix shows places in the file that defines `derivation` there"),
    ("derivation-structuredAttrs-stack-overflow", "Nix shows places in the file that defines `derivation` there"),
    ("fromTOML-overflow", "the message is that of Nix's TOML library"),
    ("fromTOML-underflow", "the message is that of Nix's TOML library"),
    ("genericClosure-keys-uncomparable", "an empty set in a set shows as not evaluated"),
    (
        "memoised-error-trace-not-mutated",
        "what failed is evaluated again, so that its trace is that of the second time",
    ),
];

/// The arguments of a test: those in its `.flags`, without comments, or what Nix's own runner takes.
fn arguments(case: &Path) -> Vec<String> {
    let flags = fs::read_to_string(case.with_extension("flags"));
    let flags = flags.unwrap_or_else(|_| "--eval --strict --show-trace".to_owned());
    let words = flags.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let mut arguments: Vec<String> = words.map(str::to_owned).collect();
    // Nix's runner has it in its configuration.
    if !arguments.iter().any(|argument| argument.ends_with("show-trace")) {
        arguments.push("--show-trace".to_owned());
    }
    arguments
}

/// What `bento eval` says of a test in `root`, whose path its `.err.exp` calls `/pwd`.
fn error(root: &Path, case: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_bento"))
        .arg("eval")
        .args(arguments(case))
        .arg(case.strip_prefix(root).unwrap())
        .current_dir(root)
        .env_remove("NIX_PATH")
        .env("TEST_VAR", "foo")
        .env("HOME", "/homeless")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{} does not fail", case.display());
    String::from_utf8_lossy(&output.stderr).replace(root.to_str().unwrap(), "/pwd")
}

#[test]
fn prints_the_errors_that_nix_prints_for_its_own_tests() {
    let Some(corpora) = std::env::var_os("BENTO_CORPORA") else {
        println!("skipped: BENTO_CORPORA does not name a folder with nix-2.34-tests");
        return;
    };
    let root = PathBuf::from(corpora).join("nix-2.34-tests").canonicalize().unwrap();
    let mut cases: Vec<PathBuf> = fs::read_dir(root.join("lang")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "nix"));
    cases.sort();
    let (mut count, mut different) = (0, Vec::new());
    for case in &cases {
        let stem = case.file_stem().unwrap().to_str().unwrap();
        let Some(name) = stem.strip_prefix("eval-fail-") else { continue };
        count += 1;
        let expected = fs::read(case.with_extension("err.exp")).unwrap();
        if error(&root, case).trim_end() != String::from_utf8_lossy(&expected).trim_end() {
            different.push(name.to_owned());
        }
    }
    assert_eq!(count, CASES);
    assert_eq!(different, DIFFERENT.map(|(name, _)| name.to_owned()));
}
