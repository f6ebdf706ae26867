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

/// What an expression comes to, as JSON, where `nix.conf` says `conf`, and with these options.
fn under(home: &Path, conf: &str, options: &[&str], expression: &str) -> Result<String, String> {
    fs::write(home.join("nix.conf"), conf).unwrap();
    let mut command = eval(Path::new("/"));
    command.env("HOME", home).env("NIX_CONF_DIR", home).env_remove("NIX_CONFIG").env("NIX_REMOTE", "dummy://");
    let output = command.args(options).args(["--json", "--strict", "-E", expression]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn the_machine_s_configuration_counts() {
    // what is expected is what `nix-instantiate` of Nix 2.34.8 gives
    let home = tempfile::tempdir().unwrap();
    let under = |conf: &str, options: &[&str], expression: &str| under(home.path(), conf, options, expression);
    let pipe = "1 |> (x: x + 1)";
    assert!(under("", &[], pipe).unwrap_err().contains("experimental Nix feature 'pipe-operators' is disabled"));
    assert_eq!(under("experimental-features = flakes pipe-operators", &[], pipe).unwrap(), "2");
    assert_eq!(under("extra-experimental-features = pipe-operators # |>", &[], pipe).unwrap(), "2");
    let no_more = ["--experimental-features", "flakes"];
    assert!(under("experimental-features = pipe-operators", &no_more, pipe).is_err());

    let build = r#"import (derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; })"#;
    let refusal = under("allow-import-from-derivation = false", &[], build).unwrap_err();
    assert!(refusal.contains("because the option 'allow-import-from-derivation' is disabled"), "{refusal}");
    let allowed = under("allow-import-from-derivation = false", &["--allow-import-from-derivation"], build);
    assert!(!allowed.unwrap_err().contains("is disabled"));

    let system = "builtins.currentSystem";
    assert_eq!(under("eval-system = riscv64-linux\nsystem = i686-linux", &[], system).unwrap(), r#""riscv64-linux""#);
    assert_eq!(under("system = i686-linux", &["--system", "armv7l-linux"], system).unwrap(), r#""armv7l-linux""#);
    assert!(under("max-call-depth = 20", &[], "let f = x: if x == 0 then 0 else f (x - 1); in f 100").is_err());
    assert!(under("pure-eval = true", &[], system).is_err());
    assert!(under("pure-eval = true", &["--impure"], system).is_ok());
}

#[test]
fn the_search_path_is_the_machine_s_with_its_channels_last() {
    // what is expected is what `nix-instantiate` of Nix 2.34.8 gives
    let home = tempfile::tempdir().unwrap();
    let path = r#"map (x: "${x.prefix}|${x.path}") (builtins.filter (x: x.path != "/nix/var/nix/profiles/per-user/root/channels") builtins.nixPath)"#;
    let under = |conf: &str, options: &[&str]| {
        let found = under(home.path(), conf, options, path).unwrap();
        found.replace(home.path().to_str().unwrap(), "HOME")
    };
    assert_eq!(under("nix-path = a=/x /y", &[]), r#"["a|/x","|/y"]"#);
    fs::create_dir_all(home.path().join(".nix-defexpr/channels")).unwrap();
    let channels = r#""|HOME/.nix-defexpr/channels""#;
    assert_eq!(under("", &[]), format!("[{channels}]"));
    assert_eq!(under("nix-path = a=/x\nextra-nix-path = b=/y", &[]), format!(r#"["a|/x","b|/y",{channels}]"#));
    let more = ["--option", "extra-nix-path", "c=/z", "-I", "d=/first"];
    assert_eq!(under("nix-path = a=/x", &more), format!(r#"["d|/first","a|/x","c|/z",{channels}]"#));
    assert_eq!(under("nix-path = a=/x", &["--option", "nix-path", "c=/z"]), format!(r#"["c|/z",{channels}]"#));
    assert_eq!(under("restrict-eval = true\nnix-path = a=/x", &[]), r#"["a|/x"]"#);
    fs::create_dir_all(home.path().join(".local/state/nix/defexpr/channels")).unwrap();
    let elsewhere = r#"["|HOME/.local/state/nix/defexpr/channels"]"#;
    assert_eq!(under("use-xdg-base-directories = true", &[]), elsewhere);
    let mut command = eval(Path::new("/"));
    command.env("HOME", home.path()).env("NIX_PATH", "n=/n").env("NIX_CONFIG", "nix-path = a=/x");
    let output = command.args(["--json", "--strict", "-E", path]).output().unwrap();
    let found = String::from_utf8(output.stdout).unwrap().replace(home.path().to_str().unwrap(), "HOME");
    assert_eq!(found.trim_end(), format!(r#"["n|/n",{channels}]"#));
}
