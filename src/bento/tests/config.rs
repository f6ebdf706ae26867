//! Settings: `config.sh`, `bento.toml`, and what is wrong with them.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use bento::fleet::Selection;
use bento::fleet::config::Config;
use bento::host::HostName;
use bento::manifest::ReleaseMode;

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

/// What `bento config check` ends with and says, in a directory with these files.
fn check(files: &[(&str, &str)]) -> (bool, String, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_bento"))
        .args(["config", "check"])
        .env("BENTO_DIR", dir.path())
        .env("HOME", "/home/admin")
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn both_files_say_the_same() {
    let shell = "# the hub\nexport CHROOT_DIR='/home/chroot' # here\nREMOTE_IP=\"hub.example.org\"\nREMOTE_PORT=2222\n\
                 TIMEOUT=7\nNOLOCALBUILD=yes\nSIGNING_KEY=/keys/admin\nHOST_KEYS=keys\n";
    let toml = "[hub]\ndirectory = \"/home/chroot\"\naddress = \"hub.example.org\"\nport = 2222\ntimeout = 7\nkeys = \"keys\"\n\
                [build]\nlocal = false\n[release]\nsigning-key = \"/keys/admin\"\n";
    let config = Config::parse_shell(shell).unwrap();
    assert_eq!(config, Config::parse_toml(toml).unwrap());
    let hub = config.hub.unwrap();
    assert_eq!((hub.port, hub.timeout, config.build.local), (2222, 7, false));
}

#[test]
fn what_is_not_said_has_a_default() {
    let shell = Config::parse_shell("CHROOT_DIR=/c\nREMOTE_IP=\nNOLOCALBUILD=\n").unwrap();
    assert_eq!(shell, Config::parse_toml("[hub]\ndirectory = \"/c\"\n").unwrap());
    let hub = shell.hub.clone().unwrap();
    assert_eq!((hub.port, hub.timeout, hub.address), (22, 20, None));
    assert_eq!((shell.build.local, shell.release.mode), (true, ReleaseMode::Source));
    assert_eq!(shell.release.valid_for_days, None);
}

#[test]
fn hosts_differ_from_the_others() {
    let config = Config::parse_toml(
        "[hub]\ndirectory = \"/c\"\n[build]\nlocal = false\n[hosts.web]\nmode = \"closure\"\ntags = [\"public\"]\n\
         [hosts.db]\nbuild = true\ntags = [\"public\", \"big\"]\n",
    )
    .unwrap();
    assert_eq!(config.mode(&host("web")), ReleaseMode::Closure);
    assert_eq!(config.mode(&host("db")), ReleaseMode::Source);
    assert!(config.builds(&host("db")) && !config.builds(&host("web")) && !config.builds(&host("other")));
    assert_eq!(config.tagged("big").unwrap().into_iter().collect::<Vec<_>>(), [host("db")]);
    assert_eq!(config.tagged("small"), None);
}

#[test]
fn unknown_settings_and_impossible_values_are_errors_that_name_the_place() {
    let toml = |text: &str| format!("[hub]\ndirectory = \"/c\"\n{text}");
    let cases = [
        ("bento.toml", toml("colour = 1\n"), vec!["line 3", "colour"]),
        ("bento.toml", toml("[realese]\n"), vec!["line 3", "realese"]),
        ("bento.toml", toml("[release]\nmode = \"magic\"\n"), vec!["line 4", "magic", "closure"]),
        ("bento.toml", toml("port = 70000\n"), vec!["line 3", "70000"]),
        ("bento.toml", toml("port = 0\n"), vec!["hub.port", "1 to 65535"]),
        ("bento.toml", toml("[release]\nvalid-for-days = 0\n"), vec!["valid-for-days", "at least 1"]),
        ("bento.toml", toml("[status]\ninterval-minutes = 0\n"), vec!["interval-minutes", "at least 1"]),
        ("bento.toml", toml("[hosts.\"../web\"]\n"), vec!["../web", "is no host name"]),
        ("bento.toml", toml("[hosts.web]\ntags = [\"a b\"]\n"), vec!["web has the tag \"a b\""]),
        ("bento.toml", "[hub]\ndirectory = \"c\"\n".to_owned(), vec!["hub.directory", "absolute path"]),
        ("bento.toml", "[hub]\n".to_owned(), vec!["missing field `directory`"]),
        ("bento.toml", "[hub\n".to_owned(), vec!["line 1"]),
        ("config.sh", "CHROOT_DIR=/c\nCOLOUR=1\n".to_owned(), vec!["line 2", "COLOUR", "known are CHROOT_DIR"]),
        ("config.sh", "CHROOT_DIR=/c\nREMOTE_PORT=0\n".to_owned(), vec!["port", "1 to 65535"]),
    ];
    for (file, text, words) in cases {
        let (ok, stdout, stderr) = check(&[(file, &text)]);
        assert!(!ok && stdout.is_empty(), "{text}");
        for word in [&["error:", file], words.as_slice()].concat() {
            assert!(stderr.contains(word), "{text}\nsays nothing of {word:?}: {stderr}");
        }
    }
    let (ok, _, stderr) = check(&[]);
    assert!(!ok && stderr.contains("neither a bento.toml nor a config.sh"), "{stderr}");
    let (ok, _, stderr) = check(&[("bento.toml", &toml("")), ("config.sh", "CHROOT_DIR=/c\n")]);
    assert!(!ok && stderr.contains("keep one of them"), "{stderr}");
}

#[test]
fn a_check_of_config_sh_prints_the_bento_toml_that_it_comes_to() {
    let (ok, toml, stderr) =
        check(&[("config.sh", "CHROOT_DIR=/home/chroot\nREMOTE_IP=hub\nSIGNING_KEY=~/.ssh/key\n")]);
    assert!(ok, "{stderr}");
    let config = Config::parse_toml(&toml).unwrap();
    assert_eq!(config.release.signing_key.as_deref(), Some(std::path::Path::new("/home/admin/.ssh/key")));
    let (ok, again, stderr) = check(&[("bento.toml", &toml)]);
    assert!(ok, "{stderr}");
    assert_eq!(again, toml);
}

#[test]
fn hosts_are_selected_by_names_globs_and_tags() {
    let config = Config::parse_toml(
        "[hub]\ndirectory = \"/c\"\n[hosts.db]\ntags = [\"inner\"]\n[hosts.web1]\ntags = [\"inner\", \"outer\"]\n",
    )
    .unwrap();
    let fleet: Vec<HostName> = ["db", "web", "web1", "web2"].map(host).into();
    let select = |words: &[&str], name: Option<&str>| {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let selection = Selection::new(&words, name, &config).unwrap();
        fleet.iter().filter(|host| selection.includes(host)).map(HostName::as_str).collect::<Vec<_>>()
    };
    assert_eq!(select(&[], None), ["db", "web", "web1", "web2"]);
    assert_eq!(select(&["web"], None), ["web"]);
    assert_eq!(select(&["web?"], None), ["web1", "web2"]);
    assert_eq!(select(&["web*", "@inner"], None), ["db", "web", "web1", "web2"]);
    assert_eq!(select(&["@outer"], None), ["web1"]);
    assert_eq!(select(&[], Some(" web2 db\n")), ["db", "web2"]);
    assert_eq!(select(&[], Some("@inner")), ["db", "web1"]);
    // arguments come before the environment
    assert_eq!(select(&["web"], Some("db")), ["web"]);
    let refused = |word: &str| format!("{:#}", Selection::new(&[word.to_owned()], None, &config).unwrap_err());
    assert!(refused("@none").contains("no host has the tag \"none\""));
    assert!(refused("../x").contains("is no host name"));
    assert!(refused("web[").contains("is no pattern"));
    let selection = Selection::new(&["web9*".to_owned()], None, &config).unwrap();
    assert_eq!(selection.missing(fleet.iter()).unwrap(), "no host whose name matches web9*");
}

#[test]
fn shards_are_disjoint_whole_and_stay_the_same() {
    let config = Config::parse_shell("CHROOT_DIR=/c").unwrap();
    let shard = |text: &str| Selection::new(&[], None, &config).unwrap().in_shard(Some(text.parse().unwrap()));
    let shards: Vec<Selection> = (1..=4).map(|number| shard(&format!("{number}/4"))).collect();
    let mut sizes = [0; 4];
    for number in 0..1000 {
        let name = host(&format!("host{number}"));
        let held: Vec<usize> = (0..4).filter(|index| shards[*index].includes(&name)).collect();
        assert_eq!(held.len(), 1, "{name}");
        sizes[held[0]] += 1;
    }
    assert!(sizes.iter().all(|size| (200..300).contains(size)), "{sizes:?}");
    // which part it is was written down once: engines keep what they have built for a part
    let parts = ["web", "db", "router"].map(|name| shards.iter().position(|shard| shard.includes(&host(name))));
    assert_eq!(parts, [Some(3), Some(3), Some(2)]);
    for wrong in ["0/4", "5/4", "1", "1/0", "a/b", "-1/2"] {
        assert!(wrong.parse::<bento::fleet::Shard>().is_err(), "{wrong}");
    }
}
