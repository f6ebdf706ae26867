//! Asking C++ Nix, and making up inputs.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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

    /// Evaluates `expression`; gives what was printed, or the last error line.
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
            stdout.pop_if(|byte| *byte == b'\n');
            return Ok(stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let start = stderr.rfind("error: ").unwrap_or(0);
        Err(stderr[start..].trim_start_matches("error: ").trim_end().to_owned())
    }

    /// Evaluates `expression` to JSON.
    pub(crate) fn json(&self, expression: &[u8]) -> Result<serde_json::Value, String> {
        let text = self.run(&["--json"], expression)?;
        Ok(serde_json::from_slice(&text).expect("the oracle prints JSON"))
    }
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

/// A hexadecimal number with enough digits for a message.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
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
