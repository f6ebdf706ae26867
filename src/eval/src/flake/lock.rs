//! Lock files: `flake.lock`, versions 5 to 7.

use super::error::FlakeError;
use super::reference::{FlakeRef, attrs_from_json, attrs_to_json, is_flake_id};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The names of inputs that lead from the root of a lock file to one of its nodes.
pub type InputPath = Vec<String>;

/// Parses `a/b/c`, the way in which `follows` and `--override-input` name an input.
///
/// # Errors
/// When a part is not the name of an input.
pub fn parse_input_path(text: &str) -> Result<InputPath, FlakeError> {
    text.split('/')
        .filter(|name| !name.is_empty())
        .map(|name| {
            if is_flake_id(name) {
                Ok(name.to_owned())
            } else {
                Err(FlakeError::Follows(format!("invalid flake input attribute path element '{name}'")))
            }
        })
        .collect()
}

/// An input path as it is written.
#[must_use]
pub fn show_input_path(path: &[String]) -> String {
    path.join("/")
}

/// What an input of a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Edge {
    /// A node, by its index in [`LockFile::nodes`].
    Node(usize),
    /// Whatever is found by following these inputs from the root.
    Follows(InputPath),
}

/// What is known of a node other than the root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lock {
    /// What it was locked to.
    pub locked: FlakeRef,
    /// What was asked for.
    pub original: FlakeRef,
    /// Whether it is a flake, not just a source.
    pub is_flake: bool,
    /// For a relative `path:` input: the input whose source it is relative to.
    pub parent: Option<InputPath>,
}

/// A node: the flake itself or one of its inputs, direct or not.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LockNode {
    /// Its inputs, by name.
    pub inputs: BTreeMap<String, Edge>,
    /// What it is locked to; `None` for the root.
    pub lock: Option<Lock>,
}

/// A lock file. The nodes form a graph without cycles, but for those that `follows` may make.
#[derive(Clone, Debug)]
pub struct LockFile {
    /// The nodes; the first is the root.
    pub nodes: Vec<LockNode>,
    /// What the user should be told about what was read.
    pub warnings: Vec<String>,
}

impl Default for LockFile {
    /// A lock file that locks nothing: the root alone.
    fn default() -> Self {
        LockFile { nodes: vec![LockNode::default()], warnings: Vec::new() }
    }
}

/// Lock files are equal when they would be written alike.
impl PartialEq for LockFile {
    fn eq(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

/// The root's index in [`LockFile::nodes`].
pub const ROOT: usize = 0;

impl LockFile {
    /// Parses the contents of the lock file `path`, whose name is for error messages only.
    ///
    /// # Errors
    /// When it is not JSON, is of another version, or a node is malformed; the error names the node.
    pub fn parse(contents: &[u8], path: &str) -> Result<LockFile, FlakeError> {
        Reader::new(contents, path)?.read()
    }

    /// An input that is not locked, neither by what it is nor, if `by_hash` is enough, by its NAR hash.
    ///
    /// # Errors
    /// When an attribute is malformed.
    pub fn unlocked(&self, by_hash: bool) -> Result<Option<&FlakeRef>, FlakeError> {
        for lock in self.nodes.iter().filter_map(|node| node.lock.as_ref()) {
            let input = &lock.locked.input;
            let locked = input.is_locked()? || (by_hash && input.nar_hash()?.is_some());
            if !locked && input.relative_path().is_none() {
                return Ok(Some(&lock.locked));
            }
        }
        Ok(None)
    }

    /// The nodes' names in the file, by index, as Nix chooses them: an input's own name, and a number if it is taken.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let mut keys = vec![String::new(); self.nodes.len()];
        let mut taken = HashSet::new();
        let mut next: HashMap<&str, usize> = HashMap::new();
        // depth first, the inputs in the order of their names
        let mut todo = vec![("root", ROOT)];
        while let Some((name, index)) = todo.pop() {
            if !keys[index].is_empty() {
                continue;
            }
            let mut key = name.to_owned();
            // all numbers below the next one are taken, so that many inputs of one name don't take quadratic time
            let number = next.entry(name).or_insert(2);
            while !taken.insert(key.clone()) {
                key = format!("{name}_{number}");
                *number += 1;
            }
            keys[index] = key;
            todo.extend(self.nodes[index].inputs.iter().rev().filter_map(|(name, edge)| match edge {
                Edge::Node(child) => Some((name.as_str(), *child)),
                Edge::Follows(_) => None,
            }));
        }
        keys
    }

    /// The file as JSON, keys sorted, always in the newest version.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let keys = self.keys();
        let mut nodes: BTreeMap<&str, Value> = BTreeMap::new();
        for (node, key) in self.nodes.iter().zip(&keys) {
            // a node that nothing leads to has no name and is not written
            if key.is_empty() {
                continue;
            }
            let mut json = Map::new();
            if node.lock.as_ref().is_some_and(|lock| !lock.is_flake) {
                json.insert("flake".to_owned(), false.into());
            }
            if !node.inputs.is_empty() {
                let inputs = node.inputs.iter().map(|(name, edge)| {
                    let value = match edge {
                        Edge::Node(child) => keys[*child].as_str().into(),
                        Edge::Follows(path) => path.clone().into(),
                    };
                    (name.clone(), value)
                });
                json.insert("inputs".to_owned(), Value::Object(inputs.collect()));
            }
            if let Some(lock) = &node.lock {
                json.insert("locked".to_owned(), attrs_to_json(&lock.locked.to_attrs()));
                json.insert("original".to_owned(), attrs_to_json(&lock.original.to_attrs()));
                if let Some(parent) = &lock.parent {
                    json.insert("parent".to_owned(), parent.clone().into());
                }
            }
            nodes.insert(key, Value::Object(json));
        }
        let mut json = Map::new();
        json.insert(
            "nodes".to_owned(),
            Value::Object(nodes.into_iter().map(|(key, node)| (key.to_owned(), node)).collect()),
        );
        json.insert("root".to_owned(), "root".into());
        json.insert("version".to_owned(), 7.into());
        Value::Object(json)
    }

    /// The file's text, byte for byte as Nix writes it.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{:#}\n", self.to_json())
    }

    /// The node that `path` leads to from the root, `follows` followed; `None` if there is none.
    ///
    /// # Errors
    /// When following goes round in circles.
    pub fn find(&self, path: &[String]) -> Result<Option<usize>, FlakeError> {
        self.find_from(path, &mut Vec::new())
    }

    fn find_from(&self, path: &[String], visited: &mut Vec<InputPath>) -> Result<Option<usize>, FlakeError> {
        if let Some(start) = visited.iter().position(|seen| seen == path) {
            let mut cycle: Vec<String> = visited[start..].iter().map(|path| show_input_path(path)).collect();
            cycle.push(show_input_path(path));
            return Err(FlakeError::Follows(format!("follow cycle detected: [{}]", cycle.join(" -> "))));
        }
        visited.push(path.to_vec());
        let mut position = ROOT;
        for name in path {
            position = match self.nodes[position].inputs.get(name) {
                None => return Ok(None),
                Some(Edge::Node(child)) => *child,
                Some(Edge::Follows(target)) => match self.find_from(target, visited)? {
                    None => return Ok(None),
                    Some(node) => node,
                },
            };
        }
        Ok(Some(position))
    }

    /// Calls `visit` with every input and a path to it from the root. What several paths lead to is entered by the first of them, in
    /// the order of the names, as Nix does it.
    pub fn visit_inputs<'l>(&'l self, mut visit: impl FnMut(&InputPath, &'l Edge)) {
        let mut done = vec![false; self.nodes.len()];
        let mut todo = vec![(InputPath::new(), ROOT)];
        while let Some((prefix, index)) = todo.pop() {
            if std::mem::replace(&mut done[index], true) {
                continue;
            }
            // what is pushed last is entered first
            for (name, edge) in self.nodes[index].inputs.iter().rev() {
                let mut path = prefix.clone();
                path.push(name.clone());
                visit(&path, edge);
                if let Edge::Node(child) = edge {
                    todo.push((path, *child));
                }
            }
        }
    }

    /// Checks that every `follows` leads to a node.
    ///
    /// # Errors
    /// When one does not, or goes round in circles: the first, in the order of the paths.
    pub fn check(&self) -> Result<(), FlakeError> {
        let mut follows = BTreeMap::new();
        self.visit_inputs(|path, edge| {
            if let Edge::Follows(target) = edge
                && !target.is_empty()
            {
                follows.insert(path.clone(), target);
            }
        });
        for (path, target) in follows {
            if self.find(target)?.is_none() {
                return Err(FlakeError::Follows(format!(
                    "input '{}' follows a non-existent input '{}'",
                    show_input_path(&path),
                    show_input_path(target)
                )));
            }
        }
        Ok(())
    }
}

/// Reads a lock file's JSON into nodes.
struct Reader<'p> {
    path: &'p str,
    nodes: Map<String, Value>,
    root: String,
    warnings: Vec<String>,
}

impl<'p> Reader<'p> {
    fn new(contents: &[u8], path: &'p str) -> Result<Self, FlakeError> {
        let error = |message: String| FlakeError::Lock { path: path.to_owned(), message };
        let json: Value =
            serde_json::from_slice(contents).map_err(|reason| error(format!("could not parse it: {reason}")))?;
        let Value::Object(mut json) = json else { return Err(error("it is not a JSON object".to_owned())) };
        match json.get("version").map_or(Some(0), Value::as_u64) {
            Some(5..=7) => {}
            Some(version) => return Err(error(format!("it has unsupported version {version}"))),
            None => return Err(error("its version is not a number".to_owned())),
        }
        let Some(Value::String(root)) = json.remove("root") else {
            return Err(error("attribute 'root' is missing or not a string".to_owned()));
        };
        let Some(Value::Object(nodes)) = json.remove("nodes") else {
            return Err(error("attribute 'nodes' is missing or not an object".to_owned()));
        };
        Ok(Reader { path, nodes, root, warnings: Vec::new() })
    }

    fn error(&self, message: String) -> FlakeError {
        FlakeError::Lock { path: self.path.to_owned(), message }
    }

    fn read(mut self) -> Result<LockFile, FlakeError> {
        let root = self.root.clone();
        let mut result = LockFile::default();
        // a node is read when something leads to it
        let mut indices = HashMap::from([(root.clone(), ROOT)]);
        let mut todo = vec![(root.clone(), ROOT)];
        while let Some((key, index)) = todo.pop() {
            let Some(json) = self.nodes.get(&key) else {
                return Err(self.error(format!("it has no node '{key}', which is its root")));
            };
            let edges = self.inputs(&key, json)?;
            for (name, edge) in edges {
                let edge = match edge {
                    RawEdge::Follows(path) => Edge::Follows(path),
                    RawEdge::Key(child) if child == root => {
                        return Err(self.error(format!(
                            "input '{name}' of node '{key}' is the root: lock file contains cycle to root node"
                        )));
                    }
                    RawEdge::Key(child) => Edge::Node(match indices.get(&child) {
                        Some(index) => *index,
                        None => {
                            let lock = self.lock(&key, &name, &child)?;
                            result.nodes.push(LockNode { inputs: BTreeMap::new(), lock: Some(lock) });
                            let index = result.nodes.len() - 1;
                            indices.insert(child.clone(), index);
                            todo.push((child, index));
                            index
                        }
                    }),
                };
                result.nodes[index].inputs.insert(name, edge);
            }
        }
        self.check_acyclic(&result)?;
        result.warnings = self.warnings;
        Ok(result)
    }

    /// The inputs of the node `key`.
    fn inputs(&self, key: &str, json: &Value) -> Result<Vec<(String, RawEdge)>, FlakeError> {
        let inputs = match json.get("inputs") {
            None => return Ok(Vec::new()),
            Some(Value::Object(inputs)) => inputs,
            Some(_) => return Err(self.error(format!("attribute 'inputs' of node '{key}' is not an object"))),
        };
        inputs
            .iter()
            .map(|(name, value)| {
                let edge = match value {
                    Value::String(child) => RawEdge::Key(child.clone()),
                    other => RawEdge::Follows(string_list(other).ok_or_else(|| {
                        self.error(format!(
                            "input '{name}' of node '{key}' is neither a node's name nor a list of input names"
                        ))
                    })?),
                };
                Ok((name.clone(), edge))
            })
            .collect()
    }

    /// What the node `key`, the input `name` of `parent`, is locked to.
    fn lock(&mut self, parent: &str, name: &str, key: &str) -> Result<Lock, FlakeError> {
        let Some(json) = self.nodes.get(key) else {
            return Err(self.error(format!(
                "lock file references missing node '{key}' (it is the input '{name}' of node '{parent}')"
            )));
        };
        let reference = |attr: &str, info: Option<&Value>| {
            let missing = || self.error(format!("attribute '{attr}' missing in node '{key}'"));
            let attrs = json.get(attr).ok_or_else(missing)?;
            let mut attrs = attrs_from_json(attrs).map_err(|error| self.in_node(key, attr, &error))?;
            if let Some(info) = info {
                attrs.extend(attrs_from_json(info).map_err(|error| self.in_node(key, "info", &error))?);
            }
            // an attribute for the evaluator's use that has no business in the file
            attrs.remove("__final");
            FlakeRef::from_attrs(attrs).map_err(|error| self.in_node(key, attr, &error))
        };
        // version 5 kept the NAR hash and the date apart
        let locked = reference("locked", json.get("info"))?;
        let original = reference("original", None)?;
        let is_flake = match json.get("flake") {
            None => true,
            Some(Value::Bool(is_flake)) => *is_flake,
            Some(_) => return Err(self.error(format!("attribute 'flake' of node '{key}' is not a Boolean"))),
        };
        let parent = json
            .get("parent")
            .map(|value| {
                string_list(value).ok_or_else(|| {
                    self.error(format!("attribute 'parent' of node '{key}' is not a list of input names"))
                })
            })
            .transpose()?;
        let is_locked = locked.input.is_locked().map_err(|error| self.in_node(key, "locked", &error))?;
        if !is_locked && locked.input.relative_path().is_none() {
            if locked.input.attrs().contains_key("narHash") {
                self.warnings.push(format!(
                    "Lock file entry '{locked}' is unlocked (e.g. lacks a Git revision) but is checked by NAR hash. \
                     This is not reproducible and will break after garbage collection or when shared."
                ));
            } else {
                return Err(self.error(format!(
                    "node '{key}': Lock file contains unlocked input '{}'. Use '--allow-dirty-locks' to accept this \
                     lock file.",
                    attrs_to_json(locked.input.attrs())
                )));
            }
        }
        Ok(Lock { locked, original, is_flake, parent })
    }

    fn in_node(&self, key: &str, attr: &str, error: &FlakeError) -> FlakeError {
        self.error(format!("attribute '{attr}' of node '{key}': {error}"))
    }

    /// Nodes that are their own inputs have no end when they are walked.
    fn check_acyclic(&self, file: &LockFile) -> Result<(), FlakeError> {
        let keys = file.keys();
        let mut state = vec![Visit::New; file.nodes.len()];
        let mut todo = vec![(ROOT, false)];
        while let Some((index, leaving)) = todo.pop() {
            if leaving {
                state[index] = Visit::Done;
                continue;
            }
            match state[index] {
                Visit::Done => continue,
                Visit::Open => {
                    return Err(self.error(format!("node '{}' is an input of itself", keys[index])));
                }
                Visit::New => state[index] = Visit::Open,
            }
            todo.push((index, true));
            todo.extend(file.nodes[index].inputs.values().filter_map(|edge| match edge {
                Edge::Node(child) if state[*child] != Visit::Done => Some((*child, false)),
                _ => None,
            }));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}

enum RawEdge {
    Key(String),
    Follows(InputPath),
}

fn string_list(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|element| element.as_str().map(str::to_owned)).collect()
}
