//! What the tests share: our evaluator, Nix, and how both are asked.

use bento_eval::value::Pos;
use bento_eval::{Error, Evaluated, Evaluator, NoHost, RenderOptions, Settings, evaluate};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where relative paths of expressions start from.
pub(crate) const BASE: &str = "/";

/// What an evaluation printed: the value, or the error's message.
pub(crate) type Printed = Result<String, String>;

/// The settings of every comparison; [`Nix::command`] gives Nix the same.
pub(crate) fn settings() -> Settings {
    Settings {
        system: "x86_64-linux".to_owned(),
        ca_derivations: true,
        impure_derivations: true,
        dynamic_derivations: true,
        git_hashing: true,
        blake3_hashes: true,
        ..Settings::default()
    }
}

fn message(error: &Error) -> String {
    error.message.lines().next().unwrap_or_default().to_owned()
}

fn print<'a>(evaluator: &Evaluator<'a>, value: Evaluated<'a>) -> Printed {
    let printed = value.and_then(|value| evaluator.force_deep(value)).and_then(|value| evaluator.print(value, true));
    printed.map(|text| String::from_utf8_lossy(&text).into_owned()).map_err(|error| message(&error))
}

/// A file's value, evaluated in full.
pub(crate) fn eval_file(settings: Settings, path: &Path) -> Printed {
    let path = path.to_str().expect("the path is UTF-8").to_owned();
    evaluate(settings, NoHost, move |evaluator| print(evaluator, evaluator.eval_file(path.as_bytes())))
        .expect("the evaluation starts")
}

/// An expression's value, evaluated in full.
pub(crate) fn eval(settings: Settings, expression: &str) -> Printed {
    evaluate(settings, NoHost, |evaluator| {
        print(evaluator, evaluator.eval_string(expression.as_bytes(), BASE.as_bytes()))
    })
    .expect("the evaluation starts")
}

/// An expression's error as users see it, with its whole trace.
pub(crate) fn rendered_error(expression: &str) -> String {
    evaluate(settings(), NoHost, |evaluator| {
        render(evaluator, evaluator.eval_string(expression.as_bytes(), BASE.as_bytes()))
    })
    .expect("the evaluation starts")
}

/// A file's error as users see it, with its whole trace.
pub(crate) fn rendered_error_of_file(path: &Path) -> String {
    let path = path.to_str().expect("the path is UTF-8").to_owned();
    evaluate(settings(), NoHost, move |evaluator| render(evaluator, evaluator.eval_file(path.as_bytes())))
        .expect("the evaluation starts")
}

fn render<'a>(evaluator: &Evaluator<'a>, value: Evaluated<'a>) -> String {
    let printed = value.and_then(|value| evaluator.force_deep(value)).and_then(|value| evaluator.print(value, true));
    match printed {
        Ok(value) => format!("no error, but {}", String::from_utf8_lossy(&value)),
        Err(error) => evaluator.render_error(&error, &RenderOptions { show_trace: true, ..RenderOptions::default() }),
    }
}

/// Whether an expression is `true`; it is evaluated no further than that needs.
pub(crate) fn is_true(expression: &str) -> Result<bool, String> {
    evaluate(settings(), NoHost, |evaluator| {
        let value = evaluator.eval_string(expression.as_bytes(), BASE.as_bytes());
        value.and_then(|value| evaluator.force_bool(value, Pos::NONE, "")).map_err(|error| message(&error))
    })
    .expect("the evaluation starts")
}

/// C++ Nix, with a store of its own.
pub(crate) struct Nix {
    programs: PathBuf,
    home: tempfile::TempDir,
}

/// The experimental features of all comparisons.
const EXPERIMENTAL: &str =
    "flakes fetch-tree ca-derivations impure-derivations dynamic-derivations git-hashing blake3-hashes";

impl Nix {
    /// Nix, or `None` (which is said) where there is none.
    pub(crate) fn find() -> Option<Nix> {
        let Some(programs) = std::env::var_os("BENTO_NIX") else {
            println!("skipped: BENTO_NIX does not name a folder with nix-instantiate");
            return None;
        };
        Some(Nix { programs: PathBuf::from(programs), home: tempfile::tempdir().expect("a directory") })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.programs.join("nix-instantiate"));
        command
            .arg("--store")
            .arg(format!("local?root={}", self.home.path().join("root").display()))
            .args(["--eval", "--strict", "--read-write-mode", "--option", "eval-system", "x86_64-linux"])
            .args(["--extra-experimental-features", EXPERIMENTAL])
            .env("HOME", self.home.path())
            .env("NIX_PATH", "")
            .env("NIX_CONF_DIR", self.home.path())
            .current_dir(BASE);
        command
    }

    /// One of Nix's programs with a store in memory.
    fn in_memory(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(["--store", "dummy://?read-only=false", "--option", "eval-system", "x86_64-linux"])
            .args(["--option", "substitute", "false"])
            .args(["--extra-experimental-features", EXPERIMENTAL, "--extra-experimental-features", "nix-command"])
            .env("HOME", self.home.path())
            .env("NIX_PATH", "")
            .env("NIX_CONF_DIR", self.home.path())
            .env("NO_COLOR", "1")
            .current_dir(BASE);
        command
    }

    /// Nix's interactive evaluator, which goes on after an error.
    pub(crate) fn repl(&self) -> Command {
        let mut command = self.in_memory("nix");
        command.args(["repl", "--show-trace"]);
        command
    }

    /// Prints the values of the files that are added as arguments, one per line, up to the first that fails.
    pub(crate) fn printer(&self) -> Command {
        let mut command = self.in_memory("nix-instantiate");
        command.args(["--eval", "--strict", "--read-write-mode"]);
        command
    }

    fn run(mut command: Command) -> Printed {
        let output = command.output().expect("nix-instantiate runs");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().collect();
        let message = lines.iter().rev().find_map(|line| line.trim_start().strip_prefix("error: "));
        Err(message.unwrap_or_else(|| panic!("Nix's error has no message: {text}")).to_owned())
    }

    /// As [`eval_file`].
    pub(crate) fn eval_file(&self, path: &Path) -> Printed {
        let mut command = self.command();
        command.arg(path);
        Nix::run(command)
    }

    /// As [`rendered_error_of_file`].
    pub(crate) fn rendered_error_of_file(&self, path: &Path) -> String {
        let output = self.command().arg("--show-trace").arg(path).output().expect("nix-instantiate runs");
        if output.status.success() {
            return format!("no error, but {}", String::from_utf8_lossy(&output.stdout));
        }
        let text = String::from_utf8_lossy(&output.stderr);
        // Warnings come first.
        let start = text.find("error:").unwrap_or_else(|| panic!("Nix says nothing of an error: {text}"));
        comparable(&text[start..])
    }
}

/// An error of Nix's without what it says of its own file for `derivation`, which only Nix has, and of its options.
fn comparable(error: &str) -> String {
    let mut lines = Vec::new();
    let mut in_own_file = false;
    for line in error.lines() {
        let starts = line.trim_start().starts_with("at «nix-internal»");
        in_own_file = starts || in_own_file && line.contains('|');
        if !in_own_file && !line.starts_with("Try 'nix-instantiate --help'") {
            lines.push(line);
        }
    }
    lines.join("\n").trim_end().to_owned()
}

/// A folder of these tests.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/eval/lang").join(name)
}

/// The cases in a folder of these tests.
pub(crate) fn cases(kind: &str) -> Vec<PathBuf> {
    let folder = folder(kind);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("the folder of cases is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "nix"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    files
}

/// Fails if there are differences, and shows them.
pub(crate) fn assert_none(differences: &[String]) {
    assert!(differences.is_empty(), "{} differ\n{}", differences.len(), differences.join("\n"));
}
