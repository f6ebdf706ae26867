//! Builtins.
use super::PrimOp;
use crate::{Evaluated, Evaluator};
pub(super) const TABLE: &[PrimOp] = &[];
/// A number that no deferred computation has.
pub(crate) const NO_SUCH_DEFERRED: u32 = u32::MAX;
#[derive(Default)] pub(crate) struct FlakeState<'a> { _x: std::marker::PhantomData<&'a ()> }
pub(crate) fn resume<'a>(_evaluator: &Evaluator<'a>, _number: u32) -> Evaluated<'a> { todo!() }
impl<'a> crate::Evaluator<'a> {
    pub(crate) fn is_allowed(&self, _path: &[u8]) -> bool { true }
    pub(crate) fn allow_path(&self, _path: &[u8]) {}
    pub(crate) fn fetch_search_path_entry(&self, _text: &str) -> crate::Result<Vec<u8>> { todo!() }
}
