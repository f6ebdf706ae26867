//! Evaluating with bento's own evaluator, for which no Nix is needed (`--evaluator builtin`).

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use bento_eval::store::Store;
use bento_eval::value::{Pos, Value};
use bento_eval::{Coerce, ErrorKind, RenderOptions, Settings};

use crate::evaluation::{Evaluation, Evaluator, SearchPath};
use crate::host::{Host, HostKind};
use crate::nix::{TOPLEVEL, flake_url, nix_string, non_flake_expression};
use crate::source::{Names, SourceTree};
use crate::store::NixStore;
use crate::store_path::StorePath;

/// Where expressions that come from no file start from; they hold no relative path.
const BASE: &[u8] = b"/";

/// Evaluates in this process. Each call is an evaluation of its own, on a thread that has the stack for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuiltinEvaluator;

impl Evaluator for BuiltinEvaluator {
    fn flake_hosts(&self, tree: &SourceTree) -> Result<Vec<String>> {
        let url = flake_url(&tree.path())?;
        run(tree, settings(true), |evaluator| {
            let names = b"flake: builtins.attrNames (flake.nixosConfigurations or { })";
            let names = evaluator.call(evaluator.eval_string(names, BASE)?, &[flake(evaluator, &url)?], Pos::NONE)?;
            strings(evaluator, names, "while evaluating the names of the hosts")
        })
    }

    fn evaluate(&self, tree: &SourceTree, host: &Host, search_path: &SearchPath) -> Result<Evaluation> {
        system(tree, host, search_path, |_, _| Ok(()))
    }

    fn instantiate(&self, tree: &SourceTree, host: &Host, search_path: &SearchPath) -> Result<Evaluation> {
        system(tree, host, search_path, |evaluator, drv_path| {
            let store = NixStore::new(evaluator.store_dir().clone());
            let added =
                store.dir().parse(drv_path).map_err(anyhow::Error::from).and_then(|drv| store.add(evaluator, &[drv]));
            added.map(|_| ()).map_err(|error| bento_eval::Error::eval(Pos::NONE, format!("{error:#}")))
        })
    }
}

/// Evaluates a host's system. `then` is given the path of its derivation, while the evaluation still knows it.
fn system(
    tree: &SourceTree,
    host: &Host,
    search_path: &SearchPath,
    then: impl Fn(&bento_eval::Evaluator<'_>, &str) -> bento_eval::Result<()> + Send + Sync,
) -> Result<Evaluation> {
    let paths = "toplevel: [ toplevel.drvPath toplevel.outPath ]";
    let finish = |evaluator: &bento_eval::Evaluator<'_>, found: Vec<String>| -> bento_eval::Result<Vec<String>> {
        if let Some(drv_path) = found.first() {
            then(evaluator, drv_path)?;
        }
        Ok(found)
    };
    let paths = match host.kind {
        HostKind::Flake => {
            let url = flake_url(&tree.path())?;
            let name = nix_string(host.name.as_str());
            let expression = format!("flake: ({paths}) flake.nixosConfigurations.{name}.{TOPLEVEL}");
            run(tree, settings(true), move |evaluator| {
                let select = evaluator.eval_string(expression.as_bytes(), BASE)?;
                let found = evaluator.call(select, &[flake(evaluator, &url)?], Pos::NONE)?;
                finish(evaluator, strings(evaluator, found, "while evaluating the paths of the system")?)
            })?
        }
        HostKind::NonFlake => {
            let expression = format!("({paths}) ({}).{TOPLEVEL}", non_flake_expression(&tree.path())?);
            let settings = Settings { search_path: search_path.pairs(), ..settings(false) };
            run(tree, settings, move |evaluator| {
                let found = evaluator.eval_string(expression.as_bytes(), BASE)?;
                finish(evaluator, strings(evaluator, found, "while evaluating the paths of the system")?)
            })?
        }
    };
    let path = |text: &String| StorePath::new(text.as_str()).with_context(|| format!("{TOPLEVEL} is no derivation"));
    match paths.as_slice() {
        [drv_path, toplevel] => Ok(Evaluation { drv_path: path(drv_path)?, toplevel: path(toplevel)? }),
        _ => Err(anyhow!("{TOPLEVEL} does not have a derivation's two paths")),
    }
}

/// The evaluator's settings. Pure, as Nix evaluates flakes: nothing of this machine goes in but what is locked.
fn settings(pure: bool) -> Settings {
    let home = std::env::var_os("HOME").map(OsString::into_vec);
    Settings { pure, home, fetch: crate::nix_conf::fetch_settings(), ..Settings::default() }
}

/// A flake, with its inputs as its lock has them.
fn flake<'a>(evaluator: &bento_eval::Evaluator<'a>, url: &str) -> bento_eval::Result<Value<'a>> {
    // the host would refuse to resolve an input by itself, so the hub must not do it either
    let policy = bento_eval::flake::LockPolicy::Refuse;
    let options = bento_eval::flake::LoadOptions { policy, allow_unlocked: false, ..Default::default() };
    Ok(evaluator.flake_outputs_with(url, Path::new("/"), &options)?.0)
}

/// The strings in a list; `what` is what the trace of an error says.
fn strings<'a>(evaluator: &bento_eval::Evaluator<'a>, list: Value<'a>, what: &str) -> bento_eval::Result<Vec<String>> {
    let list = evaluator.force_list(list, Pos::NONE, what)?;
    let text = |value| evaluator.to_string(value, Coerce::PLAIN, Pos::NONE, what);
    list.iter().map(|value| Ok(String::from_utf8_lossy(&text(value)?.0).into_owned())).collect()
}

/// Runs an evaluation about a tree. An error is what Nix would print, without `error:`.
fn run<T: Send>(
    tree: &SourceTree,
    settings: Settings,
    body: impl for<'a> FnOnce(&bento_eval::Evaluator<'a>) -> bento_eval::Result<T> + Send,
) -> Result<T> {
    let messages = Messages { names: tree.names(), store: NixStore::new(settings.store.clone()) };
    let result = bento_eval::evaluate(settings, messages, |evaluator| {
        body(evaluator).map_err(|error| evaluator.diagnose(&error))
    });
    result?.map_err(|mut diagnostic| {
        diagnostic.hint = remedy(diagnostic.kind).map(str::to_owned).or(diagnostic.hint);
        // the caller of bento can't ask for the whole trace
        let options = RenderOptions { mention_show_trace: false, ..RenderOptions::default() };
        let text = diagnostic.render(&options);
        anyhow!("{}", text.strip_prefix("error:").unwrap_or(&text).trim_start_matches(' ').trim_end().to_owned())
    })
}

/// What the caller of bento can do about an error of this kind.
fn remedy(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Unavailable => Some("with `--evaluator nix` the C++ Nix of this machine fetches it"),
        _ => None,
    }
}

/// What the code says on its way goes to standard error, with the administrator's file names.
struct Messages {
    names: Names,
    /// For what has to be built before it can be read.
    store: NixStore,
}

impl Messages {
    fn say(&self, kind: &str, message: &str) {
        // if nobody can read it, it is lost
        let _ = writeln!(std::io::stderr().lock(), "{kind}: {}", self.names.original(message));
    }
}

impl bento_eval::Host for Messages {
    fn env(&self, name: &str) -> Option<Vec<u8>> {
        std::env::var_os(name).map(OsString::into_vec)
    }

    fn warn(&self, message: &str) {
        self.say("warning", message);
    }

    fn trace(&self, message: &str) {
        self.say("trace", message);
    }

    fn store(&self) -> Option<&dyn Store> {
        Some(&self.store)
    }
}
