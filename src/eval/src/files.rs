//! Files.
#[derive(Default)] pub(crate) struct FileState<'a> { _x: std::marker::PhantomData<&'a ()> }
