//! What holds now and can be replaced as a whole while others use it: furniture that a reload of the settings changes.

use std::sync::{Arc, PoisonError, RwLock};

/// A value that is replaced, never changed.
#[derive(Debug)]
pub(crate) struct Swappable<T>(RwLock<Arc<T>>);

impl<T> Swappable<T> {
    /// Holds until it is replaced.
    pub(crate) fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// As it is now; whoever has it ends with it.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has this hold from now on.
    pub(crate) fn replace(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_begun_with_something_ends_with_it() {
        let current = Swappable::new(1);
        let begun = current.get();
        current.replace(2);
        assert_eq!((*begun, *current.get()), (1, 2));
    }
}
