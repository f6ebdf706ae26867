//! Calling the machine's own Nix: to evaluate (`--evaluator nix`) and, on a host, to build.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::evaluation::{Evaluation, Evaluator, SearchPath, Subject};
use crate::host::{Host, HostKind};
use crate::source::SourceTree;
use crate::store_path::StorePath;

/// The attribute that holds a host's system, in a flake's host and in what `<nixpkgs/nixos>` gives.
pub const TOPLEVEL: &str = "config.system.build.toplevel";

/// Nix's programs.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The directory that holds them; those in `PATH` if there is none.
    pub dir: Option<PathBuf>,
}

impl Programs {
    /// A command for `nix-instantiate` and its like.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.dir.as_ref().map_or_else(|| PathBuf::from(name), |dir| dir.join(name)))
    }

    /// Whether there are any.
    pub fn are_installed(&self) -> bool {
        self.command("nix-store").arg("--version").output().is_ok()
    }

    /// A command for `nix` with flakes, whatever the machine's settings say.
    pub fn nix(&self, subcommand: &str) -> Command {
        let mut command = self.command("nix");
        command.args(["--extra-experimental-features", "nix-command flakes", subcommand]);
        command
    }
}

/// Text as a string of the Nix language.
pub fn nix_string(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{escaped}\"")
}

/// The URL of a flake in a directory, as a whole tree rather than what git knows of it.
pub fn flake_url(dir: &Path) -> Result<String> {
    let path = dir.to_str().with_context(|| format!("{} is not UTF-8", dir.display()))?;
    let mut url = String::from("path:");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~+".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(url)
}

/// The installable that is a flake host's system.
pub fn flake_toplevel(dir: &Path, host: &str) -> Result<String> {
    flake_attribute(dir, host, TOPLEVEL)
}

/// The installable that is an attribute of a flake host's NixOS.
fn flake_attribute(dir: &Path, host: &str, attribute: &str) -> Result<String> {
    Ok(format!("{}#nixosConfigurations.{}.{attribute}", flake_url(dir)?, nix_string(host)))
}

/// An expression for the NixOS that a directory's `configuration.nix` describes.
pub fn non_flake_expression(dir: &Path) -> Result<String> {
    let file = dir.join("configuration.nix");
    let file = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
    // a path literal cannot hold every character, a string appended to the root can
    Ok(format!("import <nixpkgs/nixos> {{ configuration = /. + {}; }}", nix_string(file)))
}

/// Options and environment that give a Nix program this search path and no other.
pub fn with_search_path<'c>(command: &'c mut Command, entries: &[String]) -> &'c mut Command {
    if !entries.is_empty() {
        command.env("NIX_PATH", "");
    }
    for entry in entries {
        command.arg("-I").arg(entry);
    }
    command
}

/// Evaluates with the machine's C++ Nix.
#[derive(Clone, Debug, Default)]
pub struct NixEvaluator {
    programs: Programs,
}

impl Evaluator for NixEvaluator {
    fn flake_hosts(&self, tree: &SourceTree) -> Result<Vec<String>> {
        let installable = format!("{}#nixosConfigurations", flake_url(&tree.path())?);
        let mut command = self.programs.nix("eval");
        command.args(["--no-update-lock-file", "--json", &installable, "--apply", "builtins.attrNames"]);
        run_json(command)
    }

    fn evaluate(&self, tree: &SourceTree, host: &Host, search_path: &SearchPath) -> Result<Evaluation> {
        self.evaluate_attribute(&Subject { tree, host }, search_path, TOPLEVEL)
    }

    fn instantiate_attribute(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        attribute: &str,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        // Nix writes every derivation that it comes across
        for (index, subject) in subjects.iter().enumerate() {
            done(index, self.evaluate_attribute(subject, search_path, attribute));
        }
    }

    fn inspect_fleet(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        function: &str,
        done: &mut dyn FnMut(usize, Result<String>),
    ) {
        for (index, subject) in subjects.iter().enumerate() {
            done(index, self.inspect(subject, search_path, function));
        }
    }
}

impl NixEvaluator {
    /// The paths of a derivation of a host's NixOS.
    fn evaluate_attribute(
        &self,
        subject: &Subject<'_>,
        search_path: &SearchPath,
        attribute: &str,
    ) -> Result<Evaluation> {
        let Subject { tree, host } = subject;
        // an attribute named outPath would turn the whole set into its string
        let both = "derivation: { drv = derivation.drvPath; out = derivation.outPath; }";
        let command = match host.kind {
            HostKind::Flake => {
                let installable = flake_attribute(&tree.path(), host.name.as_str(), attribute)?;
                let mut command = self.programs.nix("eval");
                command.args(["--no-update-lock-file", "--json", &installable, "--apply", both]);
                command
            }
            HostKind::NonFlake => {
                let expression = format!("({both}) ({}).{attribute}", non_flake_expression(&tree.path())?);
                let mut command = self.programs.command("nix-instantiate");
                command.args(["--eval", "--strict", "--json", "--read-write-mode"]);
                with_search_path(&mut command, search_path.entries());
                command.arg("-E").arg(expression);
                command
            }
        };
        #[derive(serde::Deserialize)]
        struct Paths {
            drv: StorePath,
            out: StorePath,
        }
        let paths: Paths = run_json(command)?;
        Ok(Evaluation { drv_path: paths.drv, toplevel: paths.out })
    }

    /// What a function gives of a host's `config`, as JSON.
    fn inspect(&self, subject: &Subject<'_>, search_path: &SearchPath, function: &str) -> Result<String> {
        let tree = subject.tree.path();
        let command = match subject.host.kind {
            HostKind::Flake => {
                let host = nix_string(subject.host.name.as_str());
                let installable = format!("{}#nixosConfigurations.{host}.config", flake_url(&tree)?);
                let mut command = self.programs.nix("eval");
                command.args(["--no-update-lock-file", "--json", &installable, "--apply", function]);
                command
            }
            HostKind::NonFlake => {
                let mut command = self.programs.command("nix-instantiate");
                command.args(["--eval", "--strict", "--json"]);
                with_search_path(&mut command, search_path.entries());
                command.arg("-E").arg(format!("({function}) ({}).config", non_flake_expression(&tree)?));
                command
            }
        };
        Ok(run_json::<serde_json::Value>(command)?.to_string())
    }
}

/// Runs a program and reads the JSON that it prints; its complaints become the error.
fn run_json<T: DeserializeOwned>(mut command: Command) -> Result<T> {
    let name = command.get_program().to_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| not_started(&name))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        // it speaks of an option that the caller of bento can't give
        let lines = complaint.lines().filter(|line| !line.starts_with("(use '--show-trace'"));
        bail!("{}", lines.collect::<Vec<_>>().join("\n").trim().trim_start_matches("error: "));
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} printed something unexpected", PathBuf::from(name).display()))
}

/// What to say when a program could not be started.
pub fn not_started(program: &OsStr) -> String {
    format!("cannot start {}: is it installed and in PATH?", PathBuf::from(OsString::from(program)).display())
}
