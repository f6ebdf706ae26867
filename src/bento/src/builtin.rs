//! Evaluating with bento's own evaluator, for which no Nix is needed (`--evaluator builtin`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use bento_eval::value::{Pos, Value};
use bento_eval::{Coerce, Diagnostic, ErrorKind, RenderOptions, Settings};

use crate::evaluation::cache::{Cache, Key, Session};
use crate::evaluation::pool::{Body, Finished, Message, Resources, Work};
use crate::evaluation::{Evaluation, Evaluator, SearchPath, Subject};
use crate::host::{Host, HostKind};
use crate::nix::{TOPLEVEL, flake_url, nix_string, non_flake_expression};
use crate::nix_conf;
use crate::package::Package;
use crate::source::SourceTree;
use crate::store::NixStore;
use crate::store_path::StorePath;

/// Where expressions that come from no file start from; they hold no relative path.
const BASE: &[u8] = b"/";
/// What is wanted of a system.
const PATHS: &str = "toplevel: [ toplevel.drvPath toplevel.outPath ]";

/// Evaluates in copies of this process, several at a time, and remembers what came of it.
#[derive(Clone, Debug)]
pub struct BuiltinEvaluator {
    resources: Resources,
    cache: Option<Cache>,
    /// What the machine's configuration says, as it was in the beginning.
    machine: Settings,
    /// By the place of a tree, which hosts may have in common: what stands for its contents.
    digests: RefCell<HashMap<PathBuf, String>>,
}

/// Something to ask about a host.
struct Question<'q> {
    /// What stands for it in the key of the cache.
    name: &'q str,
    /// A function that gives a list of strings.
    function: &'q str,
    /// What the function is applied to, of the host's NixOS.
    attribute: &'q str,
}

/// Something to evaluate about a tree.
struct Task<'t> {
    tree: &'t SourceTree,
    settings: Settings,
    work: Work<'t>,
    /// Under what the result is kept; absent where nothing is.
    key: Option<Key>,
    /// Whether the first of the strings is a derivation that has to be in the store.
    instantiates: bool,
}

impl BuiltinEvaluator {
    /// An evaluator that uses so much of the machine, and this cache if any.
    pub fn new(resources: Resources, cache: Option<Cache>) -> Self {
        Self { resources, cache, machine: nix_conf::settings(), digests: RefCell::default() }
    }

    /// The evaluator's settings: those of this machine. Pure, as Nix evaluates flakes: nothing of this machine goes in but what is
    /// locked.
    fn settings(&self, pure: bool) -> Settings {
        let home = std::env::var_os("HOME").map(OsString::into_vec);
        // a host's files are copied to where no restricted evaluation could read them
        Settings { pure, restricted: false, home, ..self.machine.clone() }
    }

    fn task<'t>(
        &self,
        tree: &'t SourceTree,
        settings: Settings,
        what: &[&str],
        label: String,
        body: Body<'t>,
    ) -> Result<Task<'t>> {
        let key = if self.cache.is_some() { Some(Key::new(&settings, what, label)?) } else { None };
        Ok(Task { tree, settings, work: Work { place: tree.path(), body }, key, instantiates: false })
    }

    /// The names of a flake's hosts.
    fn names_task<'t>(&self, tree: &'t SourceTree) -> Result<Task<'t>> {
        let url = flake_url(&tree.path())?;
        let body: Body<'_> = Box::new(move |evaluator| {
            let names = b"flake: builtins.attrNames (flake.nixosConfigurations or { })";
            let names = evaluator.call(evaluator.eval_string(names, BASE)?, &[flake(evaluator, &url)?], Pos::NONE)?;
            strings(evaluator, names, "while evaluating the names of the hosts")
        });
        let digest = self.digest(tree)?;
        self.task(
            tree,
            self.settings(true),
            &["the names of a flake's hosts", &digest],
            format!("the flake in {}", tree.origin().display()),
            body,
        )
    }

    /// The paths of a host's system.
    fn system_task<'t>(&self, subject: &Subject<'t>, search_path: &SearchPath) -> Result<Task<'t>> {
        self.host_task(subject, search_path, &Question { name: "host", function: PATHS, attribute: TOPLEVEL })
    }

    /// What a function gives of an attribute of a host's NixOS: a list of strings.
    fn host_task<'t>(
        &self,
        subject: &Subject<'t>,
        search_path: &SearchPath,
        question: &Question<'_>,
    ) -> Result<Task<'t>> {
        const WHAT: &str = "while evaluating the paths of the system";
        let Question { name: what, function, attribute } = question;
        let tree = subject.tree;
        let origin = tree.origin().display().to_string();
        let name = subject.host.name.as_str();
        let label = format!("{name} in {origin}");
        match subject.host.kind {
            HostKind::Flake => {
                let url = flake_url(&tree.path())?;
                let expression =
                    format!("flake: ({function}) flake.nixosConfigurations.{}.{attribute}", nix_string(name));
                let body: Body<'_> = Box::new(move |evaluator| {
                    let select = evaluator.eval_string(expression.as_bytes(), BASE)?;
                    let found = evaluator.call(select, &[flake(evaluator, &url)?], Pos::NONE)?;
                    strings(evaluator, found, WHAT)
                });
                // evaluation is pure: nothing but the tree, with its lock, has a part in the result
                let digest = self.digest(tree)?;
                self.task(
                    tree,
                    self.settings(true),
                    &[&format!("a flake's {what}"), &origin, name, &digest],
                    label,
                    body,
                )
            }
            HostKind::NonFlake => {
                let expression = format!("({function}) ({}).{attribute}", non_flake_expression(&tree.path())?);
                let body: Body<'_> = Box::new(move |evaluator| {
                    strings(evaluator, evaluator.eval_string(expression.as_bytes(), BASE)?, WHAT)
                });
                let settings = Settings { search_path: search_path.pairs(), ..self.settings(false) };
                self.task(tree, settings, &[&format!("a {what}"), &origin, name], label, body)
            }
        }
    }

    /// What stands for the contents of a tree where they are the whole key.
    fn digest(&self, tree: &SourceTree) -> Result<String> {
        if self.cache.is_none() {
            return Ok(String::new());
        }
        let place = tree.path();
        if let Some(known) = self.digests.borrow().get(&place) {
            return Ok(known.clone());
        }
        let digest = Package::of(&place)?.digest();
        self.digests.borrow_mut().insert(place, digest.clone());
        Ok(digest)
    }

    /// Carries tasks out, except for those whose results are known.
    fn run(&self, tasks: Vec<Task<'_>>, done: &mut dyn FnMut(usize, Result<Vec<String>>)) {
        let mut session = self.cache.as_ref().map(Session::new);
        // by settings, as those are an evaluator's for good
        let mut groups: Vec<(String, Vec<(usize, Task<'_>)>)> = Vec::new();
        for (index, task) in tasks.into_iter().enumerate() {
            let known = session.as_mut().zip(task.key.as_ref());
            let known = known.and_then(|(session, key)| session.find(key, &task.tree.path()));
            let is_there = |drv_path: &String| Path::new(drv_path).exists();
            if let Some(known) = known.filter(|known| !task.instantiates || known.strings.first().is_some_and(is_there))
            {
                say(task.tree, &known.messages);
                done(index, Ok(known.strings));
                continue;
            }
            let name = format!("{:?}", task.settings);
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, group)) => group.push((index, task)),
                None => groups.push((name, vec![(index, task)])),
            }
        }
        if groups.is_empty() {
            return;
        }
        for (_, group) in groups {
            self.run_group(group, session.as_mut(), done);
        }
        if let Some(Err(error)) = session.map(Session::finish) {
            warn(&error);
        }
    }

    /// Carries tasks with the same settings out.
    fn run_group(
        &self,
        group: Vec<(usize, Task<'_>)>,
        mut session: Option<&mut Session<'_>>,
        done: &mut dyn FnMut(usize, Result<Vec<String>>),
    ) {
        let Some((_, first)) = group.first() else { return };
        let settings = first.settings.clone();
        let mut ends: Vec<End<'_>> = Vec::new();
        let mut works = Vec::new();
        let mut trees = Vec::new();
        for (index, task) in group {
            ends.push(End { index, tree: task.tree, key: task.key, ended: false });
            works.push(task.work);
            trees.push(task.tree);
        }
        let ran = self.resources.run(&settings, &works, &mut |finished: Finished| {
            let end = &mut ends[finished.index];
            end.ended = true;
            say(end.tree, &finished.messages);
            if let Some((session, key)) = session.as_mut().zip(end.key.take()) {
                let warm = finished.shared.as_ref().map(|shared| works[shared.index].place.as_path());
                if let Err(error) = session.keep(key, &works[finished.index].place, warm, &finished) {
                    warn(&error);
                }
            }
            // code that hosts share may be known by the name that it has with the first one
            let first = finished.shared.as_ref().map(|shared| trees[shared.index].names());
            let named = |text: String| first.as_ref().map_or(text.clone(), |first| first.original(&text));
            done(end.index, finished.result.map_err(|text| anyhow!(named(end.tree.original_names(&text)))));
        });
        if let Err(error) = ran {
            let error = format!("{error:#}");
            for end in ends.iter().filter(|end| !end.ended) {
                done(end.index, Err(anyhow!(error.clone())));
            }
        }
    }
}

/// What there is to do when a task ends.
struct End<'t> {
    index: usize,
    tree: &'t SourceTree,
    key: Option<Key>,
    ended: bool,
}

impl BuiltinEvaluator {
    /// Carries out what `task` makes of each of these hosts.
    fn run_each<'t>(
        &self,
        subjects: &[Subject<'t>],
        task: impl Fn(usize, &Subject<'t>) -> Result<Task<'t>>,
        done: &mut dyn FnMut(usize, Result<Vec<String>>),
    ) {
        let mut indices = Vec::new();
        let mut tasks = Vec::new();
        for (index, subject) in subjects.iter().enumerate() {
            match task(index, subject) {
                Ok(task) => {
                    indices.push(index);
                    tasks.push(task);
                }
                Err(error) => done(index, Err(error)),
            }
        }
        self.run(tasks, &mut |index, strings| done(indices[index], strings));
    }

    /// Evaluates the systems of these hosts, with the tasks that `adapt` makes of theirs.
    fn evaluate_systems<'t>(
        &self,
        subjects: &[Subject<'t>],
        search_path: &SearchPath,
        adapt: impl Fn(usize, Task<'t>) -> Task<'t>,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        let task = |index: usize, subject: &Subject<'t>| Ok(adapt(index, self.system_task(subject, search_path)?));
        self.run_each(subjects, task, &mut |index, paths| done(index, paths.and_then(|paths| evaluation(&paths))));
    }

    /// Evaluates the systems of these hosts, whatever is remembered of them; the derivations and all that they need are files
    /// then: those of the subject with a number in the directory with that number, each under its base name.
    pub(crate) fn dump_fleet(
        resources: Resources,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        directories: &[PathBuf],
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        let dump = |index: usize, task| dumping(&directories[index], task);
        Self::new(resources, None).evaluate_systems(subjects, search_path, dump, done);
    }
}

/// A task that goes on, in the same evaluation, with the derivation that it came to.
fn and_then<'t>(
    task: Task<'t>,
    next: impl Fn(&bento_eval::Evaluator<'_>, &str) -> bento_eval::Result<()> + Send + Sync + 't,
) -> Task<'t> {
    let Work { place, body } = task.work;
    let body: Body<'t> = Box::new(move |evaluator| {
        let strings = body(evaluator)?;
        strings.first().map_or(Ok(()), |drv_path| next(evaluator, drv_path))?;
        Ok(strings)
    });
    Task { work: Work { place, body }, ..task }
}

/// A task that writes the derivation that it came to, and all that it needs, into a directory.
fn dumping<'t>(directory: &Path, task: Task<'t>) -> Task<'t> {
    let directory = directory.to_owned();
    and_then(task, move |evaluator, drv_path| evaluator.dump_derivations(drv_path, &directory).map(|_| ()))
}

/// A task that puts the derivation that it came to into the store.
fn instantiating(task: Task<'_>) -> Task<'_> {
    Task { instantiates: true, ..and_then(task, add_to_store) }
}

/// Puts a derivation and all that it needs into the machine's store.
fn add_to_store(evaluator: &bento_eval::Evaluator<'_>, drv_path: &str) -> bento_eval::Result<()> {
    let store = NixStore::new(evaluator.store_dir().clone());
    let drv_path = store.dir().parse(drv_path).map_err(other)?;
    let added = store.add(evaluator, &[drv_path]).map(|_| ()).map_err(other);
    store.close();
    added
}

/// What the evaluated code has no part in.
fn other(error: impl Into<anyhow::Error>) -> Box<bento_eval::Error> {
    bento_eval::Error::eval(Pos::NONE, format!("{:#}", error.into()))
}

impl Evaluator for BuiltinEvaluator {
    fn flake_hosts(&self, tree: &SourceTree) -> Result<Vec<String>> {
        let mut names = Err(anyhow!("the evaluation of the hosts' names did not end"));
        self.run(vec![self.names_task(tree)?], &mut |_, result| names = result);
        names
    }

    fn evaluate(&self, tree: &SourceTree, host: &Host, search_path: &SearchPath) -> Result<Evaluation> {
        let mut evaluated = Err(anyhow!("the evaluation did not end"));
        self.evaluate_fleet(&[Subject { tree, host }], search_path, &mut |_, result| evaluated = result);
        evaluated
    }

    fn evaluate_fleet(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        self.evaluate_systems(subjects, search_path, |_, task| task, done);
    }

    fn instantiate_attribute(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        attribute: &str,
        done: &mut dyn FnMut(usize, Result<Evaluation>),
    ) {
        let name = if attribute == TOPLEVEL { "host".to_owned() } else { format!("host's {attribute}") };
        let question = Question { name: &name, function: PATHS, attribute };
        self.run_each(
            subjects,
            |_, subject| Ok(instantiating(self.host_task(subject, search_path, &question)?)),
            &mut |index, paths| done(index, paths.and_then(|paths| evaluation(&paths))),
        );
    }

    fn inspect_fleet(
        &self,
        subjects: &[Subject<'_>],
        search_path: &SearchPath,
        function: &str,
        done: &mut dyn FnMut(usize, Result<String>),
    ) {
        let name = format!("host, asked {}", blake3::hash(function.as_bytes()).to_hex());
        let function = format!("config: [ (builtins.toJSON (({function}) config)) ]");
        let question = Question { name: &name, function: &function, attribute: "config" };
        self.run_each(subjects, |_, subject| self.host_task(subject, search_path, &question), &mut |index, strings| {
            done(index, strings.and_then(|strings| strings.into_iter().next().context("the function gave nothing")));
        });
    }
}

/// The evaluation that is given by a derivation's two paths.
fn evaluation(paths: &[String]) -> Result<Evaluation> {
    let path = |text: &String| StorePath::new(text.as_str()).with_context(|| format!("{TOPLEVEL} is no derivation"));
    match paths {
        [drv_path, toplevel] => Ok(Evaluation { drv_path: path(drv_path)?, toplevel: path(toplevel)? }),
        _ => Err(anyhow!("{TOPLEVEL} does not have a derivation's two paths")),
    }
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

/// What the caller of bento is told of an error: what Nix would print, without `error:`, and what can be done.
pub(crate) fn complaint(mut diagnostic: Diagnostic) -> String {
    diagnostic.hint = remedy(diagnostic.kind).map(str::to_owned).or(diagnostic.hint);
    // the caller of bento can't ask for the whole trace
    let options = RenderOptions { mention_show_trace: false, ..RenderOptions::default() };
    let text = diagnostic.render(&options);
    text.strip_prefix("error:").unwrap_or(&text).trim_start_matches(' ').trim_end().to_owned()
}

/// What the caller of bento can do about an error of this kind.
fn remedy(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Unavailable => Some("with `--evaluator nix` the C++ Nix of this machine fetches it"),
        _ => None,
    }
}

/// What the code says on its way goes to standard error, with the administrator's file names.
fn say(tree: &SourceTree, messages: &[Message]) {
    if messages.is_empty() {
        return;
    }
    let names = tree.names();
    for Message { kind, text } in messages {
        // if nobody can read it, it is lost
        let _ = writeln!(std::io::stderr().lock(), "{kind}: {}", names.original(text));
    }
}

/// Says what is wrong with the cache, which fails no evaluation.
fn warn(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr().lock(), "warning: evaluations can't be remembered: {error:#}");
}
