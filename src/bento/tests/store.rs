//! `bento eval` and a real Nix store: derivations get into it as `nix-instantiate` puts them there, and what an evaluation
//! reads is built in it.
//!
//! Done with the Nix in `PATH` and with the one that `BENTO_NIX` names (its folder of programs), each in a store of its own,
//! over a daemon's socket and through a process. What is expected is what that Nix does in the same place.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bento::builtin::BuiltinEvaluator;

use bento::evaluation::{Evaluator, Resources, SearchPath, Subject};
use bento::host::{Host, HostKind};
use bento::secrets::folder::Folders;
use bento::source::SourceTree;
use tempfile::TempDir;

const FEATURES: &str = "nix-command flakes ca-derivations dynamic-derivations";

/// A Nix: where its programs are, if not in `PATH`.
#[derive(Clone)]
struct Nix(Option<PathBuf>);

impl Nix {
    /// The one that is compared with, if there is one.
    fn reference() -> Option<Self> {
        std::env::var_os("BENTO_NIX").map(|folder| Self(Some(folder.into())))
    }

    /// All that there are; if none, this is said.
    fn all() -> Vec<Self> {
        let mut found = Vec::from_iter(Self::reference());
        if Command::new("nix-daemon").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
            found.push(Self(None));
        }
        if found.is_empty() {
            println!("skipped: there is no nix-daemon in PATH, and BENTO_NIX does not name a folder with nix");
        }
        found
    }

    fn program(&self, name: &str) -> PathBuf {
        self.0.as_ref().map_or_else(|| name.into(), |folder| folder.join(name))
    }
}

/// A place with files to evaluate and a store of its own.
struct Place {
    nix: Nix,
    dir: TempDir,
    daemon: Option<Child>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // what is in a store is read-only
        let _ = Command::new("chmod").arg("-R").arg("u+w").arg(self.dir.path()).status();
    }
}

impl Place {
    fn new(nix: &Nix) -> Self {
        let dir = tempfile::Builder::new().prefix("bento-eval-").tempdir().unwrap();
        let place = Self { nix: nix.clone(), dir, daemon: None };
        for folder in ["conf", "bin", "tmp", "tree/inner", "flake", "home"] {
            fs::create_dir_all(place.path(folder)).unwrap();
        }
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/eval/files")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), place.path(file.file_name().to_str().unwrap())).unwrap();
        }
        fs::write(place.path("tree/program"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(place.path("tree/program"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(place.path("tree/left-out"), "x").unwrap();
        fs::write(place.path("tree/inner/file"), "y").unwrap();
        symlink("inner/file", place.path("tree/link")).unwrap();
        fs::write(place.path("flake/flake.nix"), "{ outputs = { self }: { text = \"${self}/data\"; }; }").unwrap();
        fs::write(place.path("flake/data"), "d").unwrap();
        let mut conf = format!(
            "sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = {FEATURES}\nflake-registry =\n"
        );
        if let Some(folder) = &nix.0 {
            // programs that are started through their loader can't start themselves
            conf += "build-hook =\n";
            // all that bento is to find: so that it asks `nix`, as there is no `nix-daemon`
            let script = format!("#!/bin/sh\nexec {} \"$@\"\n", folder.join("nix").display());
            fs::write(place.path("bin/nix"), script).unwrap();
            fs::set_permissions(place.path("bin/nix"), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(place.path("conf/nix.conf"), conf).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// Gives a command this place's store, as `remote` says.
    fn command(&self, program: impl AsRef<Path>, remote: &str) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .current_dir(self.path(""))
            .env("NIX_REMOTE", remote)
            .env("NIX_STATE_DIR", self.path("state"))
            .env("NIX_LOG_DIR", self.path("log"))
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("HOME", self.path("home"))
            .env("NIX_PATH", "")
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::null());
        if !remote.contains("root=") {
            command.env("NIX_STORE_DIR", self.path("store"));
        }
        command
    }

    /// One of Nix's programs, with the local store.
    fn nix(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(self.nix.program(program), "local").args(arguments).output().unwrap()
    }

    /// What one of Nix's programs prints.
    fn printed(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.nix(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn bento(&self, remote: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_bento"), remote);
        if self.nix.0.is_some() {
            command.env("PATH", self.path("bin"));
        }
        command.args(["eval", "--extra-experimental-features", FEATURES]).args(arguments).output().unwrap()
    }

    /// What bento prints, and what it says.
    fn evaluated(&self, remote: &str, arguments: &[&str]) -> (String, String) {
        let output = self.bento(remote, arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    }

    /// What bento says of its failure.
    fn failure(&self, remote: &str, arguments: &[&str]) -> String {
        let output = self.bento(remote, arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts a daemon, and gives how to reach it.
    fn start_daemon(&mut self) -> String {
        let socket = self.path("state/daemon-socket/socket");
        let mut command = match &self.nix.0 {
            None => self.command("nix-daemon", "local"),
            Some(folder) => {
                let mut command = self.command(folder.join("nix"), "local");
                command.arg("daemon");
                command
            }
        };
        self.daemon = Some(command.env("NIX_DAEMON_SOCKET_PATH", &socket).stderr(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "the daemon does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        "daemon".to_owned()
    }

    /// Empties the store.
    fn wipe(&self) {
        for folder in ["store", "state", "log"] {
            let path = self.path(folder);
            assert!(
                Command::new("sh")
                    .args(["-c", "[ ! -e $0 ] || chmod -R u+w $0"])
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            );
            let _ = fs::remove_dir_all(path);
        }
    }

    /// The closure of a path as it is registered: paths, hashes, sizes, references. Its contents fit that.
    fn closure(&self, path: &str) -> String {
        let output = self.nix("nix-store", &["--verify", "--check-contents"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("error"), "{said}");
        let paths = self.printed("nix-store", &["-qR", path]);
        let mut paths: Vec<&str> = paths.lines().collect();
        paths.sort_unstable();
        self.printed("nix-store", &[["--dump-db"].as_slice(), &paths].concat())
    }
}

#[test]
fn derivations_and_their_sources_get_into_the_store_as_nix_instantiate_puts_them_there() {
    for nix in Nix::all() {
        for multi_user in [false, true] {
            let mut place = Place::new(&nix);
            let expected = place.printed("nix-instantiate", &["sources.nix"]);
            let wanted = place.closure(expected.trim_end());
            assert!(wanted.contains("-renamed\n") && wanted.contains("-both.drv\n"), "{wanted}");
            place.wipe();
            let remote = if multi_user { place.start_daemon() } else { "local".to_owned() };
            let (printed, said) = place.evaluated(&remote, &["sources.nix", "--add-to-store"]);
            assert_eq!((printed.as_str(), said.as_str()), (expected.as_str(), ""));
            assert_eq!(place.closure(printed.trim_end()), wanted);
            // what is there already is left as it is
            assert_eq!(place.evaluated(&remote, &["sources.nix", "--add-to-store"]).0, expected);
            assert_eq!(place.closure(printed.trim_end()), wanted);
        }
    }
}

#[test]
fn nothing_gets_into_the_store_unless_it_is_asked_for() {
    for nix in Nix::all() {
        let place = Place::new(&nix);
        place.evaluated("local", &["sources.nix", "--drv-path"]);
        assert!(!place.path("store").exists() && !place.path("state").exists());
    }
}

#[test]
fn a_root_keeps_derivations_from_the_collector() {
    for nix in Nix::all() {
        let place = Place::new(&nix);
        let both = "let d = name: derivation { inherit name; system = \"s\"; builder = \"b\"; outputs = [ \"out\" \"dev\" ]; }; \
                    in [ (d \"one\") (d \"two\").dev ]";
        let expected = place.printed("nix-instantiate", &["--add-root", "roots", "--indirect", "-E", both]);
        let targets = |place: &Place| ["roots", "roots-2"].map(|link| fs::read_link(place.path(link)).unwrap());
        let expected_targets = targets(&place);
        place.wipe();
        fs::remove_file(place.path("roots-2")).unwrap();
        let (printed, _) = place.evaluated("local", &["--add-root", "roots", "-E", both]);
        assert_eq!(printed, expected);
        assert_eq!(targets(&place), expected_targets);
        place.evaluated(
            "local",
            &["--add-to-store", "-E", "derivation { name = \"x\"; system = \"s\"; builder = \"b\"; }"],
        );
        place.printed("nix-store", &["--gc"]);
        let mut left: Vec<String> = fs::read_dir(place.path("store"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .map(|name| name[33..].to_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["one.drv", "two.drv"]);
        fs::write(place.path("taken"), "").unwrap();
        let said = place.failure("local", &["--add-root", "taken", "-E", both]);
        assert!(said.contains("/taken': there is something else than a symbolic link already"), "{said}");
    }
}

#[test]
fn what_an_evaluation_reads_is_built() {
    for nix in Nix::all() {
        for multi_user in [false, true] {
            let mut place = Place::new(&nix);
            let remote = if multi_user { place.start_daemon() } else { "local".to_owned() };
            let arguments = ["--strict", "--json", "import-from-derivation.nix"];
            let (printed, said) = place.evaluated(&remote, &arguments);
            let built: Vec<&str> = said.lines().filter(|line| line.starts_with("building '")).collect();
            assert_eq!(built.len(), 3, "one line for each derivation: {said}");
            let expected =
                place.printed("nix-instantiate", &[["--eval", "--read-write-mode"].as_slice(), &arguments].concat());
            assert_eq!(printed.trim_end(), expected.trim_end());
            // what is built is read without asking anyone
            let (again, said) =
                place.evaluated("unix:///nowhere", &["import-from-derivation.nix", "-A", "readDir", "--json"]);
            assert_eq!((again.trim_end(), said.as_str()), ("{\"a\":\"regular\",\"refs\":\"regular\"}", ""));
            // and pure evaluation may read it
            let code = fs::read_to_string(place.path("import-from-derivation.nix")).unwrap();
            let (pure, _) = place.evaluated(&remote, &["--pure-eval", "-E", &format!("({code}).readFile")]);
            assert_eq!(pure, "\"a\\n\"\n");
        }
    }
}

#[test]
fn what_is_built_may_be_named_by_its_content() {
    let Some(nix) = Nix::reference() else {
        println!("skipped: BENTO_NIX does not name a folder with nix");
        return;
    };
    let place = Place::new(&nix);
    let arguments = ["--strict", "--json", "built-by-content.nix"];
    let (printed, _) = place.evaluated("local", &arguments);
    let expected = place.printed("nix-instantiate", &[["--eval", "--read-write-mode"].as_slice(), &arguments].concat());
    assert_eq!(printed.trim_end(), expected.trim_end());
}

#[test]
fn a_store_that_is_elsewhere_is_read_through_its_daemon() {
    for nix in Nix::all() {
        let place = Place::new(&nix);
        let conf = place.path("conf/nix.conf");
        let text = fs::read_to_string(&conf).unwrap();
        let paths = "sandbox = true\nsandbox-paths = /bin /lib /lib64 /usr";
        fs::write(&conf, text.replace("sandbox = false", paths)).unwrap();
        let remote = format!("local?root={}", place.path("root").display());
        let expression = "builtins.readFile (derivation { name = \"f\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
                          args = [ \"-c\" \"echo made > $out\" ]; })";
        let reference = place
            .command(place.nix.program("nix-build"), &remote)
            .args(["--no-out-link", "-E", &expression["builtins.readFile".len()..]])
            .output()
            .unwrap();
        if !reference.status.success() {
            println!("skipped: Nix can't build here in a store below a folder");
            continue;
        }
        fs::remove_dir_all(place.path("tmp")).unwrap();
        fs::create_dir(place.path("tmp")).unwrap();
        assert_eq!(place.evaluated(&remote, &["-E", expression]).0, "\"made\\n\"\n");
        assert_eq!(fs::read_dir(place.path("tmp")).unwrap().count(), 0, "no copy is left behind");
    }
}

#[test]
fn a_build_that_fails_is_an_error_with_the_end_of_its_log() {
    for nix in Nix::all() {
        let place = Place::new(&nix);
        let expression = "import (derivation { name = \"broken\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
                          args = [ \"-c\" \"echo this is why >&2; exit 7\" ]; })";
        let said = place.failure("local", &["-E", expression]);
        for word in ["building '", "-broken.drv", "exit code 7", "> this is why", "while realising the context of path"]
        {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!said.contains('\x1b'), "{said:?}");
        let unknown = "import (derivation { name = \"n\"; system = \"vax-vms\"; builder = \"b\"; })";
        let said = place.failure("local", &["-E", unknown]);
        assert!(said.contains("-n.drv") && said.contains("vax-vms"), "{said}");
    }
}

#[test]
fn a_machine_without_nix_says_what_it_cannot_build() {
    let place = Place::new(&Nix(Some("/does/not/exist".into())));
    fs::remove_file(place.path("bin/nix")).unwrap();
    let arguments = ["import-from-derivation.nix", "-A", "import"];
    for (remote, why) in [
        ("", "cannot start 'nix' to reach the Nix store: No such file"),
        ("daemon", "cannot connect to the Nix daemon at '"),
    ] {
        let said = place.failure(remote, &arguments);
        assert!(
            said.contains("error: cannot build '") && said.contains("-code.nix.drv^out' during evaluation"),
            "{said}"
        );
        assert!(said.contains(why), "{said}");
    }
    let said = place.failure("daemon", &["sources.nix", "--add-to-store"]);
    assert!(said.starts_with("error: cannot add the derivations to the Nix store: cannot connect to"), "{said}");
}

/// The folder with a host's configuration, in the process that [`a_host_can_be_instantiated`] starts.
const HOST: &str = "BENTO_TEST_HOST";

#[test]
fn a_host_can_be_instantiated() {
    let expected = "the host's system is ";
    if let Some(dir) = std::env::var_os(HOST) {
        let tree = SourceTree::stage(Path::new(&dir), &Folders::default()).unwrap();
        let host = Host { name: "x".parse().unwrap(), kind: HostKind::NonFlake };
        let search_path = SearchPath::new(&["nixpkgs=nixpkgs".to_owned()], &[], Path::new(&dir)).unwrap();
        let resources = Resources { jobs: 1, memory: 4 << 30, time: Duration::from_secs(600) };
        let subjects = [Subject { tree: &tree, host: &host }];
        BuiltinEvaluator::new(resources, None).instantiate_fleet(&subjects, &search_path, &mut |_, evaluation| {
            println!("{expected}{}", evaluation.unwrap().drv_path);
        });
        return;
    }
    for nix in Nix::all() {
        let place = Place::new(&nix);
        // the evaluators of hosts know no other store directory than /nix/store
        let remote = format!("local?root={}", place.path("root").display());
        fs::create_dir_all(place.path("host/nixpkgs/nixos")).unwrap();
        let system =
            "derivation { name = \"s\"; system = \"s\"; builder = configuration; text = builtins.toFile \"t\" \"t\"; }";
        let nixos = format!("{{ configuration }}: {{ config.system.build.toplevel = {system}; }}");
        fs::write(place.path("host/nixpkgs/nixos/default.nix"), nixos).unwrap();
        fs::write(place.path("host/configuration.nix"), "{ }").unwrap();
        let mut command = place.command(std::env::current_exe().unwrap(), &remote);
        if nix.0.is_some() {
            command.env("PATH", place.path("bin"));
        }
        let this = ["--exact", "a_host_can_be_instantiated", "--nocapture"];
        let output = command.env(HOST, place.path("host")).args(this).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
        let drv = printed.lines().find_map(|line| line.split_once(expected)).unwrap().1;
        let closure = place.command(nix.program("nix-store"), &remote).args(["-qR", drv]).output().unwrap();
        let closure = String::from_utf8(closure.stdout).unwrap();
        let mut names: Vec<&str> = closure.lines().map(|path| &path["/nix/store/".len() + 33..]).collect();
        names.sort_unstable();
        assert_eq!(names, ["configuration.nix", "s.drv", "t"]);
    }
}

#[test]
fn building_can_be_forbidden() {
    let Some(nix) = Nix::reference() else {
        println!("skipped: BENTO_NIX does not name a folder with nix");
        return;
    };
    let place = Place::new(&nix);
    let evaluate = ["import-from-derivation.nix", "-A", "import"];
    let message = |said: &str| said.lines().find(|line| line.contains("error: ")).unwrap().trim().to_owned();
    for options in
        [["--no-allow-import-from-derivation"].as_slice(), &["--option", "allow-import-from-derivation", "false"]]
    {
        let output =
            place.nix("nix-instantiate", &[["--eval", "--read-write-mode"].as_slice(), options, &evaluate].concat());
        let expected = message(&String::from_utf8_lossy(&output.stderr));
        assert!(expected.contains("is disabled"), "{expected}");
        let said = place.failure("local", &[options, &evaluate].concat());
        assert_eq!(message(&said), expected);
    }
    let (_, said) = place
        .evaluated("local", &[["--option", "trace-import-from-derivation", "true"].as_slice(), &evaluate].concat());
    assert!(said.contains("^out' during evaluation due to an import from derivation"), "{said}");
}
