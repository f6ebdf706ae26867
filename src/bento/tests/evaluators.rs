//! The evaluators: both give the same systems, and say what is wrong with a configuration.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Lab;

/// The evaluators by name.
const EVALUATORS: [&str; 2] = ["builtin", "nix"];

/// The derivation and the output path of each host that is published.
type Systems = BTreeMap<String, (String, String)>;

/// Deploys the laboratory's fleet with an evaluator, to a hub of its own.
#[track_caller]
fn systems(lab: &Lab, nixpkgs: &Path, evaluator: &str) -> Systems {
    let hub = format!("hub-{evaluator}");
    fs::create_dir_all(lab.path(&hub)).unwrap();
    lab.write("fleet/config.sh", &format!("CHROOT_DIR={}\n", lab.path(&hub).display()));
    let mut deploy = lab.command(&["deploy", "--evaluator", evaluator]);
    let output = deploy.env("NIX_PATH", format!("nixpkgs={}", nixpkgs.display())).output().unwrap();
    assert!(output.status.success(), "{evaluator}: {}", String::from_utf8_lossy(&output.stderr));
    let hosts = lab.names(&hub).into_iter().filter(|name| !name.starts_with('.'));
    let path = |manifest: &serde_json::Value, key: &str| manifest[key].as_str().unwrap().to_owned();
    hosts
        .map(|host| {
            let manifest = serde_json::from_str(&lab.read(&format!("{hub}/{host}/manifest.json"))).unwrap();
            (host, (path(&manifest, "drv_path"), path(&manifest, "toplevel")))
        })
        .collect()
}

/// Both evaluators' systems, which must be the same. Gives the hosts' names.
#[track_caller]
fn same_systems(lab: &Lab, nixpkgs: &Path) -> Vec<String> {
    let [builtin, nix] = EVALUATORS.map(|evaluator| systems(lab, nixpkgs, evaluator));
    assert_eq!(builtin, nix);
    builtin.into_keys().collect()
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Puts one of the examples in the fleet's place, with the fixture distribution as nixpkgs, which it gives.
fn example(lab: &Lab, name: &str, flakes: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fixture = lab.path("fixture");
    fs::remove_dir_all(lab.path("fleet")).unwrap();
    run(Command::new("cp").arg("-r").arg(root.join("examples").join(name)).arg(lab.path("fleet")));
    run(Command::new("cp").arg("-r").arg(root.join("checks/fixture")).arg(&fixture));
    // older Nix compares the time stamps of a locked folder, too
    run(Command::new("find").arg(&fixture).args(["-exec", "touch", "-d", "@1", "{}", "+"]));
    let flakes = flakes.iter().map(|flake| lab.path("fleet").join(flake));
    run(Command::new(fixture.join("lock")).args(flakes).env("FIXTURE", &fixture));
    fixture
}

#[test]
fn agree_on_a_fleet_of_directories() {
    let Some(lab) = Lab::new() else { return };
    let nixpkgs = example(&lab, "fleet", &["hosts/my-laptop", "hosts/all-flakes-systems"]);
    assert_eq!(same_systems(&lab, &nixpkgs), ["kikimora", "nas", "router", "t470"]);
}

#[test]
fn agree_on_a_fleet_in_one_flake() {
    let Some(lab) = Lab::new() else { return };
    let nixpkgs = example(&lab, "flake-fleet", &["."]);
    assert_eq!(same_systems(&lab, &nixpkgs), ["build", "db", "monitor", "web1", "web2"]);
}

#[test]
fn agree_on_hosts_whose_names_are_no_identifiers() {
    let Some(lab) = Lab::new() else { return };
    let names = ["4.example.org", "42", "if", "or", "we--b"];
    let hosts = names.map(|name| {
        let system = format!("import ./system.nix {{ name = \"x\"; text = \"{name}\" + toString ./.; }}");
        format!("\"{name}\".config.system.build.toplevel = {system};\n")
    });
    let flake = format!("{{ outputs = {{ self }}: {{ nixosConfigurations = {{\n{} }}; }}; }}", hosts.concat());
    lab.flake("fleet/hosts/all", &[]);
    lab.write("fleet/hosts/all/flake.nix", &flake);
    assert_eq!(same_systems(&lab, Path::new("/nonexistent")), names);
}

#[test]
fn agree_on_a_host_that_takes_all_that_may_differ_into_itself() {
    let Some(lab) = Lab::new() else { return };
    lab.write("fleet/hosts/router/files/a b", "one");
    lab.non_flake(
        "router",
        "text = \"${./.} ${./files} ${builtins.currentSystem} ${builtins.getEnv \"HOME\"} ${toString <nixpkgs>}\" \
         + builtins.toJSON builtins.nixPath;",
    );
    let flake = "{ outputs = { self }: { nixosConfigurations.web.config.system.build.toplevel = import ./system.nix {
        name = \"web\";
        text = \"${self} ${./system.nix} ${self.narHash} ${toString self.lastModified} ${./.}\"
          + (builtins.currentSystem or \"none\") + builtins.getEnv \"HOME\" + toString builtins.nixPath;
    }; }; }";
    lab.flake_host("web", "");
    lab.write("fleet/hosts/web/flake.nix", flake);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny");
    assert_eq!(same_systems(&lab, &tiny), ["router", "web"]);
}

#[test]
fn agree_on_hosts_that_read_what_is_built_for_that() {
    let Some(lab) = Lab::new() else { return };
    let built = "builtins.readFile (derivation { name = \"text\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
                 args = [ \"-c\" \"echo built > $out\" ]; })";
    lab.non_flake("router", &format!("text = {built};"));
    lab.flake_host("web", &format!("text = {built};"));
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny");
    assert_eq!(same_systems(&lab, &tiny), ["router", "web"]);
}

/// Something wrong with a system.
struct Mistake {
    /// The attributes of the system.
    system: &'static str,
    /// What is said about it.
    word: &'static str,
    /// Whether C++ Nix of any version says so too.
    everywhere: bool,
    /// Whether the file is named; Nix shows the outermost steps of a trace only, and those are in nixpkgs.
    located: bool,
}

const MISTAKES: [Mistake; 8] = {
    const fn mistake(system: &'static str, word: &'static str, everywhere: bool, located: bool) -> Mistake {
        Mistake { system, word, everywhere, located }
    }
    let deep = "text = let f = n: if n == 0 then \"\" else \"a\" + f (n - 1); in f 100000;";
    [
        mistake("text = ;", "syntax error", true, true),
        mistake("text = undefinedVariable;", "undefined variable 'undefinedVariable'", true, true),
        mistake("text = let x = x; in x;", "infinite recursion encountered", true, true),
        mistake(deep, "stack overflow", false, true),
        mistake("text = import ./missing.nix;", "missing.nix", true, true),
        mistake("text = throw \"not today\";", "not today", true, false),
        mistake("text = { };", "cannot coerce a set to a string", true, false),
        mistake("unknown = 1;", "unexpected argument 'unknown'", false, false),
    ]
};

#[test]
fn name_the_mistake_and_the_administrators_file() {
    let Some(lab) = Lab::new() else { return };
    for Mistake { system, word, everywhere, located } in MISTAKES {
        lab.non_flake("router", system);
        lab.flake_host("web", system);
        lab.flake_host("db", "");
        for evaluator in EVALUATORS {
            if evaluator == "nix" && !everywhere {
                continue;
            }
            let router = lab.path("fleet/hosts/router/");
            let said =
                lab.bento(&["deploy", "--evaluator", evaluator, "router"]).fails_with(&["router: failed:", word]);
            assert_eq!(said.stderr.matches(" failed:").count(), 1, "{}", said.stderr);
            if evaluator == "builtin" {
                assert!(!located || said.stderr.contains(router.to_str().unwrap()), "{}", said.stderr);
                assert!(!said.stderr.contains("show-trace"), "{}", said.stderr);
                let flake = lab.path("fleet/hosts/web");
                let said = lab.bento(&["deploy", "--evaluator", evaluator]).fails_with(&[word, "db: "]);
                assert!(!located || said.stderr.contains(flake.to_str().unwrap()), "{}", said.stderr);
                assert!(!said.stderr.contains("-source/"), "{}", said.stderr);
                assert_eq!(said.stderr.matches(" failed:").count(), 2, "{}", said.stderr);
            }
            for host in ["router", "web"] {
                assert!(!lab.path("chroot").join(host).exists(), "{host} was published with {system}");
            }
            assert!(lab.names("tmp").is_empty(), "{:?} is left", lab.names("tmp"));
        }
    }
}

#[test]
fn survive_code_that_is_nested_too_deep() {
    let Some(lab) = Lab::new() else { return };
    let nested = |open: &str, middle: &str, close: &str| open.repeat(100_000) + middle + &close.repeat(100_000);
    let json = nested("[", "", "]");
    lab.flake_host("db", "");
    for text in [
        nested("(", "\"\"", ")"),
        nested("[", "", "]"),
        nested("{ a = ", "1", "; }"),
        nested("let a = 1; in ", "a", ""),
        format!("builtins.toJSON (builtins.fromJSON \"{json}\")"),
        "builtins.toJSON (builtins.foldl' (a: b: [ a ]) 1 (builtins.genList (x: x) 100000))".to_owned(),
    ] {
        lab.non_flake("router", &format!("text = {text};"));
        lab.flake_host("web", &format!("text = {text};"));
        lab.bento(&["deploy"]).fails_with(&["router: failed:", "hosts/web", "stack overflow", "db: "]);
        assert!(!lab.path("chroot/router").exists() && !lab.path("chroot/web").exists());
    }
}

#[test]
fn say_what_a_flake_lacks() {
    let Some(lab) = Lab::new() else { return };
    for (flake, words) in [
        ("{ outputs = { self }: { }; }", ["web", "has no nixosConfigurations"]),
        ("{ outputs = { self }: { nixosConfigurations = [ ]; }; }", ["web", "expected a set but found a list"]),
        ("{ outputs = { self }: { nixosConfigurations.web = { }; }; }", ["web: failed", "attribute 'config' missing"]),
        (
            "{ outputs = { self }: { nixosConfigurations.web.config.system.build.toplevel = { drvPath = \"x\"; outPath = \"y\"; }; }; }",
            ["web: failed", "is no derivation"],
        ),
        (
            "{ inputs.n.url = \"path:/nonexistent\"; outputs = { self, n }: { nixosConfigurations.web = n; }; }",
            ["hosts/web", "'n'"],
        ),
        ("{ outputs = { self }: { nixosConfigurations.web = import /etc/passwd; }; }", ["web: failed", "/etc/passwd"]),
    ] {
        lab.write("fleet/hosts/web/flake.nix", flake);
        lab.bento(&["deploy"]).fails_with(&words);
        assert!(!lab.path("chroot/web").exists(), "{flake}");
    }
}

#[test]
fn what_the_code_says_on_its_way_is_heard() {
    let Some(lab) = Lab::new() else { return };
    lab.non_flake("router", "text = builtins.trace \"in ${toString ./.}\" \"\";");
    let said = lab.bento(&["deploy"]).succeeds();
    let expected = format!("trace: in {}\n", lab.path("fleet/hosts/router").display());
    assert!(said.stderr.contains(&expected), "{}", said.stderr);
}

#[test]
fn the_hub_needs_no_nix() {
    let Some(lab) = Lab::new() else { return };
    lab.non_flake("router", "");
    lab.flake_host("web", "");
    let deploy =
        |evaluator| lab.command_with_path("/nonexistent", &["deploy", "--evaluator", evaluator]).output().unwrap();
    let without = deploy("nix");
    assert!(!without.status.success());
    assert!(String::from_utf8(without.stderr).unwrap().contains("is it installed"));
    let with = deploy("builtin");
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
    for host in ["router", "web"] {
        lab.agent(host).succeeds();
        assert_eq!(lab.running(host).unwrap(), lab.manifest(host)["toplevel"]);
    }
}
