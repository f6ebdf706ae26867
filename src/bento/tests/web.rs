//! The hub's web page: what it shows, to whom, and what a browser makes of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bento::status::HostState;
use common::{Lab, free_port};
use serde_json::{Value, json};
use tempfile::TempDir;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/monitoring");

/// A system's store path, told from others by a letter that a hash can have.
fn system(letter: char, host: &str) -> String {
    format!("/nix/store/{}-nixos-system-{host}-26.11", letter.to_string().repeat(32))
}

/// A fleet whose hub is a directory with files as `bento deploy` and hosts would have left them.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(hosts: &[&str]) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.write("fleet/bento.toml", format!("[hub]\ndirectory = \"{}\"\n", place.path("hub").display()));
        place.write("hub/.fleet.json", json!({ "schema": 1, "hosts": hosts }).to_string());
        place
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // as everything comes to a hub: whole, by a rename
        let temporary = path.with_extension("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    /// Publishes a release, so many minutes ago, of files that are texts.
    fn publish(&self, host: &str, serial: u64, letter: char, minutes: i64, files: &[(&str, &str, &str)]) {
        fs::create_dir_all(self.path(&format!("hub/{host}/logs"))).unwrap();
        fs::create_dir_all(self.path(&format!("hub/{host}/releases/{serial}"))).unwrap();
        let mut listed = Vec::new();
        for (path, mode, text) in files {
            self.write(&format!("hub/{host}/releases/{serial}/{path}"), text);
            let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
            listed.push(json!({ "path": path, "mode": mode, "size": text.len(), "blake3": hash }));
        }
        let manifest = json!({
            "schema": 1, "serial": serial, "created": ago(minutes), "host": host, "mode": "source", "kind": "flake",
            "toplevel": system(letter, host), "drv_path": format!("{}.drv", system(letter, host)),
            "policy": { "reboot": false, "self_update": false }, "files": listed
        });
        self.write(&format!("hub/{host}/releases/{serial}.json"), manifest.to_string());
        self.write(&format!("hub/{host}/manifest.json"), manifest.to_string());
    }

    /// A host reports what it came to, so many minutes ago, and leaves a log.
    fn report(&self, host: &str, serial: u64, outcome: &str, letters: (char, char), minutes: i64, more: Value) {
        let (previous, running) = letters;
        let base = system(running, host).rsplit('/').next().unwrap().to_owned();
        let log = format!("20261121-{serial:04}_{base}_{outcome}.log.gz");
        let mut report = json!({
            "schema": 1, "host": host, "serial": serial, "attempt": 1, "outcome": outcome, "stage": "done",
            "previous": system(previous, host), "running": system(running, host), "started": ago(minutes + 1),
            "finished": ago(minutes), "log": log, "agent": "0.1.0"
        });
        report.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        write!(
            packed,
            "release {serial} for {host}\nfetched and verified 11 files\n{}\n",
            more["text"].as_str().unwrap_or("done")
        )
        .unwrap();
        self.write(&format!("hub/{host}/logs/{log}"), packed.finish().unwrap());
        self.write(&format!("hub/{host}/logs/report-{serial}-1.json"), report.to_string());
    }

    /// A host polls.
    fn poll(&self, host: &str, letter: char, more: Value) {
        let mut presence = json!({
            "schema": 1, "host": host, "serial": 1, "running": system(letter, host), "booted": system(letter, host),
            "failed_units": 0, "interval": 900, "time": ago(0), "agent": "0.1.0"
        });
        presence.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.write(&format!("hub/{host}/logs/seen.json"), presence.to_string());
    }

    /// A fleet of six hosts, of which half are well.
    fn fleet() -> Self {
        let place = Self::new(&["build", "db", "laptop", "router", "web1", "web2"]);
        let (flake, more) = ("{\n  port = 80;\n  tls = false;\n}\n", "{\n  port = 443;\n  tls = true;\n}\n");
        for (host, minutes) in [("web1", 41), ("web2", 33)] {
            place.publish(host, 1, 'a', 4000, &[("flake.nix", "0644", flake), ("secrets/key", "0600", "hidden one")]);
            place.publish(host, 2, 'b', 45, &[("flake.nix", "0644", more), ("secrets/key", "0600", "hidden two")]);
            place.report(host, 1, "success", ('9', 'a'), 3990, json!({}));
            place.report(host, 2, "success", ('a', 'b'), minutes, json!({}));
            place.poll(host, 'b', json!({ "serial": 2 }));
        }
        place.publish("db", 1, 'c', 4000, &[]);
        place.publish("db", 2, 'd', 45, &[]);
        place.report("db", 1, "success", ('9', 'c'), 3980, json!({}));
        let reason = "the hub can no longer be reached <img src=x onerror='window.injected = 1'>\u{202e}";
        place.report(
            "db",
            2,
            "rollback",
            ('c', 'c'),
            30,
            json!({ "reason": reason, "text": "<script>window.injected = 2</script>" }),
        );
        place.poll("db", 'c', json!({ "failed_units": 2 }));
        place.publish("router", 1, 'f', 3000, &[]);
        place.report("router", 1, "success", ('8', 'f'), 2990, json!({}));
        place.poll("router", 'f', json!({ "booted": system('8', "router"), "reboot_needed": true }));
        place.publish("build", 1, 'g', 10, &[]);
        place
    }

    /// The program, on this fleet.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bento"));
        command.args(arguments).env("BENTO_DIR", self.path("fleet")).env_remove("NIX_PATH").stdin(Stdio::null());
        command
    }

    /// Serves the page.
    fn serve(&self, more: &[&str]) -> Server {
        Server::start(self.command(&[&["hub", "web", "--listen", "127.0.0.1:0"], more].concat()))
    }
}

/// So many minutes ago.
fn ago(minutes: i64) -> String {
    (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes)).to_string()
}

/// A program that serves a page, until it is dropped.
struct Server {
    process: Child,
    address: String,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(header, _)| header == name).map_or("", |(_, value)| value)
    }
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| Some(line.unwrap().strip_prefix("the page is at ")?.trim_end_matches('/').to_owned()));
        Self { process, address: address.expect("it says where the page is") }
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = agent.run(request.body(()).unwrap()).unwrap();
        let headers =
            response.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let (status, headers) = (response.status().as_u16(), headers.collect());
        Answer { status, headers, body: response.body_mut().read_to_string().unwrap() }
    }

    #[track_caller]
    fn get(&self, path: &str) -> String {
        let answer = self.ask("GET", path, &[]);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[track_caller]
fn has(page: &str, texts: &[&str]) {
    for text in texts {
        assert!(page.contains(text), "there is no {text:?} in {page}");
    }
}

#[test]
fn the_page_shows_where_each_host_stands() {
    let place = Place::fleet();
    let server = place.serve(&[]);
    let page = server.get("/");
    has(
        &page,
        &[
            "6 hosts",
            "2 up to date",
            "1 rollbacked",
            "1 reboot needed",
            "1 new machine",
            "1 not published",
            "2 failed units",
        ],
    );
    has(
        &page,
        &[
            "<a href=\"/hosts/db\">db</a>",
            "<code title=\"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-nixos-system-web1-26.11\">bbbbbbbb</code>",
        ],
    );
    let some = server.get("/?state=rollbacked");
    assert!(some.contains("/hosts/db") && !some.contains("/hosts/web1"), "{some}");
    assert_eq!(server.ask("GET", "/?state=splendid", &[]).status, 404);
    // what does not change is not there, and nothing can be changed
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert_eq!(server.ask(method, "/", &[]).status, 405, "{method}");
        assert_eq!(server.ask(method, "/hosts/db", &[]).status, 405, "{method}");
    }
    for path in [
        "/hosts/nobody",
        "/hosts/..",
        "/hosts/%2e%2e%2f",
        "/hosts/db/logs/..%2f..%2fmanifest.json",
        "/hosts/db/logs/seen.json",
        "/hosts/db/releases/7",
        "/hosts/db/releases/1",
        "/hosts/%00",
        "/.fleet.json",
        "/hub",
    ] {
        let answer = server.ask("GET", path, &[]);
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
    }
}

#[test]
fn a_host_has_a_page_with_its_history_its_log_and_what_releases_changed() {
    let place = Place::fleet();
    let server = place.serve(&[]);
    let page = server.get("/hosts/web1");
    has(
        &page,
        &["up to date", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-nixos-system-web1-26.11", "href=\"/hosts/web1/releases/2\""],
    );
    has(
        &page,
        &["<svg class=\"timeline\"", "should run", "release 2, attempt 1: success", "fetched and verified 11 files"],
    );
    let release = server.get("/hosts/web1/releases/2");
    has(
        &release,
        &["<span class=\"removed\">-  port = 80;</span>", "<span class=\"added\">+  port = 443;</span>", "secrets/key"],
    );
    assert!(!release.contains("hidden"), "{release}");
    let log = "20261121-0002_cccccccccccccccccccccccccccccccc-nixos-system-db-26.11_rollback.log.gz";
    has(&server.get("/hosts/db"), &[&format!("href=\"/hosts/db/logs/{log}\"")]);
    has(&server.get(&format!("/hosts/db/logs/{log}")), &["release 2 for db", "&lt;script&gt;window.injected = 2"]);
    // a log that never ends is shown from its end
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for number in 0..1_000_000 {
        writeln!(packed, "line {number}").unwrap();
    }
    place.write(&format!("hub/db/logs/{log}"), packed.finish().unwrap());
    let long = server.get(&format!("/hosts/db/logs/{log}"));
    has(&long, &["Only its end is shown", "line 999999"]);
    assert!(long.len() < 5 << 20 && !long.contains("line 17\n"), "{}", long.len());
    place.write(&format!("hub/db/logs/{log}"), "no archive");
    has(&server.get("/hosts/db"), &["is damaged"]);
    let timeline = server.get("/timeline");
    has(
        &timeline,
        &[
            "<svg class=\"timeline\"",
            "href=\"/hosts/db\"",
            "release 2, attempt 1: rollback",
            "class=\"outcome-rollback\"",
        ],
    );
}

#[test]
fn what_hosts_say_is_text_and_nothing_else() {
    let place = Place::fleet();
    let nasty = "\"><script>alert(1)</script>";
    place.report("web2", 2, "failure", ('a', 'a'), 20, json!({ "reason": nasty, "failed_units": [nasty] }));
    place.write("hub/web2/logs/<script>alert(1)<", "x");
    place.write("hub/<img src=x>", "x");
    let server = place.serve(&[]);
    for path in [
        "/",
        "/hosts/web2",
        "/hosts/db",
        "/timeline",
        "/?state=failing",
        "/hosts/<script>alert(1)",
        "/?state=<script>alert(1)",
    ] {
        let answer = server.ask("GET", &path.replace('<', "%3C").replace('>', "%3E"), &[]);
        let text = answer.body.to_lowercase();
        assert!(
            !text.contains("<script>alert") && !text.contains("<img") && !text.contains('\u{202e}'),
            "{path}: {text}"
        );
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    has(&server.get("/hosts/web2"), &["&lt;script&gt;alert(1)"]);
}

#[test]
fn a_hub_that_is_damaged_is_shown_as_far_as_it_can_be_read() {
    let place = Place::fleet();
    place.write("hub/notes.txt", "mine");
    fs::create_dir(place.path("hub/no host")).unwrap();
    let server = place.serve(&[]);
    has(&server.get("/"), &["notes.txt", "no host can have that name", "6 hosts"]);
    // one host whose logs are none, one whose manifest is none, one whose report is none
    fs::remove_dir_all(place.path("hub/web1/logs")).unwrap();
    place.write("hub/web1/logs", "no directory");
    place.write("hub/web2/manifest.json", "{ \"schema\": 7 }");
    place.write("hub/db/logs/report-3-1.json", "{");
    let page = server.get("/");
    has(
        &page,
        &["1 damaged release", "2 corrupt report", "cannot list", "schema 7", "report-3-1.json", "1 reboot needed"],
    );
    has(&server.get("/hosts/web1"), &["corrupt report", "cannot list"]);
    has(&server.get("/hosts/web2"), &["damaged release", "schema 7"]);
    place.write("hub/web2/releases/1.json", "{");
    has(&server.get("/hosts/web2"), &["releases/1.json"]);
    assert_eq!(server.ask("GET", "/hosts/web2/releases/2", &[]).status, 500);
    // and what is there for all of them
    place.write("hub/.fleet.json", "[");
    place.write("hub/.holds.json", "[");
    let page = server.get("/");
    has(
        &page,
        &[
            "role=\"alert\"",
            "hosts may be missing here",
            ".fleet.json is damaged",
            ".holds.json is damaged",
            "/hosts/router",
        ],
    );
    has(&server.get("/metrics"), &["bento_hub_problems 2\n"]);
    // the command line says nothing that may be wrong
    let status = place.command(&["status", "--json"]).output().unwrap();
    assert!(
        !status.status.success() && String::from_utf8_lossy(&status.stderr).contains(".fleet.json is damaged"),
        "{status:?}"
    );
    fs::remove_dir_all(place.path("hub")).unwrap();
    has(&server.get("/"), &["cannot read", "There is no host to show"]);
    assert_eq!(server.ask("GET", "/hosts/db", &[]).status, 404);
}

#[test]
fn others_than_this_machine_need_the_token() {
    let place = Place::fleet();
    // nobody opens it to the world by mistake
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let refused = place.command(&["hub", "web", "--listen", listen]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains("everybody who can reach") && said.contains("127.0.0.1"),
            "{said}"
        );
    }
    let token = place.path("token");
    let file = token.to_str().unwrap();
    for (text, why) in
        [("short\n", "at least 20"), ("a token that has spaces in it", "without spaces"), ("", "at least 20")]
    {
        place.write("token", text);
        let refused = place.command(&["hub", "web", "--listen", "0.0.0.0:0", "--token", file]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(why) && said.contains(file), "{said}");
    }
    place.write("token", "Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI\n");
    let server = place.serve(&["--token", file]);
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    for path in
        ["/", "/events", "/metrics", "/timeline", "/hosts/db", "/hosts/nobody", "/style.css", "/live.js", "/nothing"]
    {
        for wrong in [
            None,
            Some("Bearer wrong".to_owned()),
            Some(basic("admin:wrong")),
            Some(basic("no colon")),
            Some("Basic !!!".to_owned()),
            Some("Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI".to_owned()),
            Some("Digest Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI".to_owned()),
        ] {
            let wrong = wrong.unwrap_or_default();
            let headers: &[(&str, &str)] = if wrong.is_empty() { &[] } else { &[("authorization", &wrong)] };
            let answer = server.ask("GET", path, headers);
            assert_eq!(answer.status, 401, "{path} {wrong}");
            assert!(answer.header("www-authenticate").starts_with("Basic realm=\"bento\""), "{answer:?}");
            assert!(!answer.body.contains("rollbacked"), "{path} {wrong}");
        }
    }
    for right in ["Bearer Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI", &basic("anyone:Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI")] {
        let answer = server.ask("GET", "/", &[("authorization", right), ("host", "hub.example.org")]);
        assert!(answer.status == 200 && answer.body.contains("rollbacked"), "{right}: {answer:?}");
    }
    // without one, a page from elsewhere gets nothing by a name that it makes mean this machine
    let server = place.serve(&[]);
    for (host, status) in [
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8022", 200),
        ("192.0.2.1", 403),
    ] {
        assert_eq!(server.ask("GET", "/", &[("host", host)]).status, status, "{host}");
    }
}

#[test]
fn changes_are_told_as_they_happen() {
    let place = Place::fleet();
    let server = place.serve(&[]);
    let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
    let mut response = agent.get(format!("{}/events", server.address)).call().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (sender, events) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(response.body_mut().as_reader()).lines();
        for line in lines.map_while(Result::ok).filter(|line| line.starts_with("data: ")) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let next = |limit: u64| events.recv_timeout(Duration::from_secs(limit));
    has(&next(20).unwrap(), &["2 up to date", "1 new machine"]);
    let start = Instant::now();
    place.report("build", 1, "success", ('9', 'g'), 0, json!({}));
    let mut last = next(20).unwrap();
    // a change may be seen when half of it is done
    while !last.contains("3 up to date") {
        last = next(20).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // a new host, too
    place.publish("new", 1, 'h', 0, &[]);
    place.write(
        "hub/.fleet.json",
        json!({ "schema": 1, "hosts": ["build", "db", "laptop", "new", "router", "web1", "web2"] }).to_string(),
    );
    while !last.contains("7 hosts") || !last.contains("/hosts/new") {
        last = next(20).unwrap();
    }
    // where nothing changes, nothing is told
    while next(1).is_ok() {}
    assert!(next(3).is_err());
}

/// Runs a program of Prometheus' on a text; `None` if it is not there.
fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let spawned = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut process) = spawned else {
        println!("skipped: promtool is missing");
        return None;
    };
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), said))
}

#[test]
fn prometheus_understands_the_metrics() {
    let place = Place::fleet();
    let server = place.serve(&[]);
    let answer = server.ask("GET", "/metrics", &[]);
    assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    has(
        &answer.body,
        &[
            "bento_hosts{state=\"up to date\"} 2\n",
            "bento_host_failed_units{host=\"db\"} 2\n",
            "bento_hub_problems 0\n",
        ],
    );
    let Some((ok, said)) = promtool(&["check", "metrics"], &answer.body) else { return };
    assert!(ok && said.trim().is_empty(), "{said}");
}

#[test]
fn prometheus_takes_the_alert_rules() {
    let Some((ok, said)) = promtool(&["check", "rules", &format!("{DOCS}/alerts.yml")], "") else { return };
    assert!(ok && said.contains("SUCCESS"), "{said}");
    let Some((ok, said)) = promtool(&["test", "rules", &format!("{DOCS}/alerts-test.yml")], "") else { return };
    assert!(ok && said.contains("SUCCESS"), "{said}");
}

#[test]
fn the_dashboard_and_the_alerts_are_about_metrics_that_there_are() {
    let place = Place::fleet();
    let metrics = place.serve(&[]).get("/metrics");
    let known: Vec<&str> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(known.len() > 12, "{known:?}");
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(format!("{DOCS}/dashboard.json")).unwrap()).unwrap();
    let mut used = std::collections::BTreeSet::new();
    let mut expressions = vec![fs::read_to_string(format!("{DOCS}/alerts.yml")).unwrap()];
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(panel["title"].is_string() && panel["type"].is_string() && panel["gridPos"]["w"].is_u64(), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            expressions.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for expression in &expressions {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        used.extend(words.filter(|word| word.starts_with("bento_")).map(str::to_owned));
    }
    assert!(used.len() > 8, "{used:?}");
    for metric in &used {
        assert!(known.contains(&metric.as_str()), "there is no metric {metric}; there are {known:?}");
    }
    // whatever state a person has to look after, there is an alert for it
    for state in HostState::ALL.into_iter().filter(|state| state.needs_attention()) {
        let own = match state {
            HostState::Stale => "expr: bento_host_stale == 1",
            HostState::RebootNeeded => "expr: bento_host_reboot_needed == 1",
            state => state.words(),
        };
        assert!(expressions[0].contains(own), "no alert is about {own:?}");
    }
    // each expression by itself is one that Prometheus can read
    let quoted = |text: &String| serde_json::to_string(text).unwrap();
    let rules =
        expressions[1..].iter().map(|expression| format!("      - record: x\n        expr: {}\n", quoted(expression)));
    let file = place.path("rules.yml");
    fs::write(
        &file,
        format!("groups:\n  - name: panels\n    rules:\n{}", rules.collect::<String>().replace("$host", ".*")),
    )
    .unwrap();
    let Some((ok, said)) = promtool(&["check", "rules", "--lint=none", file.to_str().unwrap()], "") else { return };
    assert!(ok, "{said}");
}

/// A real Chromium, driven as the WebDriver standard has it.
struct Browser {
    driver: Child,
    session: String,
    /// What Chromium leaves behind, too.
    _dir: TempDir,
}

impl Browser {
    /// `None` if this machine has none.
    fn new(scripts: bool) -> Option<Self> {
        let found =
            |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
        if let Some(missing) = ["chromium", "chromedriver"].into_iter().find(|program| !found(program)) {
            println!("skipped: {missing} is missing");
            return None;
        }
        let port = free_port();
        let dir = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={port}")).env("TMPDIR", dir.path()).stdout(Stdio::null());
        let session = format!("http://127.0.0.1:{port}");
        let mut browser = Self { driver: driver.spawn().unwrap(), session, _dir: dir };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "chromedriver does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut arguments = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1100,760",
        ];
        if !scripts {
            arguments.push("--blink-settings=scriptEnabled=false");
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments }, "goog:loggingPrefs": { "browser": "ALL" } } } });
        let session = browser.send("/session", &wanted);
        browser.session += &format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn result(&self, response: ureq::http::Response<ureq::Body>) -> Value {
        let text = response.into_body().with_config().limit(64 << 20).read_to_string().unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["value"]["error"].is_null(), "{value}");
        value["value"].take()
    }

    fn agent() -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).build().into()
    }

    fn send(&self, path: &str, body: &Value) -> Value {
        let request = Self::agent().post(format!("{}{path}", self.session)).header("content-type", "application/json");
        self.result(request.send(body.to_string()).unwrap())
    }

    fn read(&self, path: &str) -> Value {
        self.result(Self::agent().get(format!("{}{path}", self.session)).call().unwrap())
    }

    fn open(&self, address: &str) {
        self.send("/url", &json!({ "url": address }));
    }

    /// Evaluates an expression in the page.
    fn evaluate(&self, expression: &str) -> Value {
        self.send("/execute/sync", &json!({ "script": format!("return {expression}"), "args": [] }))
    }

    #[track_caller]
    fn wait_for(&self, expression: &str) {
        let start = Instant::now();
        while self.evaluate(expression) != json!(true) {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{expression}: {}",
                self.evaluate("document.body.innerText")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the browser complains about: scripts that fail, and what the page's rules forbid.
    fn complaints(&self) -> Vec<Value> {
        let log = self.send("/se/log", &json!({ "type": "browser" }));
        log.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE").cloned().collect()
    }

    /// Keeps a picture of the page, if somebody wants one.
    fn screenshot(&self, name: &str) {
        let picture = BASE64_STANDARD.decode(self.read("/screenshot").as_str().unwrap()).unwrap();
        assert!(picture.starts_with(b"\x89PNG"));
        if let Some(dir) = std::env::var_os("BENTO_SCREENSHOTS") {
            fs::write(Path::new(&dir).join(name), picture).unwrap();
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = Self::agent().delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[test]
fn chromium_shows_the_fleet_as_it_changes() {
    let Some(browser) = Browser::new(true) else { return };
    let place = Place::fleet();
    let server = place.serve(&[]);
    browser.open(&server.address);
    browser.wait_for("document.getElementById('live').textContent === 'live'");
    browser.evaluate("window.unchanged = true");
    browser.wait_for("document.querySelectorAll('#fleet tbody tr').length === 6");
    browser.screenshot("fleet.png");
    let cell =
        "[...document.querySelectorAll('#fleet tbody tr')].find(row => row.innerText.startsWith('build')).innerText";
    browser.wait_for(&format!("{cell}.includes('new machine')"));
    place.report("build", 1, "success", ('9', 'g'), 0, json!({}));
    browser.wait_for(&format!("{cell}.includes('up to date')"));
    // by its own script, not by being loaded again
    assert_eq!(browser.evaluate("window.unchanged"), json!(true));
    // what a host said did not become a part of the page
    browser.wait_for("document.body.innerText.includes(\"<img src=x onerror='window.injected = 1'>\")");
    assert_eq!(browser.evaluate("document.images.length"), json!(0));
    for path in ["/hosts/web1", "/hosts/web1/releases/2", "/hosts/db", "/timeline"] {
        browser.open(&format!("{}{path}", server.address));
        assert_eq!(browser.evaluate("window.injected === undefined"), json!(true), "{path}");
        browser.screenshot(&format!("{}.png", path.trim_start_matches('/').replace('/', "-")));
        // nothing comes from elsewhere, and the style does come
        let origin = serde_json::to_string(&format!("{}/", server.address)).unwrap();
        let own = format!(
            "performance.getEntriesByType('resource').every(entry => entry.name.startsWith({origin}) || entry.name.startsWith('data:'))"
        );
        assert_eq!(browser.evaluate(&own), json!(true), "{path}");
        assert_eq!(
            browser.evaluate("getComputedStyle(document.querySelector('nav')).display"),
            json!("flex"),
            "{path}"
        );
        // no page is wider than the window
        assert_eq!(
            browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"),
            json!(true),
            "{path}"
        );
    }
    assert_eq!(browser.complaints(), Vec::<Value>::new());
    // a server that ends is told
    browser.open(&server.address);
    browser.wait_for("document.getElementById('live').textContent === 'live'");
    drop(server);
    browser.wait_for("document.getElementById('live').textContent.startsWith('not connected')");
}

#[test]
fn chromium_shows_the_fleet_without_scripts_and_with_a_token() {
    let Some(browser) = Browser::new(false) else { return };
    let place = Place::fleet();
    place.write("token", "Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI\n");
    let server = place.serve(&["--token", place.path("token").to_str().unwrap()]);
    browser.open(&server.address.replace("http://", "http://me:Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI@"));
    let source = browser.read("/source").as_str().unwrap().to_owned();
    has(&source, &["2 up to date", "http-equiv=\"refresh\""]);
    let found = browser.send("/elements", &json!({ "using": "css selector", "value": "#fleet tbody tr" }));
    assert_eq!(found.as_array().unwrap().len(), 6);
    browser.open(&format!("{}/hosts/db", server.address));
    has(browser.read("/source").as_str().unwrap(), &["rollbacked", "The last log"]);
}

#[test]
fn the_page_shows_what_a_real_fleet_did() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.flake_host("web", "text = \"two\";");
    lab.bento(&["deploy"]).succeeds();
    let listen = ["hub", "serve", "--listen", "127.0.0.1:0", "--web=127.0.0.1:0"];
    let server = Server::start(lab.command(&listen));
    has(&server.get("/"), &["1 rebuild pending"]);
    lab.agent("web").succeeds();
    has(&server.get("/"), &["1 up to date"]);
    let toplevel = lab.manifest("web")["toplevel"].as_str().unwrap().to_owned();
    has(
        &server.get("/hosts/web"),
        &[toplevel.rsplit('/').next().unwrap(), "what it changed", "release 2, attempt 1: success"],
    );
    let release = server.get("/hosts/web/releases/2");
    has(&release, &[&toplevel, "text = &quot;one&quot;", "text = &quot;two&quot;", "What the system is built from"]);
    // both were built here, so everything is known
    assert!(!release.contains("It is not known here"), "{release}");
    // the manifest of a release is kept as long as its files, and publishing nothing new touches nothing
    let before = common::fingerprint(&lab.path("chroot"));
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(common::fingerprint(&lab.path("chroot")), before);
    for text in ["3", "4", "5", "6"] {
        lab.flake_host("web", &format!("text = \"{text}\";"));
        lab.bento(&["deploy"]).succeeds();
    }
    assert_eq!(lab.names("chroot/web/releases").iter().filter(|name| name.ends_with(".json")).count(), 5);
    assert_eq!(server.ask("GET", "/hosts/web/releases/2", &[]).status, 404);
    let mut said = String::new();
    let mut refused = lab
        .command(&["hub", "serve", "--listen", "127.0.0.1:0", "--web=0.0.0.0:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    refused.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!refused.wait().unwrap().success() && said.contains("--token"), "{said}");
}
