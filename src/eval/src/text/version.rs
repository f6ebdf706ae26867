//! Versions and package names: `compareVersions`, `splitVersion` and `parseDrvName`.

use std::cmp::Ordering;

/// The components of a version (`builtins.splitVersion`): runs of digits and runs of anything else, split at `.` and
/// `-`, which are dropped.
pub fn split_version(version: &[u8]) -> Components<'_> {
    Components { rest: version }
}

/// See [`split_version`].
#[derive(Clone, Debug)]
pub struct Components<'v> {
    rest: &'v [u8],
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'.' | b'-')
}

impl<'v> Iterator for Components<'v> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<&'v [u8]> {
        let start = self.rest.iter().position(|b| !is_separator(*b))?;
        let rest = &self.rest[start..];
        let digits = rest[0].is_ascii_digit();
        let length = rest.iter().position(|b| b.is_ascii_digit() != digits || is_separator(*b)).unwrap_or(rest.len());
        let (component, rest) = rest.split_at(length);
        self.rest = rest;
        Some(component)
    }
}

/// Compares versions component by component (`builtins.compareVersions`). A version that ends counts as having empty
/// components from there on.
pub fn compare_versions(left: &[u8], right: &[u8]) -> Ordering {
    let (mut left, mut right) = (split_version(left), split_version(right));
    loop {
        let (l, r) = (left.next(), right.next());
        if l.is_none() && r.is_none() {
            return Ordering::Equal;
        }
        let (l, r) = (l.unwrap_or_default(), r.unwrap_or_default());
        if is_less(l, r) {
            return Ordering::Less;
        }
        if is_less(r, l) {
            return Ordering::Greater;
        }
    }
}

/// Whether one component orders before another: `pre` before everything, the end of a version before a number, a
/// number after everything else.
fn is_less(left: &[u8], right: &[u8]) -> bool {
    match (number(left), number(right)) {
        (Some(l), Some(r)) => l < r,
        (None, Some(_)) if left.is_empty() => true,
        _ if left == b"pre" && right != b"pre" => true,
        _ if right == b"pre" => false,
        (_, Some(_)) => true,
        (Some(_), _) => false,
        (None, None) => left < right,
    }
}

/// A component as a number. C++ reads an `int`: what exceeds one is not a number but text.
fn number(component: &[u8]) -> Option<i32> {
    super::number::parse_int(component)?.try_into().ok()
}

/// Splits `name-version` at the first dash that no letter follows (`builtins.parseDrvName`). Gives the name and the
/// version, which is empty if there is none.
pub fn parse_drv_name(name: &[u8]) -> (&[u8], &[u8]) {
    match name.windows(2).position(|pair| pair[0] == b'-' && !pair[1].is_ascii_alphabetic()) {
        Some(dash) => (&name[..dash], &name[dash + 1..]),
        None => (name, b""),
    }
}
