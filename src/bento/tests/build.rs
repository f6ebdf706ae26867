//! `bento build`, and what `bento deploy` builds before it publishes.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use bento::build::log::{BuildLog, Progress};
use common::{Lab, Ran, free_port};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

/// A laboratory whose hub builds.
fn lab() -> Option<Lab> {
    let lab = Lab::new()?;
    let settings = lab.read("fleet/config.sh");
    lab.write("fleet/config.sh", &settings.replace("NOLOCALBUILD=1", ""));
    Some(lab)
}

#[test]
fn a_system_that_cannot_be_built_is_not_published_and_says_why() {
    let Some(lab) = lab() else { return };
    let broken = "build = \"echo first; echo here is compiler output; false\";";
    lab.flake_host("web", broken);
    lab.non_flake("router", broken);
    lab.flake_host("db", "");
    let ran = lab.bento(&["deploy"]).fails_with(&["web: failed: the build failed", "router: failed: the build failed"]);
    assert_eq!(ran.stderr.matches("here is compiler output").count(), 2, "{}", ran.stderr);
    assert!(!lab.path("chroot/web").exists() && !lab.path("chroot/router").exists());
    assert_eq!(lab.manifest("db")["serial"], 1);
    // and what was published before stays
    lab.flake_host("db", broken);
    let before = common::fingerprint(&lab.path("chroot/db"));
    lab.bento(&["deploy", "db"]).fails_with(&["db: failed: the build failed"]);
    assert_eq!(common::fingerprint(&lab.path("chroot/db")), before);
    // without building it is published as it is: the host finds out
    lab.bento(&["deploy", "db", "--no-build"]).succeeds();
    assert_eq!(lab.manifest("db")["serial"], 2);
    lab.agent("db").fails_with(&["the build failed"]);
    assert_eq!(lab.state("db"), "failing");
}

#[test]
fn what_is_published_is_kept_from_collection_until_it_leaves() {
    let Some(lab) = lab() else { return };
    let mut first = String::new();
    for text in 1..=6 {
        lab.flake_host("web", &format!("text = \"{text} {}\";", lab.port));
        lab.bento(&["deploy"]).succeeds();
        if text == 1 {
            first = lab.manifest("web")["toplevel"].as_str().unwrap().to_owned();
            let refused = lab.shell(&format!("nix-store --delete {first}"));
            assert!(!refused.ok && refused.stderr.contains("still alive"), "{refused:?}");
        }
    }
    assert_eq!(lab.names("chroot/.roots/web"), ["2", "3", "4", "5", "6"]);
    lab.shell(&format!("nix-store --delete {first}")).succeeds();
    // the second deploy of the same touches nothing
    let before = common::fingerprint(&lab.path("chroot"));
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(common::fingerprint(&lab.path("chroot")), before);
}

#[test]
fn without_nix_a_deploy_says_how_to_do_without() {
    let Some(lab) = lab() else { return };
    lab.flake_host("web", "");
    let output = lab.command_with_path("/nonexistent", &["deploy"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("NOLOCALBUILD") && said.contains("nix-store"), "{said}");
    assert!(!lab.path("chroot/web").exists());
}

#[test]
fn only_what_is_built_already_is_published_if_that_is_asked_for() {
    let Some(lab) = lab() else { return };
    lab.flake_host("web", &format!("text = \"built elsewhere {}\";", lab.port));
    lab.flake_host("db", &format!("text = \"not built {}\";", lab.port));
    lab.bento(&["build", "web"]).succeeds();
    lab.bento(&["deploy", "--built"]).fails_with(&["db: failed", "neither here nor in one of release.substituters"]);
    assert_eq!(lab.manifest("web")["serial"], 1);
    assert!(!lab.path("chroot/db").exists());
    // in a cache is as good as here
    lab.bento(&["build", "db"]).succeeds();
    let plan = lab.bento(&["deploy", "--dry-run", "--json", "db"]).succeeds();
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let toplevel = plan[0]["toplevel"].as_str().unwrap();
    let cache = format!("file://{}", lab.path("cache").display());
    let copy = format!("nix --extra-experimental-features nix-command copy --to '{cache}' {toplevel}");
    lab.shell(&format!("{copy} && nix-store --delete {toplevel}")).succeeds();
    lab.bento(&["deploy", "--built", "db"]).fails_with(&["neither here nor"]);
    let settings =
        format!("[hub]\ndirectory = \"{}\"\n[release]\nsubstituters = [\"{cache}\"]\n", lab.path("chroot").display());
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    lab.write("fleet/bento.toml", &settings);
    lab.bento(&["deploy", "--built", "db"]).succeeds();
    assert_eq!(lab.manifest("db")["serial"], 1);
}

/// An S3 server on loopback with an empty bucket `fleet`, for as long as this lives.
struct S3 {
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl S3 {
    /// Serves what is in the folder; with a key, only to those who have it.
    fn start(folder: &Path, auth: Option<SimpleAuth>) -> Self {
        fs::create_dir_all(folder.join("fleet")).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
        if let Some(auth) = auth {
            service.set_auth(auth);
        }
        let service = service.build().into_shared();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(hyper_util::rt::TokioIo::new(stream), service.clone()));
            }
        });
        Self { port, _runtime: runtime }
    }

    /// What Nix calls the bucket.
    fn url(&self) -> String {
        format!("s3://fleet?endpoint=http://127.0.0.1:{}&region=us-east-1", self.port)
    }
}

#[test]
fn what_is_in_a_bucket_of_s3_is_published_and_nothing_else() {
    let Some(lab) = lab() else { return };
    // Debian's older Nix knows no S3
    let Some(programs) = std::env::var_os("BENTO_NIX") else {
        println!("skipped: BENTO_NIX does not name a folder with nix");
        return;
    };
    let s3 = S3::start(&lab.path("s3"), None);
    lab.flake_host("web", &format!("text = \"in a bucket {} {}\";", s3.port, lab.dir.path().display()));
    lab.flake_host("db", &format!("text = \"in none {} {}\";", s3.port, lab.dir.path().display()));
    let built = lab.bento(&["build", "web", "--json"]).succeeds();
    let built: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    let toplevel = built[0]["toplevel"].as_str().unwrap().to_owned();
    // it is signed on its way, as in a CI that builds for the fleet
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    let nix = |script: &str| {
        lab.shell(&format!(
            "PATH={path}; nix() {{ command nix --extra-experimental-features nix-command \"$@\"; }}; {script}"
        ))
    };
    let key = |name: &str| {
        let file = lab.path(name).display().to_string();
        let public = nix(&format!(
            "nix key generate-secret --key-name {name} > {file}; nix key convert-secret-to-public < {file}"
        ));
        public.succeeds().stdout.trim().to_owned()
    };
    let (trusted, other) = (key("ci"), key("somebody"));
    nix(&format!("nix copy --to '{}&secret-key={}' {toplevel}", s3.url(), lab.path("ci").display())).succeeds();
    lab.shell(&format!("nix-store --delete {toplevel}")).succeeds();
    let settings = |cache: &str| {
        let chroot = lab.path("chroot").display().to_string();
        let release = format!("[release]\nsubstituters = [\"{cache}\"]\ntrusted-public-keys = [\"{trusted}\"]\n");
        lab.write("fleet/bento.toml", &format!("[hub]\ndirectory = \"{chroot}\"\n{release}"));
    };
    let deploy = || Ran::new(lab.command_with_path(&path, &["deploy", "--built"]).output().unwrap());
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    settings(&s3.url());
    let ran = deploy().fails_with(&["db: failed", "neither here nor in one of release.substituters", "is not valid"]);
    assert!(ran.stderr.contains("web: published release 1"), "{}", ran.stderr);
    assert_eq!(lab.manifest("web")["toplevel"], toplevel.as_str());
    assert!(!lab.path("chroot/db").exists());
    // whoever trusts that key gets it from there, and nobody else
    let fetch = |key: &str| {
        let store = lab.path("elsewhere").display().to_string();
        nix(&format!("nix --option trusted-public-keys '{key}' copy --from '{}' --to '{store}' {toplevel}", s3.url()))
    };
    fetch(&other).fails_with(&["lacks a signature by a trusted key"]);
    fetch(&trusted).succeeds();
    assert!(lab.path(&format!("elsewhere{toplevel}/bin/switch-to-configuration")).exists());
    // what another machine brings there later is seen at once
    let built = lab.bento(&["build", "db", "--json"]).succeeds();
    let built: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    let toplevel = built[0]["toplevel"].as_str().unwrap();
    let elsewhere =
        format!("export HOME={}; nix copy --to '{}' {toplevel}", lab.path("another-machine").display(), s3.url());
    nix(&elsewhere).succeeds();
    lab.shell(&format!("nix-store --delete {toplevel}")).succeeds();
    deploy().succeeds();
    assert_eq!(lab.manifest("db")["toplevel"], toplevel);
    // what was there once does not count
    fs::remove_dir_all(lab.path("s3/fleet")).unwrap();
    fs::create_dir(lab.path("s3/fleet")).unwrap();
    deploy().fails_with(&["web: failed", "db: failed", "neither here nor in one of release.substituters"]);
    // nor what only others can see: Nix takes that for absent
    let closed = S3::start(&lab.path("s3"), Some(SimpleAuth::from_single("key", "secret")));
    settings(&closed.url());
    deploy().fails_with(&["web: failed", "db: failed", "neither here nor in one of release.substituters"]);
    drop(closed);
    deploy().fails_with(&["web: failed", "db: failed", "neither here nor", "unable to download"]);
    assert_eq!((&lab.manifest("web")["serial"], &lab.manifest("db")["serial"]), (&1.into(), &1.into()));
}

#[test]
fn a_build_prints_what_it_built_and_publishes_nothing() {
    let Some(lab) = lab() else { return };
    lab.flake_host("web", &format!("text = \"{}\";", lab.port));
    lab.non_flake("router", &format!("text = \"{}\";", lab.port));
    let path = |ran: &Ran| {
        let line = ran.stderr.lines().find(|line| line.starts_with("web: ")).unwrap();
        line.split(' ').find(|word| word.starts_with("/nix/store/")).unwrap().to_owned()
    };
    let planned = lab.bento(&["build", "dry-run"]).succeeds();
    let toplevel = path(&planned);
    assert!(planned.stderr.contains("web: would build ") && planned.stderr.contains("router: would build "));
    assert!(!lab.shell(&format!("test -e {toplevel}")).ok);
    let planned = lab.bento(&["build", "dry-build", "web"]).succeeds();
    assert!(planned.stderr.contains("will be built") && planned.stderr.contains("nixos-system-web.drv"), "{planned:?}");
    assert!(!lab.shell(&format!("test -e {toplevel}")).ok);
    // by the environment too, and for non-flakes
    let mut command = lab.command(&["build"]);
    let output = command.env("NAME", "router").env("VERBOSE", "1").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("router: built ") && !said.contains("web: "), "{said}");
    assert!(said.contains("router: nixos-system-router> building nixos-system-router"), "{said}");
    let built = lab.bento(&["build", "--json"]).succeeds();
    let built: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    assert_eq!(built.as_array().unwrap().len(), 2);
    assert_eq!(built[1]["toplevel"], toplevel.as_str());
    lab.shell(&format!("test -e {toplevel}/bin/switch-to-configuration")).succeeds();
    assert!(lab.names("chroot").is_empty());
    lab.bento(&["build", "nothing"]).fails_with(&["no host nothing", "found: router, web"]);
}

#[test]
fn parts_of_a_fleet_are_built_apart() {
    let Some(lab) = lab() else { return };
    for host in ["web", "web2", "db"] {
        lab.flake_host(host, "");
    }
    let built = |shard: &str| {
        let ran = lab.bento(&["build", "dry-run", "--shard", shard, "--json"]).succeeds();
        let lines: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let names = lines.as_array().unwrap().iter().map(|line| line["host"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let mut all: Vec<String> = ["1/3", "2/3", "3/3"].into_iter().flat_map(built).collect();
    all.sort();
    assert_eq!(all, ["db", "web", "web2"]);
}

/// A script that runs the program on a machine of this name.
fn named(lab: &Lab, name: &str, arguments: &str) -> String {
    let root = lab.path("hosts/web");
    format!(
        "export TINY_ROOT={}; unshare --uts sh -c 'hostname {name}; exec {} {arguments}'",
        root.display(),
        env!("CARGO_BIN_EXE_bento")
    )
}

#[test]
fn a_system_is_applied_here_only_if_this_machine_is_that_host_and_somebody_agrees() {
    let Some(lab) = lab() else { return };
    // another system than any other test's
    lab.flake_host("web", &format!("text = \"{}\";", lab.dir.path().display()));
    lab.flake_host("db", "");
    lab.shell(&named(&lab, "web", "build switch")).fails_with(&["say which host"]);
    lab.shell(&named(&lab, "web", "build switch db")).fails_with(&["this machine is web, not db"]);
    lab.shell(&named(&lab, "web", "build switch web db")).fails_with(&["only one host", "db, web"]);
    // nobody answers, somebody answers something else
    let question = ["switch this machine, which is web, to /nix/store/", "nothing was applied"];
    lab.shell(&named(&lab, "web", "build switch web")).fails_with(&question);
    lab.shell(&format!("echo no | {}", named(&lab, "web", "build test web").replace("exec", "")))
        .fails_with(&["test this machine, which is web", "nothing was applied"]);
    assert!(lab.activations("web").is_empty());
    lab.shell(&named(&lab, "web.example.org", "build test web --yes")).succeeds();
    assert_eq!(lab.activations("web").len(), 1);
    assert!(lab.activations("web")[0].starts_with("test /nix/store/"));
    let profile = "readlink -f /nix/var/nix/profiles/system";
    let before = lab.shell(profile).stdout;
    lab.shell(&named(&lab, "web", "build switch web --yes")).succeeds();
    let after = lab.shell(profile).stdout;
    assert_ne!(before, after);
    assert_eq!(lab.activations("web")[1], format!("switch {}", after.trim()));
}

#[test]
fn a_system_is_applied_to_another_machine_over_ssh() {
    let Some(lab) = lab() else { return };
    lab.flake_host("web", "");
    // an ssh that writes down how it was called, and runs the command here
    let ssh = lab.path("bin/ssh");
    lab.write(
        "bin/ssh",
        &format!(
            "#!/bin/sh\necho \"$*\" >> {}\nfor last; do :; done\ncase \"$last\" in uname*) echo web; exit;; esac\n\
             while [ $# -gt 0 ]; do case \"$1\" in root@192.0.2.7) shift; break;; esac; shift; done\n\
             [ \"$1\" = -x ] && shift; [ \"$1\" = -a ] && shift\n\
             while case \"$1\" in -*) true;; *) false;; esac; do shift; done\nexec sh -c \"$*\"\n",
            lab.path("ssh.log").display()
        ),
    );
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", lab.path("bin").display());
    let run = |arguments: &[&str]| {
        let mut command = lab.command_with_path(&path, arguments);
        command.env("TARGET_IP", "root@192.0.2.7").env("NIX_SSHOPTS", "-p2222 -oBatchMode=yes");
        command.env("TINY_ROOT", lab.path("hosts/web")).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"yes\n").unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    lab.flake_host("db", "");
    let (ok, said) = run(&["build", "switch", "db"]);
    assert!(!ok && said.contains("the machine at root@192.0.2.7 is web, not db"), "{said}");
    let (ok, said) = run(&["build", "switch", "web"]);
    assert!(ok && said.contains("switch the machine at root@192.0.2.7, which is web, to /nix/store/"), "{said}");
    assert!(lab.activations("web")[0].starts_with("switch /nix/store/"));
    // with the options as they were given, to copy as well as to activate
    let calls = lab.read("ssh.log");
    assert!(calls.lines().all(|call| call.contains("-p2222 -oBatchMode=yes")), "{calls}");
    assert!(calls.contains("nix-store --serve"), "{calls}");
}

/// Another machine's sshd and Nix store, as far as a name space is another machine; gone when dropped.
struct Builder {
    sshd: Child,
    port: u16,
}

impl Builder {
    fn start(lab: &Lab) -> Self {
        let port = free_port();
        fs::create_dir_all(lab.path("builder/nix")).unwrap();
        lab.write(
            "builder/conf/nix.conf",
            "build-users-group =\nsandbox = false\nsubstituters =\ntrusted-users = root\n",
        );
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/other\nPidFile none\nUsePAM no\nStrictModes no\n\
             AuthorizedKeysFile {0}/keys/admin.pub\nPermitRootLogin yes\nSetEnv NIX_CONF_DIR={0}/builder/conf\n",
            lab.dir.path().display()
        );
        lab.write("builder/sshd_config", &config);
        let script = format!(
            "exec unshare --mount sh -c 'mount --bind {0}/builder/nix /nix; exec /usr/sbin/sshd -D -f {0}/builder/sshd_config'",
            lab.dir.path().display()
        );
        let builder = Self { sshd: lab.start(&script), port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the builder's sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        builder
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

#[test]
fn systems_are_built_by_nix_s_remote_builders_where_these_are_set_up() {
    let Some(lab) = lab() else { return };
    let builder = Builder::start(&lab);
    // new in each run: nobody has built it yet
    lab.flake_host("web", &format!("text = \"{} {}\";", builder.port, lab.dir.path().display()));
    let system = if cfg!(target_arch = "aarch64") { "aarch64-linux" } else { "x86_64-linux" };
    // as an administrator has it in nix.conf: nothing is built here
    let nix = format!(
        "substituters =\nbuild-users-group =\nsandbox = false\nflake-registry =\nmax-jobs = 0\n\
         builders = ssh://root@127.0.0.1 {system} {} 1 1\n",
        lab.path("keys/admin").display()
    );
    let deploy = |port: u16| {
        let options = format!("-p {port} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null");
        lab.command(&["deploy"]).env("NIX_CONFIG", &nix).env("NIX_SSHOPTS", options).output().unwrap()
    };
    let toplevel = |lab: &Lab| lab.manifest("web")["toplevel"].as_str().unwrap().to_owned();
    let failed = deploy(1);
    assert!(!failed.status.success() && !lab.path("chroot/web").exists());
    let ran = deploy(builder.port);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let name = toplevel(&lab).trim_start_matches("/nix/store/").to_owned();
    assert!(lab.path(&format!("builder/nix/store/{name}/bin/switch-to-configuration")).exists());
    lab.shell(&format!("test -e /nix/store/{name}/bin/switch-to-configuration")).succeeds();
    lab.agent("web").succeeds();
}

#[test]
fn nix_log_becomes_progress_and_a_reason() {
    // what Nix 2.34 prints, shortened: builds, their phases and lines, totals, an error with colours
    let lines = [
        r#"@nix {"action":"start","fields":[],"id":1,"level":5,"parent":0,"text":"","type":102}"#,
        r#"@nix {"action":"start","id":2,"level":0,"parent":0,"text":"","type":104}"#,
        r#"@nix {"action":"start","id":3,"level":0,"parent":0,"text":"","type":103}"#,
        r#"@nix {"action":"result","fields":[0,3,0,0],"id":2,"type":105}"#,
        r#"@nix {"action":"result","fields":[1,2,1,0],"id":3,"type":105}"#,
        r#"@nix {"action":"start","fields":["/nix/store/00000000000000000000000000000000-glibc-2.40.drv","",1,1],"id":7,"level":3,"parent":0,"text":"building","type":105}"#,
        r#"@nix {"action":"result","fields":["buildPhase"],"id":7,"type":104}"#,
    ];
    let mut log = BuildLog::default();
    assert!(lines.iter().all(|line| log.read(line).is_none()));
    let progress = log.progress().unwrap();
    let expected = Progress { built: (0, 3), fetched: (1, 2), current: Some("glibc-2.40 (buildPhase)".to_owned()) };
    assert_eq!(progress, expected);
    assert_eq!(progress.to_string(), "built 0/3, fetched 1/2, glibc-2.40 (buildPhase)");
    assert_eq!(log.progress(), None, "nothing changed");
    assert_eq!(Progress::default().to_string(), "preparing");
    for number in 0..40 {
        let line = format!(r#"@nix {{"action":"result","fields":["line {number}"],"id":7,"type":101}}"#);
        assert_eq!(log.read(&line).unwrap(), format!("glibc-2.40> line {number}"));
    }
    assert_eq!(log.failure(), None);
    log.read(r#"@nix {"action":"stop","id":7}"#);
    assert_eq!(log.progress().unwrap().current, None);
    log.read(
        r#"@nix {"action":"msg","level":0,"msg":"\u001b[31;1merror:\u001b[0m builder for '\u001b[35;1m/nix/store/00000000000000000000000000000000-glibc-2.40.drv\u001b[0m' failed with exit code 2"}"#,
    );
    let reason = log.failure().unwrap();
    assert!(reason.starts_with("builder for '/nix/store/00000000000000000000000000000000-glibc-2.40.drv' failed"));
    assert!(
        reason.contains("> line 39") && reason.contains("> line 15") && !reason.contains("> line 14\n"),
        "{reason}"
    );
    // what isn't of that form is shown as it is; what is and can't be read is nothing
    assert_eq!(log.read("warning: something").unwrap(), "warning: something");
    for strange in ["@nix {", "@nix {\"action\":\"dance\"}", "@nix {\"action\":\"result\",\"id\":9,\"type\":101}", ""] {
        assert_eq!(log.read(strange), None, "{strange}");
    }
}
