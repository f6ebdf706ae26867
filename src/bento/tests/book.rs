//! The book keeps its word: the tutorial's commands do what it shows, the reference is that of this program, and every link leads
//! somewhere.
//!
//! The files in `docs/src/reference` are made by
//!
//!     BENTO_WRITE_REFERENCE=1 cargo test -p bento --test book reference

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bento::manifest::Manifest;
use serde_json::Value;

const BENTO: &str = env!("CARGO_BIN_EXE_bento");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const BOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src");
/// Where the test writes the reference, instead of comparing with it, if this is set.
const WRITE: &str = "BENTO_WRITE_REFERENCE";

/// A fenced block of a page: what stands after the fence, and the lines, without the spaces that the fence begins with.
fn blocks(page: &str) -> Vec<(String, Vec<String>)> {
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = None;
    for line in page.lines() {
        if let Some((spaces, info)) = line.split_once("```").filter(|(spaces, _)| spaces.trim().is_empty()) {
            inside = inside.is_none().then_some(spaces.len());
            if inside.is_some() {
                blocks.push((info.to_owned(), Vec::new()));
            }
        } else if let Some(spaces) = inside {
            blocks.last_mut().unwrap().1.push(line.get(spaces..).unwrap_or_default().to_owned());
        }
    }
    blocks
}

/// A command of a page, and the lines that it shows as the output.
struct Shown {
    command: String,
    output: Vec<String>,
}

/// What a page tells its reader to do, as a script of bash in which command number N is announced by a line `@@ N`; and the
/// commands. A block `console` has commands (`$ `, and `> ` where they go on) with what they print, a block `LANGUAGE,file=NAME`
/// is a file.
fn script(page: &str) -> (String, Vec<Shown>) {
    let (mut script, mut commands) = (String::new(), Vec::<Shown>::new());
    for (info, lines) in blocks(page) {
        if let Some((_, file)) = info.split_once(",file=") {
            let text = lines.join("\n");
            writeln!(script, "mkdir -p \"$(dirname {file})\"\ncat > {file} << 'END OF FILE'\n{text}\nEND OF FILE")
                .unwrap();
        }
        if info != "console" {
            continue;
        }
        for line in lines {
            if let Some(command) = line.strip_prefix("$ ") {
                writeln!(script, "echo '@@ {}'\n{command}", commands.len()).unwrap();
                commands.push(Shown { command: command.to_owned(), output: Vec::new() });
            } else if let Some(more) = line.strip_prefix("> ") {
                writeln!(script, "{more}").unwrap();
            } else {
                commands.last_mut().expect("output before the first command").output.push(line);
            }
        }
    }
    (script, commands)
}

/// Whether a line is as it is shown, where `…` stands for anything.
fn fits(shown: &str, line: &str) -> bool {
    let Some((start, rest)) = shown.split_once('…') else { return shown == line };
    let Some(mut left) = line.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('…').collect();
    let end = parts.pop().unwrap();
    for part in parts {
        let Some((_, after)) = left.split_once(part) else { return false };
        left = after;
    }
    left.ends_with(end)
}

/// Whether lines are as they are shown, where a line that is just `…` stands for any number of them.
fn all_fit(shown: &[String], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "…" => (0..=lines.len()).any(|skipped| all_fit(rest, &lines[skipped..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, after)| fits(first, line) && all_fit(rest, after))
        }
    }
}

/// Runs in name spaces of their own, so that the tutorial's store and ports are nobody else's.
const APART: &str = r#"
set -eu
mount --make-rprivate /
mount --bind "$STORE" /nix
ip link set lo up
cd "$HOME"
exec bash "$SCRIPT" 2>&1
"#;

/// Runs the commands of pages that go on from one another, on a machine that has nothing yet: each has to print what is shown.
#[track_caller]
fn run_pages(pages: &[&str]) {
    let text: String = pages.iter().map(|page| fs::read_to_string(format!("{BOOK}/{page}.md")).unwrap()).collect();
    let (script, commands) = script(&text);
    assert!(commands.len() > 3, "{pages:?} has only {} commands", commands.len());
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nix");
    for folder in [&store, &PathBuf::from("/nix"), &dir.path().join("home")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(dir.path().join("script"), script).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", APART])
        .env_clear()
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", Path::new(BENTO).parent().unwrap().display()))
        .env("CHECKOUT", fs::canonicalize(ROOT).unwrap())
        .env("STORE", &store)
        .env("HOME", dir.path().join("home"))
        .env("SCRIPT", dir.path().join("script"))
        .env("NIX_REMOTE", "local")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    // what each command said, by its number
    let mut outputs: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut number = None;
    // of users that this machine lacks is said whenever a host's turn comes
    for line in said.lines().filter(|line| !line.contains(": this machine has no user ")) {
        match line.strip_prefix("@@ ") {
            Some(next) => number = Some(next.parse().unwrap()),
            None => {
                let number = number.unwrap_or_else(|| panic!("before the first command: {said}"));
                outputs.entry(number).or_default().push(line);
            }
        }
    }
    assert_eq!(number, Some(commands.len() - 1), "{pages:?}: not all commands were run: {said}");
    for (number, shown) in commands.iter().enumerate() {
        let lines = outputs.remove(&number).unwrap_or_default();
        assert!(
            all_fit(&shown.output, &lines),
            "{pages:?}: `{}` prints\n{}\nand not, as it is shown,\n{}",
            shown.command,
            lines.join("\n"),
            shown.output.join("\n"),
        );
    }
}

/// Whether pages can be run here that need these programs.
fn can_run(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| Command::new(program).arg("--version").output().is_err());
    if let Some(program) = missing {
        println!("skipped: there is no {program}");
    }
    missing.is_none() && common::available()
}

#[test]
fn the_tutorial_and_what_goes_on_from_it_do_what_they_show() {
    // without jq, only the tutorial itself
    if can_run(&["jq"]) {
        run_pages(&["tutorial", "howto-ci"]);
    } else if can_run(&[]) {
        run_pages(&["tutorial"]);
    }
}

#[test]
fn moving_from_other_tools_goes_as_it_is_shown() {
    if can_run(&[]) {
        run_pages(&["howto-from-deploy-rs"]);
        run_pages(&["howto-from-colmena"]);
        run_pages(&["howto-from-bento"]);
    }
}

#[test]
fn small_hosts_and_secrets_go_as_it_is_shown() {
    if can_run(&["jq"]) {
        run_pages(&["howto-small-hosts"]);
        run_pages(&["secrets"]);
    }
}

/// Compares a file of the reference with what it should be, or makes it so.
#[track_caller]
fn reference(name: &str, expected: &str) {
    let file = Path::new(BOOK).join("reference").join(name);
    if std::env::var_os(WRITE).is_some() {
        fs::write(file, expected).unwrap();
        return;
    }
    let found = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{} is not up to date: {differs:?}. `{WRITE}=1 cargo test -p bento --test book reference` makes it anew",
        file.display(),
    );
}

/// What `bento COMMAND... --help` prints.
fn help(command: &[&str]) -> String {
    let output =
        Command::new(BENTO).args(command).arg("--help").env_remove("COLUMNS").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Writes down the help of a command, and of those below it.
fn describe(command: &[&str], page: &mut String) {
    let help = help(command);
    writeln!(page, "\n## bento {}\n\n```text\n{}\n```", command.join(" "), help.trim_end()).unwrap();
    for name in subcommands(&help) {
        describe(&[command, &[name]].concat(), page);
    }
}

/// The commands that a help lists; `help` itself is none.
fn subcommands(help: &str) -> Vec<&str> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect()
}

#[test]
fn reference_of_the_commands() {
    let mut page = "# All commands and options\n\nWhat `bento COMMAND --help` prints.\n".to_owned();
    let top = help(&[]);
    let commands = subcommands(&top);
    assert!(commands.contains(&"deploy"), "{top}");
    for name in commands {
        describe(&[name], &mut page);
    }
    reference("cli.md", &page);
}

#[test]
fn reference_of_the_modules() {
    let Some(corpora) = std::env::var_os("BENTO_CORPORA") else {
        println!("skipped: BENTO_CORPORA does not name a folder with nixpkgs-26.11");
        return;
    };
    let mut page = "# Options of the NixOS modules\n".to_owned();
    for (module, title) in [("agent", "On hosts"), ("hub", "On the hub")] {
        let output = Command::new(BENTO)
            .args(["eval", "--strict", "--json", "-I"])
            .arg(format!("nixpkgs={}/nixpkgs-26.11", Path::new(&corpora).display()))
            .args(["--arg", "module", &format!("{ROOT}/modules/{module}.nix"), &format!("{ROOT}/docs/options.nix")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let options: Vec<BTreeMap<String, Option<String>>> = serde_json::from_slice(&output.stdout).unwrap();
        write!(page, "\n## {title}: services.bento.{module}\n").unwrap();
        for option in &options {
            let text = |key: &str| option[key].as_deref();
            let name = text("name").unwrap().replace('<', "&lt;");
            write!(page, "\n### {name}\n\n{}\n\n", text("description").unwrap().trim_end()).unwrap();
            writeln!(page, "- type: {}", text("type").unwrap()).unwrap();
            for key in ["default", "example"] {
                if let Some(value) = text(key) {
                    writeln!(page, "- {key}: `{}`", value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
                }
            }
        }
    }
    reference("modules.md", &page);
}

/// How the schema's type of a field is called in the book.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(name) => {
            schema["format"].as_str().map_or_else(|| name.clone(), |format| format!("{name} ({format})"))
        }
        Value::Array(names) => names.iter().map(|name| name.as_str().unwrap()).collect::<Vec<_>>().join(" or "),
        _ => panic!("no type: {schema}"),
    }
}

/// What the schema says of something, in one line.
fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Writes down a type of the schema.
fn describe_type(name: &str, schema: &Value, page: &mut String) {
    write!(page, "\n## {name}\n\n{}\n", description(schema)).unwrap();
    if let Some(fields) = schema["properties"].as_object() {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        page.push_str("\n| field | type | |\n|---|---|---|\n");
        for (field, schema) in fields {
            let optional = if required.iter().any(|name| name == field) { "" } else { ", may be absent" };
            writeln!(page, "| `{field}` | {}{optional} | {} |", kind(schema), description(schema)).unwrap();
        }
    } else if let Some(choices) = schema["oneOf"].as_array() {
        page.push_str("\n| value | |\n|---|---|\n");
        for choice in choices {
            writeln!(page, "| `{}` | {} |", choice["const"].as_str().unwrap(), description(choice)).unwrap();
        }
    } else {
        writeln!(page, "\nA {}.", kind(schema)).unwrap();
    }
}

#[test]
fn reference_of_the_manifest() {
    let schema = schemars::schema_for!(Manifest).to_value();
    let mut page =
        "# The manifest\n\nWhat `manifest.json` of a release holds; [as a JSON Schema](manifest.schema.json).\n"
            .to_owned();
    describe_type("Manifest", &schema, &mut page);
    for (name, schema) in schema["$defs"].as_object().unwrap() {
        describe_type(name, schema, &mut page);
    }
    reference("manifest.md", &page.replace("[`", "`").replace("`]", "`"));
    reference("manifest.schema.json", &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()));
}

/// All pages, by their paths below the book's folder.
fn pages(folder: &Path, pages: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            self::pages(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.insert(path.strip_prefix(BOOK).unwrap().to_owned(), fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_page_is_in_the_summary_and_every_link_leads_somewhere() {
    let mut all = BTreeMap::new();
    pages(Path::new(BOOK), &mut all);
    let summary = &all[Path::new("SUMMARY.md")];
    for (page, text) in &all {
        let name = page.to_str().unwrap();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("]({name})")), "{name} is not in SUMMARY.md");
        let folder = Path::new(BOOK).join(page.parent().unwrap());
        for (_, after) in text.match_indices("](").map(|(at, found)| text.split_at(at + found.len())) {
            let target = after.split(')').next().unwrap();
            let file = target.split('#').next().unwrap();
            let outside = target.contains("://") || file.is_empty() || after.starts_with(char::is_whitespace);
            assert!(outside || folder.join(file).exists(), "{name} leads to {target}, which is not there");
        }
    }
}

/// The calls of bento in a text: in lines that are commands, and between backticks.
fn calls(page: &str) -> Vec<&str> {
    let lines = page.lines().filter_map(|line| {
        let line = line.strip_prefix("    ").or_else(|| line.strip_prefix("$ "))?;
        let line = line.strip_prefix("$ ").unwrap_or(line);
        Some(line.find(" $(bento ").map_or(line, |at| &line[at + 3..]))
    });
    let quoted = page.split('`').skip(1).step_by(2).filter(|quoted| !quoted.contains('\n'));
    lines.chain(quoted).filter(|call| call.starts_with("bento ")).collect()
}

#[test]
fn every_command_in_the_book_is_one() {
    let mut all = BTreeMap::new();
    pages(Path::new(BOOK), &mut all);
    for name in ["README.md", "CONTRIBUTING.md", "templates/servers/README.md"] {
        all.insert(PathBuf::from(name), fs::read_to_string(Path::new(ROOT).join(name)).unwrap());
    }
    let (mut tried, mut wrong) = (0, Vec::new());
    for (page, text) in &all {
        for call in calls(text) {
            // what follows is another command, or goes to another program
            let call = call.split(['#', '|', '>', '&', ')', ';']).next().unwrap();
            let words = call.split_whitespace().skip(1).take_while(|word| *word != "--");
            // what may be there, and what stands for something
            let words: Vec<String> = words
                .map(|word| word.replace("$PART/$PARTS", "1/2").replace("SHELL", "bash"))
                .map(|word| match word.strip_prefix('\'') {
                    Some(quoted) => quoted.trim_end_matches('\'').to_owned(),
                    None => word.replace(['[', ']'], "").replace("...", ""),
                })
                .filter(|word| !word.is_empty())
                .collect();
            if words.first().is_none_or(|word| word.starts_with(|first: char| first.is_uppercase() || first == '-')) {
                continue;
            }
            // an option that there is not is an error, whoever asks for help besides
            let output = Command::new(BENTO).args(&words).arg("--help").stdin(Stdio::null()).output().unwrap();
            if !output.status.success() {
                wrong.push(format!("{}: `{call}`: {}", page.display(), String::from_utf8_lossy(&output.stderr)));
            }
            tried += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 150, "only {tried} commands were found");
}

/// The values of an attribute in a page of HTML.
fn attributes<'p>(page: &'p str, name: &str) -> Vec<&'p str> {
    let before = format!(" {name}=\"");
    page.match_indices(&before).filter_map(|(at, _)| page[at + before.len()..].split('"').next()).collect()
}

#[test]
fn the_book_can_be_built_and_its_links_lead_to_headings() {
    let dir = tempfile::tempdir().unwrap();
    let built =
        Command::new("mdbook").arg("build").arg("--dest-dir").arg(dir.path()).arg(format!("{ROOT}/docs")).output();
    let Ok(output) = built else {
        println!("skipped: there is no mdbook (`cargo install mdbook`)");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "{said}");
    let mut sources = BTreeMap::new();
    pages(Path::new(BOOK), &mut sources);
    sources.remove(Path::new("SUMMARY.md"));
    let page = |source: &Path| fs::read_to_string(dir.path().join(source.with_extension("html"))).unwrap();
    let html: BTreeMap<PathBuf, String> =
        sources.keys().map(|source| (source.with_extension("html"), page(source))).collect();
    for (name, text) in &html {
        for link in attributes(text, "href").into_iter().filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            // what is no page is the theme's, or looked for among the sources
            if !file.is_empty() && !file.ends_with(".html") {
                continue;
            }
            let target = match file {
                "" => name.clone(),
                file => fs::canonicalize(dir.path().join(name.parent().unwrap()).join(file))
                    .unwrap_or_else(|error| panic!("{} leads to {link}: {error}", name.display())),
            };
            let target = target.strip_prefix(fs::canonicalize(dir.path()).unwrap()).unwrap_or(&target).to_owned();
            let found =
                heading.is_empty() || html.get(&target).is_some_and(|text| attributes(text, "id").contains(&heading));
            assert!(found, "{} leads to {link}, and there is no such heading", name.display());
        }
    }
}
