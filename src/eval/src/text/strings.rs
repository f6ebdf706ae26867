//! Strings and paths as bytes: `replaceStrings`, `baseNameOf`, `dirOf`, path canonicalisation, splitting.

/// Replaces in `text` what is in `from`, in one pass from the left (`builtins.replaceStrings`).
///
/// At each place the first of `from` that stands there is taken, and `replacement` is called with its index and the
/// output to append to; a caller that evaluates replacements on demand should remember them, as it is called for every
/// occurrence. An empty string stands everywhere, also at the end; what follows it is kept.
///
/// # Errors
/// Those of `replacement`, at once.
pub fn replace_strings<F: AsRef<[u8]>, E>(
    from: &[F],
    text: &[u8],
    mut replacement: impl FnMut(usize, &mut Vec<u8>) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let mut out = Vec::with_capacity(text.len());
    let mut starts = [false; 256];
    let mut any_empty = false;
    for candidate in from {
        match candidate.as_ref().first() {
            Some(&byte) => starts[usize::from(byte)] = true,
            None => any_empty = true,
        }
    }
    let mut at = 0;
    while at <= text.len() {
        if !any_empty {
            // Nothing can start before the next of these bytes.
            let next = text[at..].iter().position(|&b| starts[usize::from(b)]).map_or(text.len(), |n| at + n);
            out.extend(&text[at..next]);
            at = next;
        }
        let rest = &text[at..];
        let found = from.iter().position(|candidate| rest.starts_with(candidate.as_ref()));
        let length = found.map_or(0, |index| from[index].as_ref().len());
        if let Some(index) = found {
            replacement(index, &mut out)?;
        }
        if length == 0 {
            out.extend(rest.first());
        }
        at += length.max(1);
    }
    Ok(out)
}

/// What follows the last slash (`builtins.baseNameOf`). One slash at the end does not count; a second one does.
pub fn base_name(path: &[u8]) -> &[u8] {
    let path = match path {
        [path @ .., b'/'] if !path.is_empty() => path,
        path => path,
    };
    let start = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    &path[start..]
}

/// What precedes the last slash (`builtins.dirOf` of a string): `/` for the root's entries, `.` if there is no slash.
pub fn dir_name(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|b| *b == b'/') {
        None => b".",
        Some(0) => b"/",
        Some(slash) => &path[..slash],
    }
}

/// The absolute path that `path` denotes, without looking at the file system: no empty components, no `.`, no `..`,
/// no slash at the end. A path without a leading slash is taken to start at the root; `..` there stays there.
pub fn canon_path(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len() + 1);
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => out.truncate(out.iter().rposition(|b| *b == b'/').unwrap_or(0)),
            component => {
                out.push(b'/');
                out.extend(component);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    out
}

/// The pieces of `text` between bytes of `separators`, without the empty ones (Nix's `tokenizeString`).
pub fn tokenize<'t>(text: &'t [u8], separators: &'t [u8]) -> impl Iterator<Item = &'t [u8]> {
    split(text, separators).filter(|piece| !piece.is_empty())
}

/// The pieces of `text` between bytes of `separators`, also the empty ones (Nix's `splitString`).
pub fn split<'t>(text: &'t [u8], separators: &'t [u8]) -> impl Iterator<Item = &'t [u8]> {
    text.split(|byte| separators.contains(byte))
}
