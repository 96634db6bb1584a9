//! What the hand-made concurrency of the router is made of: a lock, a flag, and a map that is read without a lock.
//!
//! `tests/mutants shuttle` builds the crate's unit tests with `--cfg biplane_shuttle`, which puts shuttle's scheduler
//! behind all three, so that `router::interleavings` can try thousands of orders of the same code.

#[cfg(not(all(test, biplane_shuttle)))]
pub(super) use self::real::{AtomicBool, Map, Mutex, MutexGuard};
#[cfg(all(test, biplane_shuttle))]
pub(super) use self::tried::{AtomicBool, Map, Mutex, MutexGuard};

#[cfg(not(all(test, biplane_shuttle)))]
mod real {
    pub(in crate::router) use std::sync::{Mutex, MutexGuard, atomic::AtomicBool};
    use std::{borrow::Borrow, hash::Hash};

    use foldhash::fast::RandomState;

    /// A map whose readers wait for nobody.
    pub(in crate::router) struct Map<K, V>(papaya::HashMap<K, V, RandomState>);

    impl<K: Hash + Eq, V> Map<K, V> {
        pub(in crate::router) fn new() -> Self {
            Self(papaya::HashMap::with_hasher(RandomState::default()))
        }

        /// What `read` makes of a value.
        #[inline]
        pub(in crate::router) fn read<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
        where
            K: Borrow<Q>,
            Q: Hash + Eq + ?Sized,
        {
            self.0.pin().get(key).map(read)
        }

        pub(in crate::router) fn insert(&self, key: K, value: V) {
            self.0.pin().insert(key, value);
        }

        pub(in crate::router) fn remove(&self, key: &K) {
            self.0.pin().remove(key);
        }

        pub(in crate::router) fn for_each(&self, show: impl FnMut(&V)) {
            self.0.pin().values().for_each(show);
        }

        pub(in crate::router) fn clear(&self) {
            self.0.pin().clear();
        }

        pub(in crate::router) fn len(&self) -> usize {
            self.0.len()
        }
    }
}

#[cfg(all(test, biplane_shuttle))]
mod tried {
    use std::{borrow::Borrow, collections::HashMap, hash::Hash};

    pub(in crate::router) use shuttle::sync::{Mutex, MutexGuard, atomic::AtomicBool};

    /// Stands for a map that answers each call at one moment, which is what the real one promises.
    pub(in crate::router) struct Map<K, V>(Mutex<HashMap<K, V>>);

    impl<K: Hash + Eq, V: Clone> Map<K, V> {
        pub(in crate::router) fn new() -> Self {
            Self(Mutex::new(HashMap::new()))
        }

        pub(in crate::router) fn read<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
        where
            K: Borrow<Q>,
            Q: Hash + Eq + ?Sized,
        {
            // Read on a copy, because a reader of the real map holds up nobody.
            let value = self.0.lock().unwrap().get(key).cloned();
            value.as_ref().map(read)
        }

        pub(in crate::router) fn insert(&self, key: K, value: V) {
            self.0.lock().unwrap().insert(key, value);
        }

        pub(in crate::router) fn remove(&self, key: &K) {
            self.0.lock().unwrap().remove(key);
        }

        pub(in crate::router) fn for_each(&self, show: impl FnMut(&V)) {
            let values: Vec<V> = self.0.lock().unwrap().values().cloned().collect();
            values.iter().for_each(show);
        }

        pub(in crate::router) fn clear(&self) {
            self.0.lock().unwrap().clear();
        }

        pub(in crate::router) fn len(&self) -> usize {
            self.0.lock().unwrap().len()
        }
    }
}
