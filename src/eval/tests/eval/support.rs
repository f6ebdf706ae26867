//! What the tests share: our evaluator, Nix, and how both are asked.

use bento_eval::value::Pos;
use bento_eval::{Error, Evaluated, Evaluator, Host, RenderOptions, Settings, evaluate};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where relative paths of expressions start from.
pub(crate) const BASE: &str = "/";

/// A caller with an empty environment that hears nothing.
pub(crate) struct Silent;

impl Host for Silent {
    fn env(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn warn(&self, _: &str) {}
    fn trace(&self, _: &str) {}
}

/// What an evaluation printed: the value, or the error's message.
pub(crate) type Printed = Result<String, String>;

/// The settings of every comparison; [`Nix::command`] gives Nix the same.
pub(crate) fn settings() -> Settings {
    Settings {
        system: "x86_64-linux".to_owned(),
        ca_derivations: true,
        impure_derivations: true,
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
    evaluate(settings, Silent, move |evaluator| print(evaluator, evaluator.eval_file(path.as_bytes())))
        .expect("the evaluation starts")
}

/// An expression's value, evaluated in full.
pub(crate) fn eval(settings: Settings, expression: &str) -> Printed {
    evaluate(settings, Silent, |evaluator| {
        print(evaluator, evaluator.eval_string(expression.as_bytes(), BASE.as_bytes()))
    })
    .expect("the evaluation starts")
}

/// An expression's error as users see it, with its whole trace.
pub(crate) fn rendered_error(expression: &str) -> String {
    evaluate(settings(), Silent, |evaluator| {
        let value = evaluator.eval_string(expression.as_bytes(), BASE.as_bytes());
        match value.and_then(|value| evaluator.force_deep(value)) {
            Ok(value) => panic!("no error but {}", evaluator.type_of(value)),
            Err(error) => evaluator.render_error(&error, &RenderOptions { color: false, show_trace: true }),
        }
    })
    .expect("the evaluation starts")
}

/// Whether an expression is `true`; it is evaluated no further than that needs.
pub(crate) fn is_true(expression: &str) -> Result<bool, String> {
    evaluate(settings(), Silent, |evaluator| {
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
            .args(["--extra-experimental-features", "flakes fetch-tree ca-derivations impure-derivations"])
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
            .args(["--extra-experimental-features", "nix-command flakes fetch-tree ca-derivations impure-derivations"])
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
