//! Fetching from other machines, compared with C++ Nix fetching the same from the same server.

#![allow(clippy::unwrap_used)]

mod net;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use net::{Reply, Request, Server, git_http};
use serde_json::{Value, json};
use tempfile::TempDir;

const BENTO: &str = env!("CARGO_BIN_EXE_bento");
/// A token that the server wants for some repositories.
const TOKEN: &str = "s3cret";

/// Makes the repositories and archives that the server has. Runs in its own directory.
const SCRIPT: &str = r#"
set -eu
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_DATE='1700000000 +0100' GIT_COMMITTER_DATE='1700000000 +0100'
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
umask 022
git init -q -b trunk work
cd work
echo '{ outputs = _: { value = "one"; }; }' > flake.nix
mkdir dir; printf '#!/bin/sh\n' > dir/run; chmod +x dir/run; ln -s dir/run link; echo hidden > hidden
mkdir sub; echo '{ outputs = _: { value = "sub"; }; }' > sub/flake.nix
printf 'hidden export-ignore\nonly-dir/ export-ignore\ngen* export-ignore\nkept -export-ignore\n' > .gitattributes
mkdir only-dir; echo x > only-dir/x; echo x > gen-a; echo x > kept
git add -A; git commit -q -m one
git tag v1
echo '{ outputs = _: { value = "two"; }; }' > flake.nix; git commit -qam two
git branch side; git checkout -q side; echo side > side; git add side; git commit -qm side; git checkout -q trunk
cd ..
git clone -q --bare work repo
git -C repo config uploadpack.allowAnySHA1InWant true; git -C repo update-server-info
for r in trunk v1 side; do
  rev=$(git -C repo rev-parse "$r^{commit}")
  printf '%s' "$rev" > "rev-$r"
  git -C repo -c tar.umask=0022 archive --worktree-attributes --format=tar.gz --prefix="repo-$rev/" "$rev" > "$rev.tar.gz"
done
git init -q -b trunk super; cd super
git -c protocol.file.allow=always submodule --quiet add ../repo mod
echo 'big filter=lfs' > .gitattributes; echo pointer > big
git add -A; git commit -qm super; cd ..; git clone -q --bare super super.git
mkdir plain; cp -r work/dir work/link work/flake.nix plain/
find plain -exec touch -h -d @1650000000 {} +
tar --owner=0 --group=0 -cf plain.tar plain; xz -k plain.tar; zstd -q -k plain.tar 2>/dev/null || true; bzip2 -k plain.tar; gzip -k plain.tar
# two at the top, and no directory
tar -C plain --owner=0 --group=0 -czf flat.tar.gz dir flake.nix link
echo contents > file
"#;

/// The server's files, C++ Nix, and a directory for what they keep.
struct Lab {
    nix: PathBuf,
    dir: TempDir,
    server: Server,
}

impl Lab {
    /// `None` (which is said) where C++ Nix or another program is missing.
    fn find() -> Option<Lab> {
        let Some(programs) = std::env::var_os("BENTO_NIX") else {
            println!("skipped: BENTO_NIX does not name a folder with nix");
            return None;
        };
        for program in ["git", "xz", "bzip2"] {
            if Command::new(program).arg("--version").stdin(Stdio::null()).output().is_err() {
                println!("skipped: there is no {program}");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site");
        fs::create_dir(&site).unwrap();
        let made = Command::new("sh").arg("-c").arg(SCRIPT).current_dir(&site).env("HOME", &site).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let server = Server::start(move |request| answer(&site, request));
        fs::write(dir.path().join("authority.pem"), &server.authority).unwrap();
        Some(Lab { nix: PathBuf::from(programs), dir, server })
    }

    fn rev(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("site").join(format!("rev-{name}"))).unwrap()
    }

    /// A program, which sees the tests' configuration only.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let (home, temporary) = (self.dir.path().join("home"), self.dir.path().join("tmp"));
        for dir in [&home, &temporary] {
            fs::create_dir_all(dir).unwrap();
        }
        self.server.env(&mut command, &self.dir.path().join("authority.pem"));
        command
            .current_dir(self.dir.path())
            .env("HOME", &home)
            // C++ Nix leaves files there
            .env("TMPDIR", &temporary)
            .env("XDG_CACHE_HOME", home.join(program.file_name().unwrap()))
            .env("NIX_CONF_DIR", &home)
            .env(
                "NIX_CONFIG",
                "experimental-features = nix-command flakes\nconnect-timeout = 5\ndownload-attempts = 1\n",
            )
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_SSH_COMMAND", self.dir.path().join("ssh"))
            .env_remove("NIX_PATH")
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    fn nix(&self, program: &str) -> Command {
        let mut command = self.command(&self.nix.join(program));
        // a store of its own, so that nothing is there that we haven't fetched
        command.env("NIX_REMOTE", format!("local?root={}", self.dir.path().join("root").display()));
        command
    }

    fn bento(&self, args: &[&str]) -> Output {
        self.command(Path::new(BENTO)).args(args).output().unwrap()
    }

    /// `HTTP/` stands for the address of the server, `SITE` for its directory, `REV-NAME` for a commit.
    fn fill(&self, text: &str) -> String {
        let mut text = text
            .replace("HTTP/", &format!("http://{}/", self.server.address))
            .replace("SITE", self.dir.path().join("site").to_str().unwrap());
        for name in ["trunk", "v1", "side"] {
            text = text.replace(&format!("REV-{name}"), &self.rev(name));
        }
        text
    }

    /// What both make of an expression: the value, or whether a word is in the complaint.
    fn agree(&self, expression: &str, options: &[&str]) {
        let expression = self.fill(expression);
        let options: Vec<String> = options.iter().map(|option| self.fill(option)).collect();
        let mut theirs = self.nix("nix-instantiate");
        theirs.args(["--eval", "--strict", "--json", "--read-write-mode", "-E", &expression]).args(&options);
        let theirs = theirs.output().unwrap();
        let mut ours = self.command(Path::new(BENTO));
        let ours = ours.args(["eval", "--strict", "--json", "-E", &expression]).args(&options).output().unwrap();
        let (said, wanted) = (text(&ours.stderr), text(&theirs.stderr));
        let value = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).ok();
        assert_eq!(value(&ours), value(&theirs), "{expression}\nours: {said}\nNix: {wanted}");
        assert!(theirs.status.success(), "{expression}: {wanted}");
    }

    /// That both refuse an expression, with all of these words.
    fn both_refuse(&self, expression: &str, options: &[&str], words: &[&str]) {
        let expression = self.fill(expression);
        let mut theirs = self.nix("nix-instantiate");
        theirs.args(["--eval", "--strict", "--json", "--read-write-mode", "-E", &expression]).args(options);
        let mut ours = self.command(Path::new(BENTO));
        ours.args(["eval", "--strict", "--json", "-E", &expression]).args(options);
        for mut command in [theirs, ours] {
            let output = command.output().unwrap();
            let said = text(&output.stderr);
            assert!(!output.status.success(), "{expression}: {}", text(&output.stdout));
            for word in words {
                assert!(said.contains(&self.fill(word)), "{expression} says nothing of {word}: {said}");
            }
        }
    }

    /// What we make of an expression.
    fn eval(&self, expression: &str, options: &[&str]) -> Result<Value, String> {
        let expression = self.fill(expression);
        let output = self.bento(&[&["eval", "--strict", "--json", "-E", expression.as_str()], options].concat());
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(text(&output.stderr))
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the web has.
fn answer(site: &Path, request: &Request) -> Reply {
    let rev = |name: &str| fs::read_to_string(site.join(format!("rev-{name}"))).unwrap();
    let names: BTreeMap<&str, String> =
        [("HEAD", rev("trunk")), ("trunk", rev("trunk")), ("v1", rev("v1")), ("side", rev("side"))].into();
    let file = |name: &str| match fs::read(site.join(name)) {
        Ok(contents) => Reply::ok(contents),
        Err(_) => Reply::not_found(),
    };
    let authorization = request.headers.get("authorization").map(String::as_str);
    let private = request.path.contains("private");
    let known = [format!("token {TOKEN}"), format!("Bearer {TOKEN}")];
    let by_token = authorization.is_some_and(|given| known.iter().any(|known| known == given))
        || request.headers.get("private-token").is_some_and(|given| given == TOKEN);
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if private && !by_token {
        return Reply::not_found();
    }
    let commit = |name: &str| match names.get(name) {
        Some(rev) => Reply::ok(json!({"sha": rev, "commit": {"tree": {"sha": rev}}}).to_string()),
        None => Reply::not_found(),
    };
    match (request.host.as_str(), parts.as_slice()) {
        ("api.github.com", ["repos", "o", _, "commits", name]) => commit(name),
        ("forge.example.org", ["api", "v3", "repos", "o", _, "commits", name]) => commit(name),
        ("github.com", ["o", "repo", "archive", archive]) => {
            Reply::redirect(&format!("https://files.example.org/{archive}"))
        }
        ("api.github.com", ["repos", "o", _, "tarball", rev])
        | ("forge.example.org", ["api", "v3", "repos", "o", _, "tarball", rev]) => file(&format!("{rev}.tar.gz")),
        ("gitlab.com", ["api", "v4", "projects", _, "repository", "commits"]) => {
            let name = query.strip_prefix("ref_name=").unwrap();
            match names.get(name) {
                Some(rev) => Reply::ok(json!([{"id": rev}]).to_string()),
                None => Reply::ok("[]"),
            }
        }
        ("gitlab.com", ["api", "v4", "projects", _, "repository", "archive.tar.gz"]) => {
            file(&format!("{}.tar.gz", query.strip_prefix("sha=").unwrap()))
        }
        ("git.sr.ht", ["~o", _, "HEAD"]) => Reply::ok("ref: refs/heads/trunk\n"),
        ("git.sr.ht", ["~o", _, "info", "refs"]) => Reply::ok(format!(
            "{}\trefs/heads/side\n{}\trefs/heads/trunk\n{}\trefs/tags/v1\n",
            names["side"], names["trunk"], names["v1"]
        )),
        ("git.sr.ht", ["~o", _, "archive", archive]) => file(archive),
        ("channels.nixos.org", ["some", "nixexprs.tar.xz"]) => {
            Reply::redirect("https://files.example.org/plain.tar.xz")
        }
        ("files.example.org", [name]) => file(name),
        ("127.0.0.1" | "forge.example.org", ["git", ..]) => {
            git_http(site, &Request { path: request.path.replacen("/git", "", 1), ..request.clone() })
        }
        ("127.0.0.1", ["away", name]) => Reply::redirect(&format!("/files/{name}")),
        ("api.github.com", ["repos", "moved", _, "tarball", rev]) => {
            Reply::redirect(&format!("https://files.example.org/{rev}.tar.gz"))
        }
        ("127.0.0.1", ["flaky", name]) => {
            // it works every third time
            static ASKED: AtomicUsize = AtomicUsize::new(0);
            match ASKED.fetch_add(1, Ordering::Relaxed) % 3 {
                2 => file(name),
                _ => Reply { status: 503, headers: Vec::new(), body: Vec::new() },
            }
        }
        ("127.0.0.1", ["torn", name]) => {
            let mut reply = file(name).with("Content-Length", "100000");
            reply.body.truncate(100);
            reply
        }
        ("127.0.0.1", ["inward"]) => Reply::redirect(&format!("file://{}/file", site.display())),
        ("127.0.0.1", ["slow", name]) => {
            std::thread::sleep(std::time::Duration::from_millis(300));
            file(name)
        }
        ("127.0.0.1", ["circle"]) => Reply::redirect("/circle"),
        ("127.0.0.1", ["lockable", name]) => {
            let address = format!("http://{}/files/{name}?rev={}&revCount=7", request.headers["host"], rev("v1"));
            file(name).with("Link", &format!("<{address}>; rel=\"immutable\""))
        }
        ("127.0.0.1", ["etag", name]) => {
            if request.headers.get("if-none-match").is_some_and(|etag| etag == "\"v1\"") {
                return Reply { status: 304, headers: Vec::new(), body: Vec::new() }.with("ETag", "\"v1\"");
            }
            file(name).with("ETag", "\"v1\"")
        }
        // "user:pass"
        ("127.0.0.1", ["guarded", name]) if authorization == Some("Basic dXNlcjpwYXNz") => file(name),
        ("127.0.0.1", ["guarded", _]) => Reply { status: 401, headers: Vec::new(), body: Vec::new() },
        ("127.0.0.1", ["files", name]) => file(name),
        _ => Reply::not_found(),
    }
}

#[test]
fn forges_give_what_they_give_nix() {
    let Some(lab) = Lab::find() else { return };
    for url in [
        "github:o/repo",
        "github:o/repo/trunk",
        "github:o/repo/v1",
        "github:o/repo/REV-side",
        "github:o/repo?host=forge.example.org",
        "github:o/repo/side?host=forge.example.org",
        "gitlab:o/repo",
        "gitlab:o/repo/side",
        "gitlab:o/repo/REV-v1",
        "sourcehut:~o/repo",
        "sourcehut:~o/repo/v1",
        "sourcehut:~o/repo/side",
    ] {
        lab.agree(&format!("builtins.fetchTree \"{url}\""), &[]);
    }
    lab.agree("(builtins.getFlake \"github:o/repo/REV-v1?dir=sub\").value", &[]);
    lab.both_refuse(
        "builtins.fetchTree \"github:o/repo/nope\"",
        &[],
        &["unable to download 'https://api.github.com/repos/o/repo/commits/nope'"],
    );
    lab.both_refuse("builtins.fetchTree \"gitlab:o/repo/nope\"", &[], &["No commits returned by GitLab API"]);
    lab.both_refuse("builtins.fetchTree \"sourcehut:~o/repo/nope\"", &[], &["couldn't find ref 'nope'"]);
    lab.both_refuse(
        "builtins.fetchTree \"github:o/repo/REV-v1?narHash=sha256-47DEQpj8HBSa%2B/TImW%2B5JCeuQeRkm5NMpJWZG3hSuFU%3D\"",
        &[],
        &["NAR hash mismatch in input"],
    );
}

#[test]
fn tokens_open_what_is_private() {
    let Some(lab) = Lab::find() else { return };
    lab.both_refuse("builtins.fetchTree \"github:o/private\"", &[], &["unable to download 'https://api.github.com/"]);
    let github = ["--option", "access-tokens", "github.com=wrong github.com/o/private=s3cret"];
    lab.agree("builtins.fetchTree \"github:o/private\"", &github);
    lab.agree("builtins.fetchTree \"github:o/private/REV-v1\"", &github);
    lab.agree("builtins.fetchTree \"gitlab:o/private\"", &["--option", "access-tokens", "gitlab.com=PAT:s3cret"]);
    lab.agree(
        "builtins.fetchTree \"gitlab:o/private/side\"",
        &["--option", "access-tokens", "gitlab.com=OAuth2:s3cret"],
    );
    // nobody else hears of them, nor whoever the forge sends on to
    let mine = ["--option", "access-tokens", "github.com=s3cret"];
    lab.server.requests();
    lab.eval("builtins.fetchTree \"github:moved/repo/REV-side\"", &mine).unwrap();
    let told: Vec<(String, bool)> = lab
        .server
        .requests()
        .into_iter()
        .map(|asked| (asked.host, asked.headers.contains_key("authorization")))
        .collect();
    assert_eq!(told, [("api.github.com".to_owned(), true), ("files.example.org".to_owned(), false)]);
}

#[test]
fn archives_and_files_are_those_that_nix_gets() {
    let Some(lab) = Lab::find() else { return };
    for name in ["plain.tar", "plain.tar.gz", "plain.tar.xz", "plain.tar.bz2", "flat.tar.gz"] {
        lab.agree(&format!("builtins.fetchTree {{ type = \"tarball\"; url = \"HTTP/files/{name}\"; }}"), &[]);
    }
    lab.agree("builtins.fetchTree \"HTTP/away/plain.tar.gz\"", &[]);
    lab.agree("builtins.fetchTree \"HTTP/lockable/plain.tar.gz\"", &[]);
    lab.agree("builtins.fetchTree { type = \"file\"; url = \"HTTP/files/file\"; }", &[]);
    lab.agree("builtins.fetchTree \"https://files.example.org/plain.tar.gz\"", &[]);
    lab.agree("builtins.fetchTree \"file+HTTP/files/plain.tar.gz\"", &[]);
    lab.agree("builtins.readFile (builtins.fetchurl \"HTTP/files/file\")", &[]);
    lab.agree(
        "[ (builtins.fetchurl \"HTTP/files/file\") (builtins.fetchurl { url = \"HTTP/files/file\"; name = \"x\"; }) ]",
        &[],
    );
    lab.agree("builtins.fetchTarball \"HTTP/files/plain.tar.gz\"", &[]);
    lab.agree("builtins.fetchTarball { url = \"HTTP/lockable/plain.tar.gz\"; name = \"x\"; }", &[]);
    lab.agree("builtins.readDir (builtins.fetchTarball \"HTTP/files/flat.tar.gz\")", &[]);
    lab.agree("builtins.readDir <some/dir>", &["-I", "some=HTTP/files/plain.tar.gz"]);
    lab.agree("builtins.readDir <some>", &["-I", "some=channel:some"]);
    let registry = ["--option", "flake-registry", "HTTP/files/registry.json"];
    write_registry(&lab);
    lab.agree("builtins.readDir <some>", &[&["-I", "some=flake:github:o/repo/REV-v1"], &registry[..]].concat());
    lab.agree("builtins.readDir <some>", &[&["-I", "some=flake:named/v1"], &registry[..]].concat());
    lab.agree("builtins.fetchTree { type = \"indirect\"; id = \"named\"; ref = \"side\"; }", &registry);
    lab.agree("builtins.fetchTarball \"channel:some\"", &[]);
    let wrong = "0000000000000000000000000000000000000000000000000000";
    lab.both_refuse(
        &format!("builtins.fetchurl {{ url = \"HTTP/files/file\"; sha256 = \"{wrong}\"; }}"),
        &[],
        &["hash mismatch in file downloaded from 'HTTP/files/file'", "specified: sha256:0000"],
    );
    lab.both_refuse(
        &format!("builtins.fetchTarball {{ url = \"HTTP/files/plain.tar\"; sha256 = \"{wrong}\"; }}"),
        &[],
        &["hash mismatch in file downloaded from 'HTTP/files/plain.tar'"],
    );
    lab.both_refuse(
        "builtins.fetchurl \"HTTP/files/nothing\"",
        &[],
        &["unable to download 'HTTP/files/nothing'", "HTTP error 404"],
    );
    lab.both_refuse("builtins.fetchurl \"HTTP/circle\"", &[], &["unable to download 'HTTP/circle'"]);
    lab.both_refuse("builtins.fetchTree \"HTTP/files/file\"", &[], &["HTTP/files/file"]);
    // pure evaluation wants hashes
    let pure = ["--option", "pure-eval", "true"];
    lab.both_refuse(
        "builtins.fetchurl \"HTTP/files/file\"",
        &pure,
        &["in pure evaluation mode, 'fetchurl' requires a 'sha256' argument"],
    );
    lab.both_refuse(
        "builtins.fetchTarball \"HTTP/files/plain.tar\"",
        &pure,
        &["in pure evaluation mode, 'fetchTarball' requires"],
    );
    lab.both_refuse(
        "builtins.fetchTree \"github:o/repo\"",
        &pure,
        &["in pure evaluation mode, 'fetchTree' doesn't fetch unlocked input"],
    );
    lab.both_refuse(
        "builtins.fetchGit \"HTTP/git/repo\"",
        &pure,
        &["in pure evaluation mode, 'fetchGit' doesn't fetch unlocked input"],
    );
    lab.agree("builtins.fetchTree \"github:o/repo/REV-side\"", &pure);
    // and restricted evaluation nothing from the network
    let restricted = ["--option", "restrict-eval", "true"];
    lab.both_refuse(
        "builtins.fetchurl \"HTTP/files/file\"",
        &restricted,
        &["access to URI 'HTTP/files/file' is forbidden in restricted mode"],
    );
}

#[test]
fn names_and_passwords_come_from_netrc() {
    let Some(lab) = Lab::find() else { return };
    lab.both_refuse("builtins.fetchurl \"HTTP/guarded/file\"", &[], &["HTTP error 401"]);
    let netrc = lab.dir.path().join("netrc");
    fs::write(&netrc, "machine other login a password b\nmachine 127.0.0.1\n  login user\n  password pass\n").unwrap();
    lab.agree("builtins.fetchurl \"HTTP/guarded/file\"", &["--option", "netrc-file", netrc.to_str().unwrap()]);
}

#[test]
fn repositories_are_those_that_nix_gets() {
    let Some(lab) = Lab::find() else { return };
    // the other end of "ssh" is this machine
    let ssh = lab.dir.path().join("ssh");
    fs::write(&ssh, "#!/bin/sh\nfor last; do :; done\nexec sh -c \"$last\"\n").unwrap();
    let mut permissions = fs::metadata(&ssh).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(&ssh, permissions).unwrap();
    for expression in [
        "builtins.fetchTree \"git+HTTP/git/repo\"",
        "builtins.fetchTree \"git+HTTP/git/repo?ref=side\"",
        "builtins.fetchTree \"git+HTTP/git/repo?ref=refs/tags/v1\"",
        "builtins.fetchTree \"git+HTTP/git/repo?rev=REV-v1\"",
        "builtins.fetchTree \"git+HTTP/git/repo?rev=REV-side&allRefs=1\"",
        "builtins.fetchTree \"git+HTTP/git/repo?shallow=1\"",
        "builtins.fetchTree \"git+ssh://git@forge.example.org/SITE/repo?ref=side\"",
        "builtins.fetchTree \"git+ssh://git@forge.example.org/SITE/repo\"",
        "builtins.fetchTree \"git+https://forge.example.org/git/repo\"",
        "builtins.fetchTree \"git+https://forge.example.org/git/repo?ref=side&shallow=1\"",
        "builtins.fetchGit \"HTTP/git/repo\"",
        "builtins.fetchGit { url = \"HTTP/git/repo\"; ref = \"side\"; name = \"x\"; }",
        "builtins.fetchGit { url = \"HTTP/git/repo\"; rev = \"REV-side\"; allRefs = true; }",
        "builtins.fetchGit { url = \"HTTP/git/repo\"; rev = \"REV-v1\"; shallow = true; }",
        "builtins.readDir (builtins.fetchGit { url = \"HTTP/git/repo\"; rev = \"REV-v1\"; exportIgnore = false; })",
        "builtins.readDir (builtins.fetchGit { url = \"HTTP/git/repo\"; rev = \"REV-v1\"; })",
    ] {
        lab.agree(expression, &[]);
    }
    lab.both_refuse("builtins.fetchTree \"git+HTTP/git/nothing\"", &[], &["HTTP/git/nothing"]);
    lab.both_refuse("builtins.fetchTree \"git+HTTP/git/repo?ref=nope\"", &[], &["HTTP/git/repo"]);
    let nowhere = "f".repeat(40);
    lab.both_refuse(&format!("builtins.fetchTree \"git+HTTP/git/repo?rev={nowhere}\""), &[], &["HTTP/git/repo"]);
}

/// OpenSSH's server for whoever runs the tests, until this is dropped; sees nothing of what it serves.
struct Sshd(std::process::Child);

impl Sshd {
    /// Has `lab`'s git use it for every host. `None` (which is said) where there can't be one.
    fn start(lab: &Lab) -> Option<Sshd> {
        let dir = lab.dir.path().join("sshd");
        fs::create_dir(&dir).unwrap();
        let keys = "ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f user";
        let made = Command::new("sh").args(["-c", keys]).current_dir(&dir).status().unwrap();
        // the server wants a directory in /run, which need not be there
        let start = "mount -t tmpfs run /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -q -f \"$0\"";
        let allowed =
            Command::new("unshare").args(["--mount", "test", "-x", "/usr/sbin/sshd"]).stderr(Stdio::null()).status();
        if !made.success() || !allowed.is_ok_and(|status| status.success()) {
            println!("skipped: there is no sshd, or it can't be started by this user");
            return None;
        }
        let at = dir.display();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nStrictModes no\n\
             PidFile none\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\n"
        );
        fs::write(dir.join("sshd_config"), config).unwrap();
        let host = fs::read_to_string(dir.join("host.pub")).unwrap();
        fs::write(dir.join("known_hosts"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let client = format!(
            "Host *\nHostName 127.0.0.1\nPort {port}\nIdentityFile {at}/user\nIdentitiesOnly yes\n\
             UserKnownHostsFile {at}/known_hosts\nStrictHostKeyChecking yes\nBatchMode yes\n"
        );
        fs::write(dir.join("ssh_config"), client).unwrap();
        let ssh = lab.dir.path().join("ssh");
        fs::write(&ssh, format!("#!/bin/sh\nexec ssh -F {at}/ssh_config \"$@\"\n")).unwrap();
        fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new("unshare");
        let child = command.args(["--mount", "sh", "-c", start]).arg(dir.join("sshd_config")).spawn().unwrap();
        let server = Sshd(child);
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(server);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("sshd does not answer");
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn repositories_come_over_a_real_ssh() {
    let Some(lab) = Lab::find() else { return };
    let Some(server) = Sshd::start(&lab) else { return };
    lab.agree("builtins.fetchTree \"git+ssh://forge.example.org/SITE/repo?ref=side\"", &[]);
    lab.agree("builtins.fetchGit { url = \"ssh://forge.example.org/SITE/repo\"; ref = \"trunk\"; }", &[]);
    // the host's name, and what ssh says
    fs::write(lab.dir.path().join("sshd/known_hosts"), "").unwrap();
    let words = ["forge.example.org", "Host key verification failed"];
    lab.both_refuse("builtins.fetchTree \"git+ssh://forge.example.org/SITE/super.git\"", &[], &words);
    drop(server);
}

#[test]
fn repositories_of_this_machine_are_exported_as_nix_exports_them() {
    let Some(lab) = Lab::find() else { return };
    // a commit each, as Nix remembers what it made of one
    for expression in [
        "builtins.fetchGit SITE/work",
        "builtins.readDir (builtins.fetchGit SITE/work)",
        "builtins.readDir (builtins.fetchGit { url = SITE/work; rev = \"REV-v1\"; })",
        "builtins.readDir (builtins.fetchGit { url = SITE/work; ref = \"side\"; exportIgnore = false; })",
        "builtins.readDir (builtins.fetchTree { type = \"git\"; url = \"file://SITE/work\"; ref = \"side\"; exportIgnore = true; })",
        "builtins.fetchGit { url = \"file://SITE/repo\"; ref = \"side\"; exportIgnore = false; }",
    ] {
        lab.agree(expression, &[]);
    }
}

#[test]
fn submodules_come_along_when_asked_for() {
    let Some(lab) = Lab::find() else { return };
    for expression in [
        "builtins.readDir \"${builtins.fetchGit \"HTTP/git/super.git\"}/mod\"",
        "builtins.readDir \"${builtins.fetchGit { url = \"HTTP/git/super.git\"; submodules = true; }}/mod\"",
        "builtins.fetchTree \"git+HTTP/git/super.git?submodules=1\"",
        "builtins.fetchTree \"git+file://SITE/super?submodules=1\"",
    ] {
        lab.agree(expression, &[]);
    }
    lab.both_refuse(
        "builtins.fetchGit { url = \"HTTP/git/super.git\"; submodules = true; exportIgnore = true; }",
        &[],
        &["exportIgnore and submodules are not supported together yet"],
    );
}

#[test]
fn what_is_not_supported_says_so() {
    let Some(lab) = Lab::find() else { return };
    let error = lab.eval("builtins.fetchGit { url = \"HTTP/git/super.git\"; lfs = true; }", &[]).unwrap_err();
    assert!(error.contains("Git LFS") && error.contains(".gitattributes"), "{error}");
    let error = lab.eval("builtins.fetchMercurial \"https://files.example.org/hg\"", &[]).unwrap_err();
    assert!(error.contains("https://files.example.org/hg") && error.contains("not supported"), "{error}");
    let error = lab.eval("builtins.fetchTree \"hg+https://files.example.org/hg\"", &[]).unwrap_err();
    assert!(error.contains("Mercurial repositories are not supported"), "{error}");
}

/// Pins as npins (version 5 of its file) and niv keep them, with code that reads them as theirs does: it turns each pin into a
/// call of `fetchTarball`, `fetchurl` or `fetchGit`.
#[test]
fn pins_are_fetched_by_their_own_code() {
    let Some(lab) = Lab::find() else { return };
    let site = lab.dir.path().join("site");
    let hash =
        |url: &str| lab.eval(&format!("(builtins.fetchTree {{ type = \"tarball\"; url = \"{url}\"; }}).narHash"), &[]);
    let archive = lab.fill("https://github.com/o/repo/archive/REV-v1.tar.gz");
    let npins = json!({"version": 5, "pins": {
        "release": {"type": "Git", "repository": {"type": "GitHub", "owner": "o", "repo": "repo"}, "branch": "trunk",
            "submodules": false, "revision": lab.rev("v1"), "url": archive, "hash": hash(&archive).unwrap()},
        "plain": {"type": "Git", "repository": {"type": "Git", "url": lab.fill("HTTP/git/repo")}, "branch": "side",
            "submodules": false, "revision": lab.rev("side"), "url": null, "hash": null},
        "modules": {"type": "Git", "repository": {"type": "Git", "url": lab.fill("HTTP/git/super.git")}, "branch": "trunk",
            "submodules": true, "revision": text(&fs::read(site.join("super/.git/refs/heads/trunk")).unwrap()).trim(),
            "url": null, "hash": null},
        "channel": {"type": "Channel", "name": "some", "url": "https://channels.nixos.org/some/nixexprs.tar.xz",
            "hash": hash("https://channels.nixos.org/some/nixexprs.tar.xz").unwrap()}}});
    fs::create_dir(site.join("npins")).unwrap();
    fs::write(site.join("npins/sources.json"), npins.to_string()).unwrap();
    let code = r#"
let
  data = builtins.fromJSON (builtins.readFile ./sources.json);
  source = name: pin:
    let
      path =
        if pin.url != null && !(pin.submodules or false) then
          builtins.fetchTarball { inherit (pin) url; sha256 = pin.hash; }
        else
          builtins.fetchGit {
            inherit (pin.repository) url;
            rev = pin.revision;
            inherit name;
            submodules = pin.submodules;
            allRefs = true;
          };
    in
    pin // { outPath = path; };
in
assert data.version == 5;
builtins.mapAttrs source data.pins
"#;
    fs::write(site.join("npins/default.nix"), code).unwrap();
    lab.agree(
        "builtins.mapAttrs (_: pin: { path = pin.outPath; files = builtins.readDir pin.outPath; }) (import SITE/npins)",
        &[],
    );
    let niv = json!({
        "tarball": {"type": "tarball", "url": archive, "url_template": "https://github.com/<owner>/<repo>/archive/<rev>.tar.gz",
            "owner": "o", "repo": "repo", "rev": lab.rev("v1"), "branch": "trunk", "sha256": hash(&archive).unwrap()},
        "file": {"type": "file", "url": lab.fill("HTTP/files/file"),
            "sha256": lab.eval("builtins.hashFile \"sha256\" SITE/file", &[]).unwrap()},
        "git": {"type": "git", "repo": lab.fill("HTTP/git/repo"), "rev": lab.rev("side"), "ref": "refs/heads/side"}});
    fs::create_dir(site.join("nix")).unwrap();
    fs::write(site.join("nix/sources.json"), niv.to_string()).unwrap();
    let code = r#"
let
  fetch = name: spec:
    if spec.type == "tarball" then builtins.fetchTarball { name = "${name}-src"; inherit (spec) url sha256; }
    else if spec.type == "file" then builtins.fetchurl { inherit (spec) url sha256; name = "${name}-src"; }
    else builtins.fetchGit { url = spec.repo; inherit (spec) rev ref; };
in
builtins.mapAttrs (name: spec: spec // { outPath = fetch name spec; }) (builtins.fromJSON (builtins.readFile ./sources.json))
"#;
    fs::write(site.join("nix/sources.nix"), code).unwrap();
    lab.agree("builtins.mapAttrs (_: pin: { path = pin.outPath; type = builtins.readFileType pin.outPath; }) (import SITE/nix/sources.nix)", &[]);
}

/// A flake `f` with inputs from the server.
fn write_flake(lab: &Lab) {
    let flake = lab.dir.path().join("f");
    let _ = fs::remove_dir_all(&flake);
    fs::create_dir(&flake).unwrap();
    let inputs = "hub.url = \"github:o/repo\"; lab.url = \"gitlab:o/repo/side\"; hut = { url = \"sourcehut:~o/repo/v1\"; flake = false; }; \
                  git.url = \"git+HTTP/git/repo?dir=sub\"; tar.url = \"HTTP/lockable/plain.tar.gz\"; \
                  file = { url = \"file+HTTP/files/file\"; flake = false; }; \
                  named.url = \"named/side\";";
    let outputs = "i: { values = [ i.hub.value i.lab.value i.git.value i.tar.value i.named.value (builtins.readFile i.file) \
                   (builtins.attrNames (builtins.readDir i.hut)) ]; \
                   sources = map (input: input.sourceInfo) [ i.hub i.lab i.hut i.git i.tar i.file i.named ]; }";
    fs::write(flake.join("flake.nix"), lab.fill(&format!("{{ inputs = {{ {inputs} }}; outputs = {outputs}; }}\n")))
        .unwrap();
    write_registry(lab);
}

/// A registry on the server.
fn write_registry(lab: &Lab) {
    let registry = json!({"version": 2, "flakes": [{
        "from": {"type": "indirect", "id": "named"}, "to": {"type": "github", "owner": "o", "repo": "repo"}}]});
    fs::write(lab.dir.path().join("site/registry.json"), registry.to_string()).unwrap();
}

#[test]
fn a_flake_is_locked_once_and_needs_no_network_then() {
    let Some(lab) = Lab::find() else { return };
    let registry = lab.fill("HTTP/files/registry.json");
    let lock = lab.dir.path().join("f/flake.lock");
    write_flake(&lab);
    let options = ["--flake-registry", registry.as_str()];
    let theirs = lab.nix("nix").args(["flake", "update", "--flake", "path:./f"]).args(options).output().unwrap();
    assert!(theirs.status.success(), "{}", text(&theirs.stderr));
    let expected = fs::read_to_string(&lock).unwrap();
    write_flake(&lab);
    let ours = lab.command(Path::new(BENTO)).env("BENTO_DIR", "f").arg("flake-update").args(options).output().unwrap();
    assert!(ours.status.success(), "{}", text(&ours.stderr));
    assert_eq!(fs::read_to_string(&lock).unwrap(), expected);
    let evaluate = ["eval", "--flake", "path:./f", "--json", "--strict", "-A", "values", "-A", "sources"];
    let values = lab.bento(&evaluate);
    assert!(values.status.success(), "{}", text(&values.stderr));
    let nix = |attr: &str| {
        let output = lab.nix("nix").args(["eval", "--impure", "--json", &format!("path:./f#{attr}")]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(text(&values.stdout), nix("values") + &nix("sources"));
    // without a network it is in the cache
    lab.server.requests();
    let again = lab.bento(&[&evaluate[..], &["--offline"]].concat());
    assert_eq!((text(&again.stdout), again.status.success()), (text(&values.stdout), true), "{}", text(&again.stderr));
    assert!(lab.server.requests().is_empty());
}

#[test]
fn servers_may_have_a_bad_day() {
    let Some(lab) = Lab::find() else { return };
    assert_eq!(
        lab.eval("builtins.readFile (builtins.fetchurl \"HTTP/flaky/file\")", &[]).unwrap(),
        json!("contents\n")
    );
    assert_eq!(lab.server.requests().len(), 3);
    for (path, word) in [
        ("torn/plain.tar.gz", "unable to download 'HTTP/torn/plain.tar.gz'"),
        ("inward", "it redirects to 'file:"),
        ("files/file", "cannot unpack \"HTTP/files/file\""),
    ] {
        let error = lab.eval(&format!("builtins.fetchTarball \"HTTP/{path}\""), &[]).unwrap_err();
        assert!(error.contains(&lab.fill(word)), "{path}: {error}");
    }
    // nothing of that was kept
    let trees = lab.dir.path().join("home/bento/bento/fetch/trees");
    let kept = fs::read_dir(&trees).unwrap().count();
    assert_eq!(kept, 1, "the file that could be had");
}

#[test]
fn a_damaged_cache_is_as_good_as_none() {
    let Some(lab) = Lab::find() else { return };
    let expression = "(builtins.fetchTree { type = \"tarball\"; url = \"HTTP/files/plain.tar\"; }).narHash";
    let first = lab.eval(expression, &[]).unwrap();
    let cache = lab.dir.path().join("home/bento/bento/fetch");
    for entry in fs::read_dir(cache.join("index")).unwrap() {
        fs::write(entry.unwrap().path(), "{\"time\": ").unwrap();
    }
    assert_eq!(lab.eval(expression, &[]).unwrap(), first);
    fs::remove_dir_all(cache.join("trees")).unwrap();
    assert_eq!(lab.eval(expression, &[]).unwrap(), first);
    assert_eq!(lab.server.requests().len(), 3);
}

#[test]
fn evaluations_that_run_at_the_same_time_share_the_cache() {
    let Some(lab) = Lab::find() else { return };
    let expression = lab.fill(
        "[ (builtins.fetchTree { type = \"tarball\"; url = \"HTTP/slow/plain.tar\"; }).narHash \
           (builtins.readFile \"${builtins.fetchGit \"HTTP/git/repo\"}/flake.nix\") ]",
    );
    let start = || {
        let mut command = lab.command(Path::new(BENTO));
        command.args(["eval", "--strict", "--json", "-E", &expression]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let running: Vec<_> = (0..4).map(|_| start()).collect();
    let outputs: Vec<Output> = running.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    let trees = lab.dir.path().join("home/bento/bento/fetch/trees");
    let kept = fs::read_dir(&trees).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[test]
fn registries_are_asked_in_nixs_order() {
    let Some(lab) = Lab::find() else { return };
    let registry = |entries: Value| json!({"version": 2, "flakes": entries}).to_string();
    let entry = |name: &str, rev: &str| {
        json!({"from": {"type": "indirect", "id": name},
            "to": {"type": "github", "owner": "o", "repo": "repo", "rev": lab.rev(rev)}})
    };
    let home = lab.dir.path().join("home");
    fs::create_dir_all(home.join(".config/nix")).unwrap();
    fs::write(home.join(".config/nix/registry.json"), registry(json!([entry("mine", "v1"), entry("both", "v1")])))
        .unwrap();
    fs::write(home.join("registry.json"), registry(json!([entry("both", "side"), entry("system", "v1")]))).unwrap();
    let global = lab.dir.path().join("global.json");
    fs::write(&global, registry(json!([entry("global", "trunk"), entry("both", "trunk"), entry("system", "trunk")])))
        .unwrap();
    let global = global.to_str().unwrap();
    let flake = lab.dir.path().join("g");
    fs::create_dir(&flake).unwrap();
    let declare = |input: &str| {
        let text = format!("{{ outputs = {{ self, {input} }}: {{ rev = {input}.rev; }}; }}");
        fs::write(flake.join("flake.nix"), text).unwrap();
    };
    let both = |reference: &str, options: &[&str]| {
        let mut theirs = lab.nix("nix");
        theirs.args(["eval", "--impure", "--json", "--no-write-lock-file", "--flake-registry", global]).args(options);
        let theirs = theirs.arg(reference).output().unwrap();
        let mut ours = lab.command(Path::new(BENTO));
        ours.args(["eval", "--json", "--no-write-lock-file", "--flake-registry", global]).args(options);
        let ours = ours.args(["--flake", reference]).output().unwrap();
        let (said, wanted) = (text(&ours.stderr), text(&theirs.stderr));
        assert_eq!(ours.status.success(), theirs.status.success(), "{reference} {options:?}\n{said}\n{wanted}");
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{reference} {options:?}\n{said}\n{wanted}");
        (ours.status.success(), said)
    };
    for name in ["mine", "both", "system", "global"] {
        assert!(both(&format!("{name}#value"), &[]).0);
        declare(name);
        // what only this user and this machine know counts for no input
        assert_eq!(both("path:./g#rev", &[]).0, name != "mine");
    }
    let (_, said) = both("nobody#value", &[]);
    assert!(said.contains("cannot find flake 'flake:nobody' in the flake registries"), "{said}");
    let (worked, said) = both("mine#value", &["--no-registries"]);
    assert!(!worked && said.contains("registry lookups are not allowed"), "{said}");
    let side = lab.fill("github:o/repo/REV-v1");
    assert!(both("global#value", &["--override-flake", "global", &side]).0);
}

#[test]
fn dirty_repositories_can_be_refused() {
    let Some(lab) = Lab::find() else { return };
    fs::write(lab.dir.path().join("site").join("work").join("flake.nix"), "{ }").unwrap();
    lab.agree("builtins.fetchGit SITE/work", &[]);
    lab.both_refuse(
        "builtins.fetchGit SITE/work",
        &["--option", "allow-dirty", "false"],
        &["Git tree 'SITE/work' is dirty"],
    );
}

#[test]
fn what_cannot_be_had_offline_says_how_it_could_be() {
    let Some(lab) = Lab::find() else { return };
    for (expression, url) in [
        ("builtins.fetchTree \"github:o/repo/v1\"", "https://api.github.com/repos/o/repo/commits/v1"),
        ("builtins.fetchTree \"github:o/repo/REV-v1\"", "https://github.com/o/repo/archive/REV-v1.tar.gz"),
        ("builtins.fetchTree \"git+HTTP/git/repo\"", "HTTP/git/repo"),
        ("builtins.fetchTarball \"HTTP/files/plain.tar\"", "HTTP/files/plain.tar"),
        ("builtins.fetchurl \"HTTP/files/file\"", "HTTP/files/file"),
    ] {
        let error = lab.eval(expression, &["--offline"]).unwrap_err();
        let said = error.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&format!("unable to download '{}'", lab.fill(url))), "{error}");
        assert!(said.contains("the network is not to be used; where there is no network, another source"), "{error}");
    }
    assert!(lab.server.requests().is_empty());
}

#[test]
fn what_is_cached_is_asked_for_once() {
    let Some(lab) = Lab::find() else { return };
    let expression = "(builtins.fetchTree { type = \"tarball\"; url = \"HTTP/etag/plain.tar.gz\"; }).narHash";
    let first = lab.eval(expression, &[]).unwrap();
    assert_eq!(lab.server.requests().len(), 1);
    assert_eq!(lab.eval(expression, &[]).unwrap(), first);
    assert!(lab.server.requests().is_empty());
    // asked again, the server says that nothing changed
    assert_eq!(lab.eval(expression, &["--refresh"]).unwrap(), first);
    let asked = lab.server.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].headers["if-none-match"], "\"v1\"");
    // a commit is a commit
    let expression = "(builtins.fetchTree \"github:o/repo/REV-v1\").narHash";
    let first = lab.eval(expression, &[]).unwrap();
    lab.server.requests();
    assert_eq!(lab.eval(expression, &["--refresh"]).unwrap(), first);
    assert!(lab.server.requests().is_empty());
    let expression = "(builtins.fetchTree \"git+HTTP/git/repo?ref=trunk\").rev";
    assert_eq!(lab.eval(expression, &[]).unwrap(), json!(lab.rev("trunk")));
    lab.server.requests();
    assert_eq!(lab.eval(expression, &[]).unwrap(), json!(lab.rev("trunk")));
    assert!(lab.server.requests().is_empty());
    lab.eval(expression, &["--refresh"]).unwrap();
    assert!(!lab.server.requests().is_empty());
}
