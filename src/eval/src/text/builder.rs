//! How parsed documents become values.

use super::json::JsonError;
use std::vec::Drain;

/// Makes the caller's values as a document is read, so that no tree stands between.
pub trait Builder {
    /// A value.
    type Value;
    /// A name of an attribute. Its order decides the order of the attributes that [`Builder::attrs`] gets.
    type Key: Ord;

    /// `null`.
    fn null(&mut self) -> Self::Value;
    /// `true` or `false`.
    fn bool(&mut self, value: bool) -> Self::Value;
    /// An integer.
    fn int(&mut self, value: i64) -> Self::Value;
    /// An integer beyond the signed ones.
    ///
    /// # Errors
    /// Where there is no value for it, as in the language.
    fn unsigned(&mut self, value: u64) -> Result<Self::Value, JsonError> {
        Err(JsonError::IntegerRange(value))
    }
    /// A float.
    fn float(&mut self, value: f64) -> Self::Value;
    /// A string, without NUL.
    fn string(&mut self, value: &[u8]) -> Self::Value;
    /// A name, without NUL.
    fn key(&mut self, name: &[u8]) -> Self::Key;
    /// A list of these values.
    fn list(&mut self, items: Drain<'_, Self::Value>) -> Self::Value;
    /// A set of these attributes, in ascending order of their names, each name once.
    fn attrs(&mut self, items: Drain<'_, (Self::Key, Self::Value)>) -> Self::Value;
}

/// Sorts the attributes from `start` on; of those with the same name only the last stays.
pub(super) fn settle<K: Ord, V>(attrs: &mut Vec<(K, V)>, start: usize) {
    if attrs[start..].is_sorted_by(|a, b| a.0 < b.0) {
        return;
    }
    // The last of equal names must come first to survive: reverse, then sort stably.
    attrs[start..].reverse();
    attrs[start..].sort_by(|a, b| a.0.cmp(&b.0));
    let mut tail = attrs.split_off(start);
    tail.dedup_by(|later, kept| later.0 == kept.0);
    attrs.append(&mut tail);
}

/// Shows NUL as `␀`, as error texts do.
pub(super) fn show_nul(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "␀")
}
