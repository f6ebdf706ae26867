//! Registries: what the name of a flake stands for.
//!
//! The format is that of Nix's `registry.json`, version 2; the order in which registries are asked, and which ones count for
//! the inputs of a flake, are Nix's too.

use super::error::FlakeError;
use super::reference::{Attr, Input, attrs_from_json};
use super::settings::RegistryEntry;
use serde_json::Value;

/// Which registries count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UseRegistries {
    /// None.
    No,
    /// Those that are the same for everybody: the inputs of a flake must not depend on who locks it.
    Limited,
    /// All.
    All,
}

/// More steps from name to name than this are a circle.
const MAX_STEPS: usize = 100;

/// Parses a registry.
///
/// # Errors
/// When it is no registry of version 2.
pub(super) fn parse(contents: &[u8]) -> Result<Vec<RegistryEntry>, FlakeError> {
    let error = |message: String| FlakeError::Reference(message);
    let json: Value = serde_json::from_slice(contents).map_err(|reason| error(format!("it is not JSON: {reason}")))?;
    match json.get("version").and_then(Value::as_u64) {
        Some(2) => {}
        Some(version) => return Err(error(format!("it has unsupported version {version}"))),
        None => return Err(error("it has no version".to_owned())),
    }
    let Some(entries) = json.get("flakes").and_then(Value::as_array) else {
        return Err(error("attribute 'flakes' is missing or not a list".to_owned()));
    };
    entries.iter().map(parse_entry).collect()
}

fn parse_entry(entry: &Value) -> Result<RegistryEntry, FlakeError> {
    let attrs = |name: &str| {
        let missing = || FlakeError::Reference(format!("an entry has no attribute '{name}'"));
        attrs_from_json(entry.get(name).ok_or_else(missing)?)
    };
    let mut to = attrs("to")?;
    let dir = match to.remove("dir") {
        Some(Attr::String(dir)) => Some(dir),
        _ => None,
    };
    Ok(RegistryEntry {
        from: Input::from_attrs(attrs("from")?)?,
        to: Input::from_attrs(to)?,
        dir,
        exact: entry.get("exact").and_then(Value::as_bool).unwrap_or(false),
    })
}

impl RegistryEntry {
    /// What `input` stands for according to this entry, if it is about it.
    fn apply(&self, input: &Input) -> Result<Option<Input>, FlakeError> {
        if self.from == *input {
            if self.exact {
                return Ok(Some(self.to.clone()));
            }
        } else {
            if self.exact {
                return Ok(None);
            }
            let mut plain = input.clone();
            plain.remove("ref");
            plain.remove("rev");
            if self.from != plain {
                return Ok(None);
            }
        }
        let reference = if self.from.reference()?.is_none() { input.reference()? } else { None };
        let rev = if self.from.rev()?.is_none() { input.rev()? } else { None };
        self.to.with_overrides(reference, rev.as_deref()).map(Some)
    }
}

/// Follows `input` through the registries until it says where the source is. Gives that, and the directory in there that
/// the registry names. `registries` gives the entries of the registry with a number, for an input that is looked up there;
/// `None` if there is no such registry.
///
/// # Errors
/// When a name is in no registry or leads round in circles, or a registry can't be read.
pub(super) fn look_up<'r>(
    input: &Input,
    registries: impl Fn(usize, &Input) -> Result<Option<&'r [RegistryEntry]>, FlakeError>,
) -> Result<(Input, Option<String>), FlakeError> {
    let mut found = input.clone();
    let mut dir = None;
    'steps: for _ in 0..MAX_STEPS {
        let mut number = 0;
        while let Some(entries) = registries(number, &found)? {
            for entry in entries {
                if let Some(next) = entry.apply(&found)? {
                    found = next;
                    dir.clone_from(&entry.dir);
                    continue 'steps;
                }
            }
            number += 1;
        }
        if found.is_direct() {
            return Ok((found, dir));
        }
        return Err(FlakeError::Reference(format!("cannot find flake '{found}' in the flake registries")));
    }
    Err(FlakeError::Reference(format!("cycle detected in flake registry for '{found}'")))
}
