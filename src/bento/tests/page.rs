//! The page for the user at the machine: what it shows, to whom, and what can be done with it.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod browser;
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use browser::Browser;
use common::Lab;

/// The page of a laboratory's host, as a process.
struct Page {
    child: Child,
    port: u16,
}

impl Page {
    fn serve(lab: &Lab, more: &[&str]) -> Self {
        let config = lab.path("hosts/web/agent.toml");
        let words = ["agent", "page", "--config", config.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let mut child = lab.command(&[&words, more].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
        Self { child, port }
    }

    /// The status and the text of the answer to a request; lines are more of its header.
    fn ask(&self, request: &str, lines: &[&str], body: &str) -> (u16, String) {
        let host = format!("Host: localhost:{}", self.port);
        let host = if lines.iter().any(|line| line.starts_with("Host:")) { None } else { Some(host.as_str()) };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        ask(stream, request, &host.into_iter().chain(lines.iter().copied()).collect::<Vec<_>>(), body)
    }

    fn get(&self, path: &str) -> String {
        let (status, text) = self.ask(&format!("GET {path}"), &[], "");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The token in its form.
    fn token(&self) -> String {
        let text = self.get("/");
        let (_, rest) = text.split_once("name=\"token\" value=\"").unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    }

    /// What another user of this machine gets.
    fn ask_as(&self, uid: u32, path: &str) -> String {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: localhost:{port}\\r\\n\
             Connection: close\\r\\n\\r\\n' >&3; timeout 2 cat <&3; true",
            port = self.port
        );
        let uid = uid.to_string();
        let said = Command::new("setpriv")
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "bash", "-c", &script])
            .output()
            .unwrap();
        String::from_utf8(said.stdout).unwrap()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Speaks HTTP.
fn ask(mut stream: impl Read + Write, request: &str, lines: &[&str], body: &str) -> (u16, String) {
    let lines = lines.join("\r\n");
    let kind = if body.is_empty() { "" } else { "Content-Type: application/x-www-form-urlencoded\r\n" };
    let length = body.len();
    let text =
        format!("{request} HTTP/1.1\r\n{lines}\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

fn publish(lab: &Lab, system: &str) {
    lab.flake_host("web", system);
    lab.bento(&["deploy"]).succeeds();
}

/// How many attempts the host made.
fn attempts(lab: &Lab) -> usize {
    lab.reports("web").len()
}

#[test]
fn it_shows_how_the_machine_stands() {
    let Some(lab) = Lab::new() else { return };
    let page = Page::serve(&lab, &[]);
    assert!(page.get("/").contains("No release was taken up yet."));
    publish(&lab, "build = \"echo '<script>alert(1)</script>'; exit 1\";");
    lab.agent("web").fails_with(&["the build failed"]);
    let text = page.get("/");
    assert!(text.contains("could not be taken up") && text.contains("the build failed"), "{text}");
    publish(&lab, "text = \"good\";");
    lab.agent("web").succeeds();
    let text = page.get("/");
    let running = lab.running("web").unwrap();
    assert!(text.contains(running.strip_prefix("/nix/store/").unwrap()), "{text}");
    assert!(text.contains("This machine runs what it should.") && !text.contains("id=\"reboot\""), "{text}");
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&["agent", "hold", "--reason", "<b>bold</b>", "--config", config.to_str().unwrap()]).succeeds();
    assert!(page.get("/").contains("&lt;b&gt;bold&lt;/b&gt;"));
}

#[test]
fn it_answers_this_machine_alone_under_its_own_name() {
    let Some(lab) = Lab::new() else { return };
    let config = lab.path("hosts/web/agent.toml");
    let wide = ["agent", "page", "--listen", "0.0.0.0:0", "--config", config.to_str().unwrap()];
    lab.bento(&wide).fails_with(&["for this machine alone"]);
    let page = Page::serve(&lab, &[]);
    // a name that somebody has led here, of which the browser thinks that the page is his
    for host in ["Host: evil.example", "Host: evil.example:51337", "Host: localhost", "Host: localhost:80", "Host:"] {
        let (status, text) = page.ask("GET /", &[host], "");
        assert!(matches!(status, 400 | 421) && !text.contains("token"), "{host}: {text}");
        let (status, _) = page.ask("GET /events", &[host], "");
        assert!(matches!(status, 400 | 421), "{host}");
    }
    let own = format!("Host: 127.0.0.1:{}", page.port);
    let (status, text) = page.ask("GET /", &[&own], "");
    assert_eq!(status, 200);
    for rule in ["default-src 'none'", "frame-ancestors 'none'", "nosniff", "no-store", "same-origin"] {
        assert!(text.contains(rule), "{rule}: {text}");
    }
    assert_eq!(page.ask("GET /nothing", &[], "").0, 404);
    assert_eq!(page.ask("GET /update", &[], "").0, 405);
}

#[test]
fn only_its_own_form_starts_the_agent() {
    let Some(lab) = Lab::new() else { return };
    publish(&lab, "text = \"one\";");
    let page = Page::serve(&lab, &[]);
    let token = page.token();
    let right = format!("token={token}");
    let refused: [(&[&str], &str); 6] = [
        (&[], ""),
        (&[], "token="),
        (&[], "token=0000"),
        (&["Origin: http://evil.example"], &right),
        (&["Origin: null"], &right),
        (&["Sec-Fetch-Site: cross-site"], &right),
    ];
    for (lines, body) in refused {
        let (status, text) = page.ask("POST /update", lines, body);
        assert!((400..500).contains(&status), "{lines:?} {body}: {text}");
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(attempts(&lab), 0);
    let origin = format!("Origin: http://localhost:{}", page.port);
    let (status, text) = page.ask("POST /update", &[&origin, "Sec-Fetch-Site: same-origin"], &right);
    assert_eq!(status, 303, "{text}");
    let start = Instant::now();
    while attempts(&lab) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    // another page's token is none of this one's
    assert_ne!(Page::serve(&lab, &[]).token(), token);
}

#[test]
fn strangers_see_nothing_and_others_no_log() {
    let Some(lab) = Lab::new() else { return };
    // the store outlives the test, and what is in it already is not built
    let root = lab.path("");
    publish(&lab, &format!("build = \"echo a secret of {}\"; text = \"one\";", root.display()));
    lab.agent("web").succeeds();
    let page = Page::serve(&lab, &[]);
    // a service, and nobody
    for uid in [61, 65534] {
        for path in ["/", "/events", "/page.js"] {
            let said = page.ask_as(uid, path);
            assert!(said.starts_with("HTTP/1.1 403") && !said.contains("token"), "{uid}: {said}");
        }
    }
    // somebody who may not read the journal
    let said = page.ask_as(1234, "/");
    assert!(said.starts_with("HTTP/1.1 200") && !said.contains("id=\"log\"") && said.contains("token"), "{said}");
    let said = page.ask_as(1234, "/events");
    assert!(said.contains("event: standing") && !said.contains("event: log") && !said.contains("secret"), "{said}");
    // the superuser
    let said = page.ask_as(0, "/events");
    assert!(said.contains("event: log") && said.contains("a secret"), "{said}");
}

#[test]
fn it_is_on_a_unix_socket_too_and_ends_when_nobody_looks() {
    let Some(lab) = Lab::new() else { return };
    let socket = lab.path("hosts/page.sock");
    let mut page = Page::serve(&lab, &["--socket", socket.to_str().unwrap(), "--idle", "2"]);
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    let (status, text) = ask(UnixStream::connect(&socket).unwrap(), "GET /", &["Host: localhost"], "");
    assert_eq!(status, 200, "{text}");
    // as long as somebody looks, it stays
    let mut stream = TcpStream::connect(("127.0.0.1", page.port)).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: localhost:{}\r\n\r\n", page.port).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(page.child.try_wait().unwrap().is_none());
    drop(stream);
    let start = Instant::now();
    while page.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_notification_says_what_came_of_it() {
    let Some(lab) = Lab::new() else { return };
    let said = lab.path("said");
    let script = format!("echo \\\"$BENTO_HOST $BENTO_RELEASE $BENTO_OUTCOME $BENTO_REASON\\\" >> {}", said.display());
    lab.configure_agent("web", &format!("[notify]\ncommand = [\"sh\", \"-c\", \"{script}\"]"));
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    publish(&lab, "build = \"exit 1\";");
    lab.agent("web").fails_with(&["the build failed"]);
    let text = fs::read_to_string(&said).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].trim(), "web 1 success");
    assert!(lines[1].starts_with("web 2 failure the build failed"), "{text}");
    // one that does not work keeps nobody from anything
    lab.configure_agent("web", "[notify]\ncommand = [\"/nowhere\"]");
    publish(&lab, "text = \"three\";");
    lab.agent("web").succeeds();
}

#[test]
fn in_a_browser_the_button_updates_and_the_log_is_live() {
    let Some(lab) = Lab::new() else { return };
    let Some(mut browser) = Browser::new() else { return };
    publish(&lab, "text = \"one\";");
    lab.agent("web").succeeds();
    let first = lab.running("web").unwrap();
    std::os::unix::fs::symlink(&first, lab.path("hosts/web/run/booted-system")).unwrap();
    let page = Page::serve(&lab, &[]);
    browser.open(&format!("http://localhost:{}/", page.port));
    let base = |path: &str| path.strip_prefix("/nix/store/").unwrap().to_owned();
    assert_eq!(browser.evaluate("document.querySelector('#system').innerText"), base(&first));
    // the style and the script are let through by the page's own rules
    assert_eq!(browser.evaluate("getComputedStyle(document.querySelector('dl')).display"), "grid");
    browser.wait_for("document.querySelector('#log').innerText.includes('release 1 for web')");

    // a system with another kernel, whose build takes its time
    let go = lab.path("go");
    publish(
        &lab,
        &format!(
            "build = \"mkdir -p \\$out; echo k > \\$out/kernel; echo first; until [ -e {} ]; do sleep 0.1; done; echo '<i>last</i>'\";",
            go.display()
        ),
    );
    browser.evaluate("document.querySelector('#update').click()");
    browser.wait_for("document.querySelector('#log')?.innerText.includes('first')");
    browser.wait_for("document.querySelector('.state').innerText === 'The agent is at work.'");
    browser.wait_for("document.querySelector('#update').disabled");
    assert_eq!(lab.running("web").unwrap(), first);
    fs::write(&go, "").unwrap();
    // all of it without loading the page again
    browser.evaluate("window.sameDocument = true");
    browser.wait_for("document.querySelector('#log').innerText.includes('<i>last</i>')");
    browser.wait_for("document.querySelector('.state').innerText === 'This machine runs what it should.'");
    browser.wait_for("!document.querySelector('#update').disabled");
    let second = lab.running("web").unwrap();
    assert_ne!(second, first);
    assert_eq!(browser.evaluate("document.querySelector('#system').innerText"), base(&second));
    assert_eq!(browser.evaluate("window.sameDocument"), true);
    assert!(browser.evaluate("document.querySelector('#reboot').innerText").as_str().unwrap().contains("Restart"));
    assert!(browser.evaluate("document.querySelector('#last').innerText").as_str().unwrap().starts_with("success"));
    // another site that is led here by its name server can't read it, nor press the button
    browser.open(&format!("http://127.0.0.1:{}/", page.port));
    let other = format!("fetch('http://localhost:{}/').then(() => 'read', () => 'kept out')", page.port);
    assert_eq!(browser.evaluate(&other), "kept out");
}
