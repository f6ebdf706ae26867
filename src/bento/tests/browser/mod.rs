//! A real Chromium, spoken to over its DevTools protocol through a pair of pipes.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The names that it has.
const PROGRAMS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

pub struct Browser {
    _dir: TempDir,
    child: Child,
    to: File,
    from: BufReader<File>,
    session: Option<String>,
    number: u64,
}

impl Browser {
    /// Starts it; `None`, with the reason, where there is none.
    pub fn new() -> Option<Self> {
        let there = |program: &&&str| {
            Command::new("sh").args(["-c", &format!("command -v {program} > /dev/null")]).status().unwrap().success()
        };
        let Some(program) = PROGRAMS.iter().find(there) else {
            eprintln!("skipped: there is no chromium");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = dir.path().join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            // both ways, so that opening waits for nobody
            (File::options().read(true).write(true).open(&path).unwrap(), path)
        };
        let ((to, to_path), (from, from_path)) = (pipe("to"), pipe("from"));
        let script = format!(
            "exec {program} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
             --user-data-dir={}/profile --remote-debugging-pipe 3<{} 4>{}",
            dir.path().display(),
            to_path.display(),
            from_path.display()
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { _dir: dir, child, to, from: BufReader::new(from), session: None, number: 0 })
    }

    /// Sends a command, and gives its result.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut answer = Vec::new();
            self.from.read_until(0, &mut answer).unwrap();
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == self.number {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Opens a page and waits until it is there.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        self.session = None;
        let target = self.call("Target.createTarget", &json!({ "url": url }))["targetId"].clone();
        let session = self.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        self.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'");
    }

    /// The value of an expression in the page.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        self.call("Runtime.evaluate", &parameters)["result"]["value"].clone()
    }

    /// Waits until an expression in the page is true.
    #[track_caller]
    pub fn wait_for(&mut self, expression: &str) {
        let start = Instant::now();
        while self.evaluate(expression) != true {
            let page = self.evaluate("document.body?.innerText");
            assert!(start.elapsed() < Duration::from_secs(60), "never: {expression}\n{page}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes what it shows into a file, as PNG.
    pub fn screenshot(&mut self, file: &Path) {
        use base64::Engine;
        let data = self.call("Page.captureScreenshot", &json!({}))["data"].as_str().unwrap().to_owned();
        std::fs::write(file, base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
