//! "Did you mean": names similar to one that was not found.

/// Up to five of `names` that are close to `wanted`, the closest first, by the measure and the limits of Nix.
pub(crate) fn best_matches(wanted: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let mut matches: Vec<(usize, String)> = names.map(|name| (distance(wanted, &name), name)).collect();
    matches.sort();
    matches.dedup();
    // As Nix trims its suggestions.
    matches.retain(|(distance, _)| *distance <= 2);
    matches.truncate(5);
    matches.into_iter().map(|(_, name)| name).collect()
}

/// The number of insertions, removals and changes of a byte that lead from one text to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 8 {
        return a.len().abs_diff(b.len());
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
