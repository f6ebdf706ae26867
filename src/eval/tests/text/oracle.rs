//! Asking C++ Nix, and making up inputs.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::golden::Case;

/// C++ Nix, found through `BENTO_NIX`.
pub(crate) struct Oracle {
    program: PathBuf,
}

impl Oracle {
    /// The oracle, or `None` after saying why `test` is skipped.
    pub(crate) fn find(test: &str) -> Option<Oracle> {
        let Some(folder) = std::env::var_os("BENTO_NIX") else {
            println!("skipped: {test} needs BENTO_NIX, the folder of C++ Nix's programs");
            return None;
        };
        let program = PathBuf::from(folder).join("nix-instantiate");
        assert!(program.is_file(), "BENTO_NIX has no {}", program.display());
        Some(Oracle { program })
    }

    /// Evaluates `expression`; gives what was printed, or the last line that starts with `error: `.
    pub(crate) fn run(&self, args: &[&str], expression: &[u8]) -> Result<Vec<u8>, String> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
        let mut child = Command::new(&self.program)
            .args(["--eval", "--strict"])
            .args(args)
            .arg("-")
            .env_clear()
            .env("PATH", path)
            .env("NIX_REMOTE", "dummy://")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the oracle starts");
        child.stdin.take().expect("a pipe").write_all(expression).expect("the oracle reads its input");
        let output = child.wait_with_output().expect("the oracle ends");
        if output.status.success() {
            let mut stdout = output.stdout;
            if stdout.last() == Some(&b'\n') {
                stdout.pop();
            }
            return Ok(stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().rfind(|line| line.trim_start().starts_with("error: "));
        Err(last.unwrap_or(&stderr).trim().to_owned())
    }

    /// Evaluates `expression` to JSON.
    pub(crate) fn json(&self, expression: &[u8]) -> Result<serde_json::Value, String> {
        let text = self.run(&["--json"], expression)?;
        Ok(serde_json::from_slice(&text).expect("the oracle prints JSON"))
    }
}

/// How the outcome of a golden case is written.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Json,
    Printed,
}

/// Checks that `ours` gives for the arguments of each case what the case says, and, if there is an oracle, that the
/// case says what the oracle makes of `expression`. In that `@1`, `@2`, … stand for the arguments as literals and
/// `@raw` for the first as it is.
pub(crate) fn check(
    test: &str,
    cases: &[Case],
    form: Form,
    expression: &str,
    ours: impl Fn(&[&[u8]]) -> Result<String, String>,
) {
    for (arguments, expected) in cases {
        let got =
            ours(arguments).unwrap_or_else(|error| format!("error: {}", error.lines().next().unwrap_or_default()));
        let shown: Vec<_> = arguments.iter().map(|a| a.escape_ascii().to_string()).collect();
        assert_eq!(got, *expected, "{test}: {shown:?}");
    }
    let Some(oracle) = Oracle::find(test) else { return };
    let args: &[&str] = if form == Form::Json { &["--json"] } else { &[] };
    let (failing, fine): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|(_, out)| out.starts_with("error: "));
    let all: Vec<u8> = fine.iter().flat_map(|case| [b"(", &*fill(expression, case.0), b")\n"].concat()).collect();
    let outcomes: Vec<&str> = fine.iter().map(|case| case.1).collect();
    let expected = match form {
        Form::Json => format!("[{}]", outcomes.join(",")),
        Form::Printed => format!("[ {} ]", outcomes.join(" ")),
    };
    let printed = oracle.run(args, &[b"[", &*all, b"]"].concat()).unwrap_or_else(|error| panic!("{test}: {error}"));
    assert_eq!(String::from_utf8_lossy(&printed), expected, "{test}");
    for (arguments, expected) in failing {
        let error = oracle.run(args, &fill(expression, arguments)).expect_err("the oracle fails, too");
        assert!(error.starts_with(expected), "{test}: {error:?} instead of {expected:?}");
    }
}

fn fill(expression: &str, arguments: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = expression;
    while let Some((before, after)) = rest.split_once('@') {
        out.extend(before.as_bytes());
        if let Some(after) = after.strip_prefix("raw") {
            out.extend(arguments[0]);
            rest = after;
        } else {
            let (number, after) = after.split_at(1);
            let index: usize = number.parse().expect("a digit follows the sign");
            out.extend(literal(arguments[index - 1]));
            rest = after;
        }
    }
    out.extend(rest.as_bytes());
    out
}

/// A string literal for `bytes`.
pub(crate) fn literal(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for &byte in bytes {
        match byte {
            b'"' | b'\\' | b'$' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            byte => out.push(byte),
        }
    }
    out.push(b'"');
    out
}

/// A small generator of pseudo-random numbers (splitmix64): the same inputs on every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}
