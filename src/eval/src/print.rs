//! Values as text.
use crate::{Evaluator, Result}; use crate::value::Value; use crate::context::Element;
impl<'a> Evaluator<'a> {
    pub(crate) fn show_for_error(&self, _value: Value<'a>) -> String { todo!() }
    pub(crate) fn assert_equal(&self, _left: Value<'a>, _right: Value<'a>) -> Result<()> { todo!() }
    pub(crate) fn show_context_element(&self, _element: &Element) -> String { todo!() }
}
