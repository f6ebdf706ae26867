//! The parser, against what C++ Nix 2.34 says.
//!
//! Each `syntax/okay/NAME.nix` parses to what `nix-instantiate --parse` printed into `NAME.exp`; each `syntax/fail/NAME.nix`
//! fails with the message and the position that it printed. Adding a case is adding a file: with `BENTO_NIX` set to the
//! folder of Nix's programs, the golden files are checked against them, and written if `BENTO_BLESS` is set too.

use bento_eval::symbol::SymbolTable;
use bento_eval::syntax::{ParseError, ParseOptions, line_column, parse, show};
use bumpalo::Bump;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Stands for the folder that a case lies in.
const BASE: &str = "/dir/sub";
/// Stands for the folder above it.
const ABOVE: &str = "/dir";
const HOME: &str = "/home/user";

fn cases(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/syntax").join(kind);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of cases is readable")
        .map(|entry| entry.expect("the folder of cases is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "nix"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    files
}

/// What `--parse` prints, or the error.
fn parse_and_show(source: &[u8], base: &str, pipe_operators: bool) -> Result<Vec<u8>, ParseError> {
    let arena = Bump::new();
    let symbols = SymbolTable::new(&arena);
    let home = Some(HOME.as_bytes());
    let options = ParseOptions { base_path: base.as_bytes(), home, pipe_operators, ..ParseOptions::default() };
    let node = parse(&arena, &symbols, source, &options)?;
    let mut out = Vec::new();
    show(node, &symbols, &mut out);
    Ok(out)
}

/// An error as Nix prints it, without the source lines.
fn render(error: &ParseError, source: &[u8], file: &str) -> String {
    let location = |offset| {
        let (line, column) = line_column(source, offset);
        format!("{file}:{line}:{column}")
    };
    let previous = error.previous.map(|offset| format!(" at {}", location(offset))).unwrap_or_default();
    format!("error: {error}{previous}\n       at {}:\n", location(error.pos))
}

/// A difference between two texts, short enough to be read.
fn differ(name: &str, ours: &[u8], expected: &[u8]) -> Option<String> {
    if ours == expected {
        return None;
    }
    let common = ours.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let part = |text: &[u8]| {
        String::from_utf8_lossy(&text[common.saturating_sub(60)..text.len().min(common + 100)]).into_owned()
    };
    Some(format!("{name}:\n    ours:     {}\n    expected: {}\n", part(ours), part(expected)))
}

fn assert_none(differences: Vec<String>) {
    assert!(differences.is_empty(), "{} differ\n{}", differences.len(), differences.concat());
}

fn name(path: &Path) -> String {
    path.file_name().expect("a case has a name").to_string_lossy().into_owned()
}

fn expected(path: &Path) -> Vec<u8> {
    let path = path.with_extension("exp");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn parse_what_nix_parses() {
    let mut differences = Vec::new();
    for path in cases("okay") {
        let source = std::fs::read(&path).expect("the case is readable");
        let shown = match parse_and_show(&source, BASE, false) {
            Ok(mut shown) => {
                shown.push(b'\n');
                shown
            }
            Err(error) => error.to_string().into_bytes(),
        };
        differences.extend(differ(&name(&path), &shown, &expected(&path)));
    }
    assert_none(differences);
}

#[test]
fn fail_where_nix_fails() {
    let mut differences = Vec::new();
    for path in cases("fail") {
        let source = std::fs::read(&path).expect("the case is readable");
        let rendered = match parse_and_show(&source, BASE, false) {
            Ok(shown) => format!("parsed: {}", String::from_utf8_lossy(&shown)),
            Err(error) => render(&error, &source, &format!("{BASE}/{}", name(&path))),
        };
        differences.extend(differ(&name(&path), rendered.as_bytes(), &expected(&path)));
    }
    assert_none(differences);
}

/// Runs Nix on a file: what it prints, or its error without the source lines.
fn oracle(programs: &Path, file: &Path) -> Vec<u8> {
    let output = Command::new(programs.join("nix-instantiate"))
        .arg("--parse")
        .arg(file)
        .env("HOME", HOME)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("nix-instantiate can be run");
    if output.status.success() {
        return output.stdout;
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = error.lines().take_while(|line| !line.starts_with("            ")).collect();
    (lines.join("\n") + "\n").into_bytes()
}

#[test]
fn golden_files_are_what_nix_prints() {
    let Some(programs) = std::env::var_os("BENTO_NIX").map(PathBuf::from) else {
        println!("skipped: BENTO_NIX, the folder of Nix's programs, is not set");
        return;
    };
    let bless = std::env::var_os("BENTO_BLESS").is_some();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let base = folder.path().canonicalize().expect("the temporary folder exists");
    std::fs::create_dir(base.join("sub")).expect("the temporary folder is writable");
    let mut differences = Vec::new();
    for kind in ["okay", "fail"] {
        for path in cases(kind) {
            let copy = base.join("sub").join(name(&path));
            std::fs::copy(&path, &copy).expect("the temporary folder is writable");
            let printed = oracle(&programs, &copy);
            // byte by byte: what Nix prints need not be UTF-8
            let printed = replace(&printed, base.to_string_lossy().as_bytes(), ABOVE.as_bytes());
            assert_eq!(
                printed.starts_with(b"error: "),
                kind == "fail",
                "{}: {}",
                path.display(),
                String::from_utf8_lossy(&printed)
            );
            if bless {
                std::fs::write(path.with_extension("exp"), &printed).expect("the golden file is writable");
            }
            differences.extend(differ(&name(&path), &expected(&path), &printed));
        }
    }
    assert_none(differences);
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn nix_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the corpus is readable") {
        let entry = entry.expect("the corpus is readable");
        let kind = entry.file_type().expect("the corpus is readable");
        if kind.is_dir() {
            nix_files(&entry.path(), files);
        } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == "nix") {
            files.push(entry.path());
        }
    }
}

/// Every how many files of nixpkgs the differential test looks at one.
const STRIDE: usize = 40;

#[test]
fn show_real_files_as_nix_does() {
    let (Some(programs), Some(corpora)) = (std::env::var_os("BENTO_NIX"), std::env::var_os("BENTO_CORPORA")) else {
        println!("skipped: BENTO_NIX, the folder of Nix's programs, or BENTO_CORPORA, the folder of trees, is not set");
        return;
    };
    let (programs, corpora) = (PathBuf::from(programs), PathBuf::from(corpora));
    let mut files = Vec::new();
    nix_files(&corpora.join("nixpkgs-26.11"), &mut files);
    files.sort();
    let files: Vec<_> = files.into_iter().step_by(STRIDE).collect();
    let mut differences = Vec::new();
    // starting Nix takes longer than parsing
    for batch in files.chunks(50) {
        let output = Command::new(programs.join("nix-instantiate"))
            .arg("--parse")
            .args(batch)
            .env("HOME", HOME)
            .output()
            .expect("nix-instantiate can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut printed = output.stdout.split(|&byte| byte == b'\n');
        for path in batch {
            let source = std::fs::read(path).expect("the corpus is readable");
            let base = path.parent().expect("a file lies in a folder").to_string_lossy().into_owned();
            let ours = parse_and_show(&source, &base, false).unwrap_or_else(|error| error.to_string().into_bytes());
            differences.extend(differ(&path.to_string_lossy(), &ours, printed.next().unwrap_or_default()));
        }
    }
    assert_none(differences);
}

#[test]
fn fail_and_show_nix_own_tests_as_nix_does() {
    let (Some(programs), Some(corpora)) = (std::env::var_os("BENTO_NIX"), std::env::var_os("BENTO_CORPORA")) else {
        println!("skipped: BENTO_NIX, the folder of Nix's programs, or BENTO_CORPORA, the folder of trees, is not set");
        return;
    };
    let (programs, corpora) = (PathBuf::from(programs), PathBuf::from(corpora));
    let mut files = Vec::new();
    nix_files(&corpora.join("nix-2.34-tests/lang"), &mut files);
    let mut differences = Vec::new();
    for path in files.iter().filter(|path| name(path).starts_with("parse-")) {
        let source = std::fs::read(path).expect("the corpus is readable");
        let base = path.parent().expect("a file lies in a folder").to_string_lossy().into_owned();
        let printed = oracle(&programs, path);
        // --parse also looks for undefined variables, which is not the parser's part
        if printed.starts_with(b"error: undefined variable") {
            continue;
        }
        let ours = match parse_and_show(&source, &base, false) {
            Ok(mut shown) => {
                shown.push(b'\n');
                shown
            }
            Err(error) => render(&error, &source, &path.to_string_lossy()).into_bytes(),
        };
        differences.extend(differ(&name(path), &ours, &printed));
    }
    assert_none(differences);
}
