//! The worker protocol, spoken with real daemons: those of the Nix in `PATH` and of the one that `BENTO_NIX` names (its
//! folder of programs), behind a socket and as processes, in versions of the protocol from the oldest to the newest.
//!
//! Each store is in a folder of its own; what is in it afterwards is looked at with that Nix's own programs.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bento_store::{
    content_address::{ContentAddress, ContentAddressMethod},
    derivation::{Derivation, DerivationError, DerivationOutput, InputOutputs},
    derived_path::{DerivedPath, OutputsSpec, SingleDerivedPath},
    hash::{Hash, HashAlgo},
    nar,
    store_path::{References, StoreDir, StorePath},
    worker::{BuildMode, BuildStatus, Connection, Contents, Event, Object, Options, PathInfo, Version, WorkerError},
};
use tempfile::TempDir;

/// A Nix: how its programs are called.
#[derive(Clone)]
struct Nix {
    folder: Option<PathBuf>,
}

impl Nix {
    /// All that there are; if none, this is said.
    fn all() -> Vec<Self> {
        let mut found = Vec::new();
        if let Some(folder) = std::env::var_os("BENTO_NIX") {
            found.push(Self { folder: Some(folder.into()) });
        }
        if Command::new("nix-daemon").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
            found.push(Self { folder: None });
        }
        if found.is_empty() {
            println!("skipped: there is no nix-daemon in PATH, and BENTO_NIX does not name a folder with nix");
        }
        found
    }

    fn command(&self, program: &str) -> Command {
        match (&self.folder, program) {
            (None, _) => Command::new(program),
            (Some(folder), "nix-daemon") => {
                let mut command = Command::new(folder.join("nix"));
                command.args(["--extra-experimental-features", "nix-command", "daemon"]);
                command
            }
            (Some(folder), _) => Command::new(folder.join(program)),
        }
    }
}

/// A store of its own.
struct Store {
    nix: Nix,
    dir: TempDir,
    store: StoreDir,
    daemon: Option<Child>,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // what is in a store is read-only
        let _ = Command::new("chmod").arg("-R").arg("u+w").arg(self.dir.path()).status();
    }
}

impl Store {
    fn new(nix: &Nix) -> Self {
        let dir = tempfile::Builder::new().prefix("bento-store-").tempdir().unwrap();
        let at = dir.path().canonicalize().unwrap();
        fs::create_dir(at.join("conf")).unwrap();
        let mut conf = "sandbox = false\nbuild-users-group =\nsubstituters =\ntrusted-users =\n".to_owned();
        if nix.folder.is_some() {
            // programs that are started through their loader can't start themselves
            conf += "build-hook =\n";
        }
        fs::write(at.join("conf/nix.conf"), conf).unwrap();
        let store = StoreDir::new(at.join("store").to_str().unwrap()).unwrap();
        Self { nix: nix.clone(), dir, store, daemon: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.nix.command(program);
        command
            .env("NIX_REMOTE", "local")
            .env("NIX_STORE_DIR", self.store.as_str())
            .env("NIX_STATE_DIR", self.path("state"))
            .env("NIX_LOG_DIR", self.path("log"))
            .env("NIX_CONF_DIR", self.path("conf"))
            .env("NIX_DAEMON_SOCKET_PATH", self.path("socket"))
            .env("HOME", self.path("home"))
            .stdin(Stdio::null());
        command
    }

    /// What one of Nix's programs prints, line by line, sorted.
    fn run(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mut lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Everything in the store is as it is registered.
    fn verify(&self) {
        let output = self.command("nix-store").args(["--verify", "--check-contents"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("error"), "{said}");
    }

    /// A connection to a daemon that is started for it.
    fn start(&self, options: Options) -> Connection {
        let mut command = self.command("nix-daemon");
        command.arg("--stdio");
        Connection::start(command, self.store.clone(), options).unwrap()
    }

    /// A connection to the daemon behind the socket.
    fn open(&mut self, options: Options) -> Connection {
        let socket = self.path("socket");
        if self.daemon.is_none() {
            self.daemon = Some(self.command("nix-daemon").stderr(Stdio::null()).spawn().unwrap());
            // a daemon has its socket before it listens, which is what the flag says (proc_net(5))
            let listens = |line: &str| line.contains(" 00010000 ") && line.ends_with(socket.to_str().unwrap());
            let start = Instant::now();
            while !fs::read_to_string("/proc/net/unix").unwrap().lines().any(listens) {
                assert!(start.elapsed() < Duration::from_secs(20), "the daemon does not come up");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Connection::open(&socket, self.store.clone(), options).unwrap()
    }
}

fn speaking(minor: u8) -> Options {
    Options { version: Version { major: 1, minor }, ..Options::default() }
}

/// Objects in files: each is what lies under its base name in a folder.
struct Made {
    store: StoreDir,
    dir: TempDir,
    infos: BTreeMap<StorePath, PathInfo>,
}

impl Made {
    fn new(store: &StoreDir) -> Self {
        Self { store: store.clone(), dir: tempfile::tempdir().unwrap(), infos: BTreeMap::new() }
    }

    fn register(
        &mut self,
        made: &Path,
        name: &str,
        method: ContentAddressMethod,
        references: &[&StorePath],
    ) -> StorePath {
        let (nar_hash, nar_size) = nar::hash_path::<nar::NarError>(made, nar::keep_all, HashAlgo::Sha256).unwrap();
        let hash = match method {
            ContentAddressMethod::NixArchive => nar_hash,
            _ => Hash::digest(HashAlgo::Sha256, fs::read(made).unwrap()),
        };
        let address = ContentAddress { method, hash };
        let others: BTreeSet<StorePath> = references.iter().map(|path| (*path).clone()).collect();
        let references = References { others: others.clone(), itself: false };
        let path = self.store.make_content_addressed_path(name, &address, &references).unwrap();
        fs::rename(made, self.dir.path().join(path.as_str())).unwrap();
        let info = PathInfo {
            deriver: None,
            nar_hash,
            nar_size,
            references: others,
            registered: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            address: Some(address),
        };
        self.infos.insert(path.clone(), info);
        path
    }

    fn file(
        &mut self,
        name: &str,
        method: ContentAddressMethod,
        text: impl AsRef<[u8]>,
        refs: &[&StorePath],
    ) -> StorePath {
        let made = self.dir.path().join("made");
        fs::write(&made, text).unwrap();
        self.register(&made, name, method, refs)
    }

    fn text(&mut self, name: &str, text: impl AsRef<[u8]>, references: &[&StorePath]) -> StorePath {
        self.file(name, ContentAddressMethod::Text, text, references)
    }

    /// A directory with a program, a link, an empty directory, and `size` bytes.
    fn tree(&mut self, name: &str, size: usize) -> StorePath {
        let made = self.dir.path().join("made");
        fs::create_dir_all(made.join("empty/inner")).unwrap();
        fs::write(made.join("program"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(made.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("program", made.join("link")).unwrap();
        fs::write(made.join("data"), vec![b'x'; size]).unwrap();
        self.register(&made, name, ContentAddressMethod::NixArchive, &[])
    }

    /// A derivation whose builder is a script for /bin/sh.
    fn derivation(
        &mut self,
        name: &str,
        script: &str,
        sources: &[&StorePath],
        inputs: &[(&StorePath, &Derivation)],
    ) -> (StorePath, Derivation) {
        let env = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        let mut drv = Derivation {
            name: name.to_owned(),
            outputs: [("out".to_owned(), DerivationOutput::Deferred)].into(),
            platform: b"x86_64-linux".to_vec(),
            builder: b"/bin/sh".to_vec(),
            args: vec![b"-c".to_vec(), script.as_bytes().to_vec()],
            env: [env("name", name), env("builder", "/bin/sh"), env("system", "x86_64-linux"), env("out", "")].into(),
            input_srcs: sources.iter().map(|path| (*path).clone()).collect(),
            input_drvs: inputs
                .iter()
                .map(|(path, _)| {
                    let outputs = InputOutputs { outputs: ["out".to_owned()].into(), ..InputOutputs::default() };
                    ((*path).clone(), outputs)
                })
                .collect(),
        };
        drv.fill_in_output_paths(&self.store, |path| {
            let (_, input) = inputs.iter().find(|(input, _)| *input == path).unwrap();
            input.hash_modulo(&self.store, |_| Err(DerivationError::NoOutputs))
        })
        .unwrap();
        let (path, contents) = drv.to_file(&self.store).unwrap();
        let references: Vec<&StorePath> = drv.input_srcs.iter().chain(drv.input_drvs.keys()).collect();
        assert_eq!(self.text(&format!("{name}.drv"), contents, &references), path);
        (path, drv)
    }

    /// All of them, those that refer before what they refer to: not in the order in which they can be added.
    fn objects(&self) -> Vec<Object> {
        let object =
            |(path, info): (&StorePath, &PathInfo)| Object { path: path.clone(), references: info.references.clone() };
        let mut objects: Vec<Object> = self.infos.iter().map(object).collect();
        objects.sort_by_key(|object| std::cmp::Reverse(object.references.len()));
        objects
    }
}

impl Contents for Made {
    fn info(&self, object: &Object) -> Result<PathInfo, Box<dyn Error + Send + Sync>> {
        Ok(self.infos[&object.path].clone())
    }

    fn nar(&self, object: &Object, sink: &mut dyn Write) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(nar::dump::<nar::NarError>(&nar::OsFiles, &self.dir.path().join(object.path.as_str()), nar::keep_all, sink)?)
    }
}

/// A closure of every kind of object, with its derivation at the end.
fn closure(store: &StoreDir) -> (Made, StorePath) {
    let mut made = Made::new(store);
    let leaf = made.text("leaf", "hello", &[]);
    let middle = made.text("middle", store.print(&leaf), &[&leaf]);
    let tree = made.tree("tree", 200_000);
    let flat = made.file("flat", ContentAddressMethod::Flat, "flat", &[]);
    let top = made.text("top", format!("{} {}", store.print(&middle), store.print(&tree)), &[&middle, &tree]);
    let script = format!("read line < {}; echo $line there > $out", store.print(&leaf));
    let (first, first_drv) = made.derivation("first", &script, &[&leaf, &flat], &[]);
    let first_out = store.print(first_drv.output_paths(store).unwrap()["out"].as_ref().unwrap());
    let (second, _) = made.derivation(
        "second",
        &format!("echo got; read line < {first_out}; echo $line > $out"),
        &[&top],
        &[(&first, &first_drv)],
    );
    (made, second)
}

fn check_added(store: &Store, made: &Made) {
    let printed: Vec<String> = made.infos.keys().map(|path| store.store.print(path)).collect();
    let mut all =
        store.run("nix-store", &[&["-qR"], printed.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    all.dedup();
    let mut expected = printed.clone();
    expected.sort();
    assert_eq!(all, expected);
    for (path, info) in &made.infos {
        let mut references: Vec<String> = info.references.iter().map(|path| store.store.print(path)).collect();
        references.sort();
        assert_eq!(store.run("nix-store", &["-q", "--references", &store.store.print(path)]), references);
    }
    store.verify();
}

#[test]
fn adds_what_is_missing_in_every_version_of_the_protocol() {
    for nix in Nix::all() {
        for minor in [18, 20, 21, 22, 23, 25, 26, 31, 32, 35, 38] {
            let mut store = Store::new(&nix);
            let (made, top) = closure(&store.store);
            let objects = made.objects();
            let leaf = objects.iter().find(|object| object.path.name() == "leaf").unwrap().clone();
            let mut connection =
                if minor % 2 == 0 { store.open(speaking(minor)) } else { store.start(speaking(minor)) };
            assert!(connection.version() <= Version { major: 1, minor });
            let alone = connection.add_missing(std::slice::from_ref(&leaf), &made).unwrap();
            assert_eq!((alone.objects, alone.bytes), (1, made.infos[&leaf.path].nar_size));
            let rest = connection.add_missing(&objects, &made).unwrap();
            assert_eq!(rest.objects, objects.len() - 1, "only what is missing");
            assert_eq!(connection.add_missing(&objects, &made).unwrap().objects, 0);
            let paths: BTreeSet<StorePath> = made.infos.keys().cloned().collect();
            assert_eq!(connection.query_valid_paths(&paths, false).unwrap(), paths);
            for (path, info) in &made.infos {
                let known = connection.query_path_info(path).unwrap().unwrap();
                assert_eq!(PathInfo { registered: 0, ..known }, *info, "1.{minor}");
            }
            let absent = top.as_str().replace("second", "absent").parse().unwrap();
            assert_eq!(connection.query_path_info(&absent).unwrap(), None);
            check_added(&store, &made);
        }
    }
}

#[test]
fn builds_and_tells_what_the_builders_print() {
    for nix in Nix::all() {
        for minor in [18, 29, 34, 38] {
            let store = Store::new(&nix);
            let (mut made, second) = closure(&store.store);
            let (failing, _) = made.derivation("failing", "echo before; echo broken >&2; exit 3", &[], &[]);
            let heard: Arc<Mutex<Vec<Event>>> = Arc::default();
            let listener = {
                let heard = heard.clone();
                Box::new(move |event| heard.lock().unwrap().push(event))
            };
            let mut connection = store.start(Options { listener, ..speaking(minor) });
            connection.add_missing(&made.objects(), &made).unwrap();
            let wanted = DerivedPath::outputs_of(second.clone());
            let missing = (minor >= 19).then(|| connection.query_missing(std::slice::from_ref(&wanted)).unwrap());
            if let Some(missing) = missing {
                assert!(missing.build.contains(&second) && missing.build.len() == 2, "{missing:?}");
            }
            let built = connection.build(std::slice::from_ref(&wanted), BuildMode::Normal).unwrap();
            assert_eq!(built.iter().map(|result| result.status).collect::<Vec<_>>(), [BuildStatus::Built]);
            let events = heard.lock().unwrap().clone();
            let lines: Vec<&str> = events.iter().filter_map(|event| event.log_line()).map(|(_, line)| line).collect();
            // older ones tell it as messages
            if minor >= 20 {
                assert_eq!(lines, ["got"]);
                let begun: Vec<&str> = events
                    .iter()
                    .filter_map(|event| match event {
                        Event::Started(activity) => activity.subject(),
                        _ => None,
                    })
                    .collect();
                assert_eq!(begun.len(), 2, "{events:?}");
                assert_eq!(begun[1], store.store.print(&second));
            }
            let out = store.store.print(&connection_output(&mut connection, &made, &second));
            assert_eq!(fs::read_to_string(&out).unwrap(), "hello there\n");

            let wanted = DerivedPath::Built {
                drv: SingleDerivedPath::Opaque(failing.clone()),
                outputs: OutputsSpec::Names(["out".to_owned()].into()),
            };
            let said = match connection.build(&[wanted], BuildMode::Normal) {
                Ok(results) => {
                    assert_eq!(results[0].status, BuildStatus::Failed);
                    results[0].message.clone()
                }
                Err(WorkerError::Failed { message, .. }) => message,
                Err(other) => panic!("{other}"),
            };
            assert!(!said.contains('\x1b') && !said.starts_with("error"), "{said:?}");
            assert!(said.contains("failing.drv") && said.contains("exit code 3") && said.contains("broken"), "{said}");
            // a failure of a build leaves the connection as it was
            assert!(connection.query_path_info(&failing).unwrap().is_some());
            drop(connection);
            store.verify();
        }
    }
}

fn connection_output(connection: &mut Connection, made: &Made, drv: &StorePath) -> StorePath {
    if connection.version().minor >= 22 {
        return connection.query_outputs(drv).unwrap()["out"].clone().unwrap();
    }
    let contents = fs::read(made.dir.path().join(drv.as_str())).unwrap();
    let drv = Derivation::parse(&made.store, drv.derivation_name().unwrap(), &contents).unwrap();
    drv.output_paths(&made.store).unwrap()["out"].clone().unwrap()
}

#[test]
fn unpacks_and_keeps_from_the_collector() {
    for nix in Nix::all() {
        let mut store = Store::new(&nix);
        let mut made = Made::new(&store.store);
        let (tree, kept, linked) =
            (made.tree("tree", 70_000), made.text("kept", "k", &[]), made.text("linked", "l", &[]));
        let mut connection = store.open(Options::default());
        connection.add_missing(&made.objects(), &made).unwrap();
        let copy = store.path("copy");
        connection.unpack(&tree, &copy).unwrap();
        let hash = nar::hash_path::<nar::NarError>(&copy, nar::keep_all, HashAlgo::Sha256).unwrap().0;
        assert_eq!(hash, made.infos[&tree].nar_hash);
        let link = store.path("link");
        symlink(store.store.print(&linked), &link).unwrap();
        connection.add_indirect_root(&link).unwrap();
        drop(connection);
        let mut connection = store.open(Options::default());
        connection.add_temp_root(&kept).unwrap();
        store.run("nix-store", &["--gc"]);
        let left: BTreeSet<StorePath> =
            connection.query_valid_paths(made.infos.keys().collect::<Vec<_>>(), false).unwrap();
        assert_eq!(left, [kept, linked].into());
    }
}

/// Contents that turn out differently from what was announced.
struct Lying<'m>(&'m Made, fn(&mut PathInfo), &'static str);

impl Contents for Lying<'_> {
    fn info(&self, object: &Object) -> Result<PathInfo, Box<dyn Error + Send + Sync>> {
        let mut info = self.0.info(object)?;
        if object.path.name() == self.2 {
            (self.1)(&mut info);
        }
        Ok(info)
    }

    fn nar(&self, object: &Object, sink: &mut dyn Write) -> Result<(), Box<dyn Error + Send + Sync>> {
        if object.path.name() == "unreadable" {
            sink.write_all(b"half")?;
            return Err("it is locked away".into());
        }
        self.0.nar(object, sink)
    }
}

#[test]
fn says_what_is_wrong_with_objects() {
    for nix in Nix::all() {
        for minor in [20, 21, 31, 38] {
            let store = Store::new(&nix);
            let (mut made, _) = closure(&store.store);
            let mut connection = store.start(speaking(minor));
            // not the daemon, so that it is the same for all
            let orphan = made.objects().into_iter().filter(|object| object.path.name() == "middle").collect::<Vec<_>>();
            let error = connection.add_missing(&orphan, &made).unwrap_err().to_string();
            assert!(
                error.contains("-leaf', which '") && error.ends_with("-middle' refers to, is not in the store"),
                "{error}"
            );
            // a wrong hash is the daemon's to find; it can be asked on
            let lying = Lying(&made, |info| info.nar_hash = Hash::zero(HashAlgo::Sha256), "top");
            let error = connection.add_missing(&made.objects(), &lying).unwrap_err();
            assert!(
                matches!(&error, WorkerError::Failed { message, .. } if message.contains("hash mismatch")),
                "1.{minor}: {error}"
            );
            if minor != 21 && minor != 20 {
                assert!(connection.query_path_info(&orphan[0].path).is_ok(), "1.{minor}");
            }
            let mut connection = store.start(speaking(minor));
            let lying = Lying(&made, |info| info.nar_size += 8, "top");
            let error = connection.add_missing(&made.objects(), &lying).unwrap_err().to_string();
            assert!(error.contains("-top' is made of: it has changed while it was read"), "{error}");
            assert!(matches!(connection.query_path_info(&orphan[0].path), Err(WorkerError::Broken)));
            let unreadable = made.text("unreadable", "u", &[]);
            let mut connection = store.start(speaking(minor));
            let object = Object { path: unreadable, references: BTreeSet::new() };
            let error = connection.add_missing(&[object], &Lying(&made, |_| {}, "")).unwrap_err().to_string();
            assert!(error.contains("-unreadable' is made of: it is locked away"), "{error}");
            drop(connection);
            let mut connection = store.start(speaking(minor));
            connection.add_missing(&made.objects(), &made).unwrap();
            drop(connection);
            store.verify();
        }
    }
}

#[test]
fn an_untrusted_user_cannot_add_what_has_no_address() {
    for nix in Nix::all() {
        let mut store = Store::new(&nix);
        let mut made = Made::new(&store.store);
        made.text("plain", "p", &[]);
        let mut connection = store.open(Options::default());
        if let Some(trusted) = connection.trusted() {
            assert!(!trusted);
        }
        let lying = Lying(&made, |info| info.address = None, "plain");
        let error = connection.add_missing(&made.objects(), &lying).unwrap_err().to_string();
        assert!(error.contains("lacks a") && error.contains("signature"), "{error}");
        // the daemon has read what it refused
        assert_eq!(connection.add_missing(&made.objects(), &made).unwrap().objects, 1);
    }
}

#[test]
fn what_is_no_daemon_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let open = || Connection::open(&socket, StoreDir::default(), Options::default()).unwrap_err();
    let error = open().to_string();
    assert!(error.starts_with("cannot connect to the Nix daemon at '/") && error.contains("No such file"), "{error}");
    let start = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        Connection::start(command, StoreDir::default(), Options::default()).unwrap_err()
    };
    let error = start("/does/not/exist", &[]).to_string();
    assert!(error.starts_with("cannot start '/does/not/exist' to reach the Nix store: No such file"), "{error}");
    let error = start("sh", &["-c", "echo 'error: no store for you' >&2; exit 1"]).to_string();
    assert!(error.contains("it said: error: no store for you"), "{error}");
    assert!(matches!(start("cat", &[]), WorkerError::NoDaemon(_)));
    assert!(matches!(
        start("sh", &["-c", "printf 'oixd\\0\\0\\0\\0\\021\\001\\0\\0\\0\\0\\0\\0'; cat > /dev/null"]),
        WorkerError::Version(Version { major: 1, minor: 17 })
    ));
}
