//! A holder of tensors that kernels write in place.
use std::ops::Deref;

/// A tensor that kernels overwrite in place.
///
/// A kernel that writes in place takes its tensor by value and must get the only handle to the buffer (burn counts
/// handles, and a clone counts as one). The owner of such a tensor therefore gives its own handle away for the launch
/// and keeps the one that comes back. [`update`](Self::update) does both, so that no owner is left without its
/// tensor. Reading goes through [`Deref`].
#[derive(Debug)]
pub struct InPlace<T>(Option<T>);

/// The value is missing only after a panic inside [`InPlace::update`].
const LOST: &str = "an in-place launch panicked before it returned its tensor";

impl<T> InPlace<T> {
    /// Holds `value`, of which no clone may exist when [`update`](Self::update) is called.
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// Passes the only handle to `write`, and keeps the handle that `write` returns with its result.
    ///
    /// # Panics
    /// When an earlier `write` panicked: its tensor is lost.
    pub fn update<R>(&mut self, write: impl FnOnce(T) -> (R, T)) -> R {
        let (result, value) = write(self.0.take().expect(LOST));
        self.0 = Some(value);
        result
    }
}

impl<T> Deref for InPlace<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(LOST)
    }
}
