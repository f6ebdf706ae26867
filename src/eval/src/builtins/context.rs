//! Builtins.
use super::PrimOp;
pub(super) const TABLE: &[PrimOp] = &[];
