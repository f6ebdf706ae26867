//! `bento eval` prints what C++ Nix 2.34's `nix-instantiate` prints, on both channels, with the same exit status.
//!
//! The cases are in `eval/cases.json`; what is expected there was printed by `nix-instantiate`, run with the same arguments
//! (and `--eval`, except for `--parse` and `--drv-path`) in a copy of `eval/files`, whose path `DIR` stands for.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Case {
    args: Vec<String>,
    stdout: String,
    stderr: String,
    status: i32,
}

/// The base names that C++ Nix gives the derivations of [`writes_every_derivation_of_the_closure`].
const DUMPED: [&str; 3] = [
    "9kbjndxalny3i69wmzjhch0m0xj8f4qb-left.drv",
    "ii71zhcngi8wgymyxpzxkw60mwfknm8w-right.drv",
    "bajkvqq5dgw5l253s6gmfyf8kch85r67-top.drv",
];

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/eval").join(name)
}

/// A directory with a copy of the files that the cases use.
fn files() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data("files")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

fn eval(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bento"));
    command.arg("eval").current_dir(dir).env_remove("NIX_PATH").env("HOME", "/homeless").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8], dir: &Path) -> String {
    String::from_utf8_lossy(bytes).replace(dir.canonicalize().unwrap().to_str().unwrap(), "DIR")
}

#[test]
fn prints_what_nix_instantiate_prints() {
    let dir = files();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(data("cases.json")).unwrap()).unwrap();
    assert!(cases.len() > 70, "the cases are there");
    let mut different = String::new();
    for case in &cases {
        let Output { status, stdout, stderr } = eval(dir.path()).args(&case.args).output().unwrap();
        let (stdout, stderr) = (text(&stdout, dir.path()), text(&stderr, dir.path()));
        let got = (status.code(), stdout.trim_end(), stderr.trim_end());
        let wanted = (Some(case.status), case.stdout.trim_end(), case.stderr.trim_end());
        if got != wanted {
            different += &format!("{:?}:\n got {got:?}\nwant {wanted:?}\n", case.args);
        }
    }
    assert!(different.is_empty(), "{different}");
}

#[test]
fn reads_an_expression_from_standard_input() {
    let dir = files();
    let mut child = eval(dir.path()).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"(import ./default.nix).hello + 1").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n");
    assert!(output.status.success());
}

#[test]
fn writes_every_derivation_of_the_closure() {
    let dir = files();
    let expr = r#"let d = name: args: derivation ({ inherit name; builder = "b"; system = "s"; } // args);
        in d "top" { inputs = [ (d "left" { }) "${d "right" { }}" ]; }"#;
    let output = eval(dir.path()).args(["--dump-drvs", "out/drvs", "-E", expr]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let mut names: Vec<String> = fs::read_dir(dir.path().join("out/drvs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_by(|a, b| a[32..].cmp(&b[32..]));
    assert_eq!(names, DUMPED);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("/nix/store/{}\n", DUMPED[2]));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let dir = files();
    let mut child = eval(dir.path())
        .args(["--strict", "-E", "builtins.genList (x: x) 1000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 10];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut start).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(&start, b"[ 0 1 2 3 ");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn an_expression_nested_too_deeply_is_an_error() {
    let dir = files();
    let deep = "[ ".repeat(200_000);
    let mut child =
        eval(dir.path()).arg("-").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(deep.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "));
}

#[test]
fn the_search_path_is_split_as_nix_splits_it() {
    // what is expected is what `nix-instantiate` of Nix 2.34.8 gives
    for (nix_path, expected) in [
        (":a=/x", r#"["a|/x"]"#),
        ("a=/x::b=/y", r#"["a|/x","b|/y"]"#),
        ("a=/x:", r#"["a|/x"]"#),
        ("a=http://h:8080/x:b=/y", r#"["a|http://h","|8080/x","b|/y"]"#),
        ("channel:foo:b=/y", r#"["|channel:foo","b|/y"]"#),
        ("n=channel:foo:b=/y", r#"["n|channel:foo","b|/y"]"#),
        ("flake:n:/z", r#"["|flake:n","|/z"]"#),
        ("x=git+https://a/b:c=/d", r#"["x|git+https","|//a/b","c|/d"]"#),
    ] {
        let expression = r#"map (x: "${x.prefix}|${x.path}") builtins.nixPath"#;
        let mut command = eval(Path::new("/"));
        let output = command.env("NIX_PATH", nix_path).args(["--json", "--strict", "-E", expression]).output().unwrap();
        let found = String::from_utf8_lossy(&output.stdout);
        // a relative path starts from the working directory
        let found = found.replace("|/8080", "|8080").replace("x|/git+https", "x|git+https");
        assert_eq!(found.trim_end(), expected, "{nix_path}");
    }
}
