//! Builtins.
use super::PrimOp;
pub(super) const TABLE: &[PrimOp] = &[];
#[derive(Default)] pub(crate) struct StringState {}
