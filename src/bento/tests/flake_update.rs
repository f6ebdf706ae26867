//! Lock files: `bento flake-update` and `bento eval --flake` write what C++ Nix writes, byte for byte, in the same situations.
//!
//! Each case is a script that makes a tree, always the same one at the same place, and a command. The tree is made twice: C++
//! Nix's command runs in one, ours in the other, and afterwards both must have the same lock files and the same state of Git.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const BENTO: &str = env!("CARGO_BIN_EXE_bento");

/// Functions of the scripts. All times are the same, so that a tree that is made again has the same hashes.
const PRELUDE: &str = r#"
set -eu
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_DATE='1700000000 +0100' GIT_COMMITTER_DATE='1700000000 +0100'
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
# flake DIR INPUTS: a flake
flake() { mkdir -p "$1"; echo "{ description = \"$1\"; inputs = { $2 }; outputs = inputs: { value = \"$1\"; all = builtins.mapAttrs (_: i: i.value or (builtins.readFile \"\${i}/file\")) (removeAttrs inputs [ \"self\" ]); out = inputs.self.outPath; }; }" > "$1/flake.nix"; }
# repository DIR: everything in DIR as a commit
repository() { [ -d "$1/.git" ] || git init -q -b main "$1"; git -C "$1" add -A; git -C "$1" commit -q --allow-empty -m "$1"; }
age() { find . -path '*/.git' -prune -o -exec touch -h -d @1600000000 {} +; }
flake leaf ""
flake leaf2 ""
flake dep "leaf.url = \"path:$PWD/leaf\";"
mkdir plain; echo text > plain/file
"#;

/// A case: its name, the script, the arguments of `nix flake` and of `bento flake-update`.
struct Case {
    name: &'static str,
    script: &'static str,
    nix: &'static [&'static str],
    bento: &'static [&'static str],
}

const UPDATE: &[&str] = &["update"];
const LOCK: &[&str] = &["lock"];

const CASES: &[Case] = &[
    Case {
        name: "a repository without a lock file",
        script: r#"flake f "dep.url = \"path:$PWD/dep\"; plain = { url = \"path:$PWD/plain\"; flake = false; };"; age; repository f"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "a directory without a repository",
        script: r#"flake f "dep.url = \"path:$PWD/dep\"; again.follows = \"dep/leaf\";"; age"#,
        nix: UPDATE,
        bento: &[],
    },
    Case { name: "no inputs", script: r#"flake f ""; age; repository f"#, nix: UPDATE, bento: &[] },
    Case {
        name: "repositories, relative inputs, follows, overrides",
        script: r#"
            flake g "sub.url = \"path:./sub\"; dep.url = \"path:$PWD/dep\";"; flake g/sub "deep.url = \"path:../deep\";"; flake g/deep ""
            age; repository g
            flake f "g.url = \"git+file://$PWD/g\"; g.inputs.dep.follows = \"own\"; own.url = \"path:./own\"; g.inputs.sub.inputs.deep.url = \"path:./mine\";
                     other = { url = \"git+file://$PWD/g?dir=sub&ref=main\"; }; raw = { type = \"git\"; url = \"file://$PWD/g\"; flake = false; };"
            flake f/own "leaf.url = \"path:$PWD/leaf2\";"; flake f/mine ""
            age; repository f"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "inputs with lock files of their own",
        script: r#"
            age; repository leaf; repository dep
            flake dep "leaf.url = \"git+file://$PWD/leaf\"; leaf2.url = \"path:$PWD/leaf2\";"; age; repository dep
            (cd dep; lock); repository dep
            echo more > leaf/more; repository leaf
            flake f "dep.url = \"git+file://$PWD/dep\"; leaf.url = \"git+file://$PWD/leaf\"; dep.inputs.leaf2.follows = \"leaf\";"
            age; repository f"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "what changed is updated",
        script: r#"
            flake f "dep.url = \"path:$PWD/dep\"; plain = { url = \"path:$PWD/plain\"; flake = false; };"; age; repository f
            (cd f; lock); repository f
            echo changed > plain/file; echo changed > leaf/file; age"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "nothing changed",
        script: r#"flake f "dep.url = \"path:$PWD/dep\";"; age; repository f; (cd f; lock); repository f"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "one input is updated, and not the other",
        script: r#"
            flake f "dep.url = \"path:$PWD/dep\"; plain = { url = \"path:$PWD/plain\"; flake = false; };"; age; repository f
            (cd f; lock); repository f
            echo changed > plain/file; echo changed > dep/file; echo changed > leaf/file; age"#,
        nix: &["update", "plain"],
        bento: &["plain"],
    },
    Case {
        name: "an input of an input is updated",
        script: r#"
            flake f "dep.url = \"path:$PWD/dep\"; plain = { url = \"path:$PWD/plain\"; flake = false; };"; age; repository f
            (cd f; lock); repository f
            echo changed > plain/file; echo changed > leaf/file; age"#,
        nix: &["update", "dep/leaf"],
        bento: &["dep/leaf"],
    },
    Case {
        name: "only what is missing is locked",
        script: r#"
            flake f "dep.url = \"path:$PWD/dep\";"; age; repository f; (cd f; lock); repository f
            echo changed > dep/file
            flake f "dep.url = \"path:$PWD/dep\"; leaf.url = \"path:$PWD/leaf\";"; age"#,
        nix: LOCK,
        bento: &["--missing"],
    },
    Case {
        name: "an input is gone, another has a new address, a third an override more",
        script: r#"
            flake f "dep.url = \"path:$PWD/dep\"; gone.url = \"path:$PWD/leaf\"; moved.url = \"path:$PWD/leaf\";"; age; repository f
            (cd f; lock); repository f
            flake f "dep.url = \"path:$PWD/dep\"; dep.inputs.leaf.follows = \"moved\"; moved.url = \"path:$PWD/leaf2\";"; age"#,
        nix: LOCK,
        bento: &["--missing"],
    },
    Case {
        name: "an override is gone",
        script: r#"
            flake f "dep.url = \"path:$PWD/dep\"; dep.inputs.leaf.follows = \"leaf2\"; leaf2.url = \"path:$PWD/leaf2\";"; age; repository f
            (cd f; lock); repository f
            flake f "dep.url = \"path:$PWD/dep\"; leaf2.url = \"path:$PWD/leaf2\";"; age"#,
        nix: LOCK,
        bento: &["--missing"],
    },
    Case {
        name: "an ignored lock file stays untracked",
        script: r#"flake f "leaf.url = \"path:$PWD/leaf\";"; echo flake.lock > f/.gitignore; age; repository f"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "a flake in a directory of its repository",
        script: r#"
            flake r/hosts/x "leaf.url = \"path:$PWD/leaf\"; up.url = \"path:../y\";"; flake r/hosts/y ""; age; repository r
            mkdir f; rmdir f; ln -s r/hosts/x f"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "a dirty repository",
        script: r#"flake f ""; repository f; flake f "leaf.url = \"path:$PWD/leaf\";"; echo x > f/untracked; age"#,
        nix: UPDATE,
        bento: &[],
    },
    Case {
        name: "a dirty input can't be locked",
        script: r#"age; repository leaf; echo x >> leaf/flake.nix; flake f "leaf.url = \"git+file://$PWD/leaf\";"; age; repository f"#,
        nix: LOCK,
        bento: &["--missing"],
    },
    Case {
        name: "unless its hash is enough",
        script: r#"age; repository leaf; echo x > leaf/more; git -C leaf add more; flake f "leaf.url = \"git+file://$PWD/leaf\";"; age; repository f"#,
        nix: &["update", "--allow-dirty-locks"],
        bento: &["--allow-dirty-locks"],
    },
    Case {
        name: "names of a registry",
        script: r#"
            flake f "named = { }; dep.url = \"dep/main\";"; age; repository dep; repository f
            sed -i 's/outputs = inputs:/outputs = { self, named, dep, extra }@inputs:/' f/flake.nix; git -C f commit -qam x
            echo "{\"version\": 2, \"flakes\": [
              {\"from\": {\"type\": \"indirect\", \"id\": \"named\"}, \"to\": {\"type\": \"path\", \"path\": \"$PWD/leaf\"}},
              {\"from\": {\"type\": \"indirect\", \"id\": \"extra\"}, \"to\": {\"type\": \"indirect\", \"id\": \"named2\"}},
              {\"from\": {\"type\": \"indirect\", \"id\": \"named2\"}, \"to\": {\"type\": \"git\", \"url\": \"file://$PWD\", \"dir\": \"leaf\"}, \"exact\": true},
              {\"from\": {\"type\": \"indirect\", \"id\": \"dep\"}, \"to\": {\"type\": \"git\", \"url\": \"file://$PWD/dep\"}}]}" > registry.json
            git init -q -b main .; git add leaf; git commit -q -m all"#,
        nix: &["update", "--flake-registry", "../registry.json"],
        bento: &["--flake-registry", "../registry.json"],
    },
];

/// The tests' programs, and a directory for their trees.
struct Lab {
    nix: PathBuf,
    dir: TempDir,
}

impl Lab {
    /// `None` (which is said) where C++ Nix or Git is missing.
    fn find() -> Option<Lab> {
        let Some(programs) = std::env::var_os("BENTO_NIX") else {
            println!("skipped: BENTO_NIX does not name a folder with nix");
            return None;
        };
        if Command::new("git").arg("--version").output().is_err() {
            println!("skipped: there is no git");
            return None;
        }
        Some(Lab { nix: PathBuf::from(programs).join("nix"), dir: tempfile::tempdir().unwrap() })
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("tree")
    }

    /// A program, which sees no configuration but the tests'.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        let home = self.dir.path().join("home");
        command
            .current_dir(self.tree().join("f"))
            .env("HOME", &home)
            .env("XDG_CACHE_HOME", home.join(program.file_name().unwrap()))
            .env("NIX_CONF_DIR", &home)
            .env("NIX_CONFIG", "experimental-features = nix-command flakes\nflake-registry =\n")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env_remove("NIX_PATH")
            .env_remove("BENTO_DIR")
            .env_remove("XDG_CONFIG_HOME");
        command
    }

    fn nix(&self, args: &[&str]) -> Command {
        let mut command = self.command(&self.nix);
        command.args(args.iter().map(|arg| arg.replace("..", self.tree().to_str().unwrap())));
        command
    }

    fn bento(&self, args: &[&str]) -> Command {
        let mut command = self.command(Path::new(BENTO));
        command.args(args.iter().map(|arg| arg.replace("..", self.tree().to_str().unwrap())));
        command
    }

    /// Makes the tree anew. In scripts `lock` is what C++ Nix does to lock the flake that it is called in.
    fn make(&self, script: &str) {
        let tree = self.tree();
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(&tree).unwrap();
        let nix = self.nix.display();
        let lock = format!("lock() {{ HOME=$OLD_HOME {nix} flake lock . 2>/dev/null; }}\n");
        let mut command = self.command(Path::new("sh"));
        let home = self.dir.path().join("home");
        command.current_dir(&tree).env("OLD_HOME", home);
        let made = command.arg("-c").arg(format!("{PRELUDE}{lock}{script}")).output().unwrap();
        assert!(made.status.success(), "{script}\n{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// What there is after a command: whether it worked, the lock files, and what Git says of their tracking.
fn state(tree: &Path, output: &Output) -> Value {
    let flake = tree.join("f");
    let lock = fs::read_to_string(flake.join("flake.lock")).ok();
    let git = Command::new("git").arg("-C").arg(&flake).args(["status", "--porcelain", "--", "."]).output().unwrap();
    json!({
        "worked": output.status.success(),
        "lock": lock,
        "git": String::from_utf8_lossy(&git.stdout),
    })
}

fn complaints(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn lock_files_are_those_that_nix_writes() {
    let Some(lab) = Lab::find() else { return };
    let tree = lab.tree();
    for case in CASES {
        lab.make(case.script);
        let theirs = lab.nix(&[&["flake"], case.nix].concat()).output().unwrap();
        let expected = state(&tree, &theirs);
        lab.make(case.script);
        let ours = lab.bento(&[&["flake-update"], case.bento].concat()).output().unwrap();
        let found = state(&tree, &ours);
        let (said, wanted) = (complaints(&ours), complaints(&theirs));
        assert_eq!(found, expected, "{}\nours: {said}\nNix: {wanted}", case.name);
    }
}

/// The commands of `nix eval` and `bento eval` about a flake whose lock file doesn't fit.
#[test]
fn evaluation_writes_lock_files_when_nix_does() {
    let Some(lab) = Lab::find() else { return };
    let tree = lab.tree();
    let stale = r#"
        flake f "leaf.url = \"path:$PWD/leaf\";"; age; repository f; (cd f; lock); repository f
        flake f "leaf.url = \"path:$PWD/leaf\"; plain = { url = \"path:$PWD/plain\"; flake = false; };"; age; git -C f commit -qam two
        cp f/flake.lock other.lock"#;
    let cases: &[&[&str]] = &[
        &[],
        &["--no-write-lock-file"],
        &["--no-update-lock-file"],
        &["--override-input", "leaf", "../leaf2"],
        &["--override-input", "leaf/no", "../leaf2", "--no-write-lock-file"],
        &["--update-input", "leaf"],
        &["--reference-lock-file", "../other.lock", "--no-write-lock-file"],
        &["--output-lock-file", "../written.lock"],
    ];
    for arguments in cases {
        let mut states = Vec::new();
        for ours in [false, true] {
            lab.make(stale);
            let mut command = if ours {
                lab.bento(&["eval", "--json", "--strict", "--flake", ".#all"])
            } else {
                lab.nix(&["eval", "--impure", "--json", ".#all"])
            };
            let dots = |argument: &&str| argument.replace("..", tree.to_str().unwrap());
            let output = command.args(arguments.iter().map(dots)).output().unwrap();
            let mut state = state(&tree, &output);
            let value = String::from_utf8_lossy(&output.stdout);
            state["value"] = serde_json::from_str(&value).unwrap_or_default();
            state["other"] = fs::read_to_string(tree.join("written.lock")).ok().into();
            states.push((state, complaints(&output)));
        }
        let ((expected, wanted), (found, said)) = (&states[0], &states[1]);
        assert_eq!(found, expected, "{arguments:?}\nours: {said}\nNix: {wanted}");
    }
}

#[test]
fn what_is_up_to_date_is_not_touched() {
    let Some(lab) = Lab::find() else { return };
    let file = lab.tree().join("f/flake.lock");
    lab.make(r#"flake f "leaf.url = \"path:$PWD/leaf\";"; age; (cd f; lock)"#);
    let before = fs::metadata(&file).unwrap();
    let output = lab.bento(&["flake-update"]).output().unwrap();
    assert!(output.status.success(), "{}", complaints(&output));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("f: unchanged\n"));
    let after = fs::metadata(&file).unwrap();
    assert_eq!((after.ino(), after.mtime_nsec()), (before.ino(), before.mtime_nsec()));
}

/// A fleet with a flake at the top, two hosts that are flakes and one that is none.
const FLEET: &str = r#"
    flake f "leaf.url = \"path:$PWD/leaf\";"
    flake f/hosts/a "leaf.url = \"path:$PWD/leaf\"; plain = { url = \"path:$PWD/plain\"; flake = false; };"
    flake f/hosts/b "plain = { url = \"path:$PWD/plain\"; flake = false; };"
    mkdir f/hosts/c; echo "{ }" > f/hosts/c/configuration.nix
    age; repository f; (cd f; lock; cd hosts/a; lock; cd ../b; lock); repository f
    echo changed > plain/file; age
"#;

#[test]
fn every_flake_of_a_fleet_is_updated() {
    let Some(lab) = Lab::find() else { return };
    lab.make(FLEET);
    let output = lab.bento(&["flake-update", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", complaints(&output));
    let lines: Value = serde_json::from_slice(&output.stdout).unwrap();
    let f = lab.tree().join("f");
    assert_eq!(
        lines,
        json!([
            {"directory": f, "outcome": "unchanged"},
            {"directory": f.join("hosts/a"), "outcome": "updated"},
            {"directory": f.join("hosts/b"), "outcome": "updated"},
        ])
    );
}

#[test]
fn an_input_is_updated_where_it_is() {
    let Some(lab) = Lab::find() else { return };
    lab.make(FLEET);
    let output = lab.bento(&["flake-update", "leaf", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", complaints(&output));
    let lines: Value = serde_json::from_slice(&output.stdout).unwrap();
    let outcomes: Vec<&str> = lines.as_array().unwrap().iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["unchanged", "unchanged", "no-such-input"]);
    let output = lab.bento(&["flake-update", "lief"]).output().unwrap();
    assert!(!output.status.success());
    assert!(complaints(&output).contains("none of the fleet's flakes has the input 'lief'"), "{}", complaints(&output));
}

#[test]
fn a_flake_that_cannot_be_updated_stops_no_other() {
    let Some(lab) = Lab::find() else { return };
    lab.make(&format!("{FLEET} flake f/hosts/a 'leaf.url = \"path:/nowhere\";'; cp f/hosts/a/flake.lock before"));
    let output = lab.bento(&["flake-update"]).output().unwrap();
    assert!(!output.status.success());
    let said = complaints(&output);
    assert!(said.contains("hosts/a: failed:") && said.contains("/nowhere"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("hosts/b: updated"));
    let tree = lab.tree();
    assert_eq!(fs::read(tree.join("f/hosts/a/flake.lock")).unwrap(), fs::read(tree.join("before")).unwrap());
}

#[test]
fn a_stale_lock_file_is_refused_with_the_way_out() {
    let Some(lab) = Lab::find() else { return };
    lab.make(r#"flake f "leaf.url = \"path:$PWD/leaf\";"; age"#);
    let output = lab.bento(&["eval", "--flake", ".", "--no-update-lock-file"]).output().unwrap();
    let said = complaints(&output);
    assert!(!output.status.success());
    assert!(said.contains("requires lock file changes but they're not allowed"), "{said}");
    assert!(said.contains("bento flake-update") && said.contains("'leaf'"), "{said}");
}

#[test]
fn what_the_lock_file_lacks_is_not_deployed() {
    let Some(lab) = Lab::find() else { return };
    let script = r#"
        flake f/hosts/a "leaf.url = \"path:$PWD/leaf\";"
        sed -i 's|outputs = inputs: {|outputs = inputs: { nixosConfigurations.a.config.system.build.toplevel = derivation { name = inputs.leaf.value; builder = "x"; system = "x"; };|' f/hosts/a/flake.nix
        echo "CHROOT_DIR=$PWD/hub" > f/config.sh"#;
    lab.make(&format!("{script}; age"));
    let deploy = || lab.bento(&["deploy", "--dry-run"]).output().unwrap();
    let output = deploy();
    let said = complaints(&output);
    assert!(!output.status.success());
    assert!(said.contains("requires lock file changes but they're not allowed"), "{said}");
    assert!(said.contains("'leaf'") && said.contains("bento flake-update"), "{said}");
    assert!(!lab.tree().join("f/hosts/a/flake.lock").exists());
    assert!(lab.bento(&["flake-update"]).output().unwrap().status.success());
    let output = deploy();
    assert!(output.status.success(), "{}", complaints(&output));
    assert!(complaints(&output).contains("a: would publish"), "{}", complaints(&output));
}
