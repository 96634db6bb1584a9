//! Sealed values in the memory of this process.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use crate::error::Error;

use super::{
    Census, Decide, Decision, Mode, SealedStore, StoredValue, Visit, Visited, Wanted,
    store::{Cursor, key_of},
};

/// Sealed values in memory, for tests of code that rotates keys or imports values.
///
/// It keeps the contract of [`SealedStore`], and imports in place. Cheap to clone; clones share their content.
#[derive(Clone)]
pub struct MemoryStore {
    name: Arc<str>,
    purpose: Arc<str>,
    values: Arc<Mutex<Values>>,
}

/// By owner and field.
type Values = BTreeMap<(String, String), String>;

impl MemoryStore {
    /// An empty store of this name, whose values are sealed for this purpose.
    #[must_use]
    pub fn new(name: &str, purpose: &str) -> Self {
        Self {
            name: name.into(),
            purpose: purpose.into(),
            values: Arc::default(),
        }
    }

    /// Stores a value, sealed or not, and returns the one that it replaces.
    pub fn insert(&self, owner: &str, field: &str, text: impl Into<String>) -> Option<String> {
        self.lock()
            .insert((owner.to_owned(), field.to_owned()), text.into())
    }

    /// The value of this owner and field.
    #[must_use]
    pub fn find(&self, owner: &str, field: &str) -> Option<String> {
        self.lock().get(&(owner.to_owned(), field.to_owned())).cloned()
    }

    /// Removes a value and returns it.
    pub fn remove(&self, owner: &str, field: &str) -> Option<String> {
        self.lock().remove(&(owner.to_owned(), field.to_owned()))
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("name", &self.name)
            .field("values", &self.lock().len())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl SealedStore for MemoryStore {
    fn name(&self) -> &str {
        &self.name
    }

    async fn census(&self) -> Result<Census, Error> {
        let mut census = Census::default();
        for text in self.lock().values() {
            census.add(key_of(text), 1);
        }
        Ok(census)
    }

    async fn count(&self, wanted: Wanted) -> Result<u64, Error> {
        let values = self.lock();
        Ok(values.values().filter(|text| wanted.includes(text)).count() as u64)
    }

    async fn visit(&self, page: &Visit<'_>, decide: &mut Decide<'_>) -> Result<Visited, Error> {
        let limit = usize::try_from(page.limit.get()).unwrap_or(usize::MAX);
        let after = match page.after {
            Some(cursor) => Bound::Excluded(key(cursor)),
            None => Bound::Unbounded,
        };
        // `decide` runs outside the lock, as it does on a server, so that tests can write in between.
        let shown: Vec<_> = {
            let values = self.lock();
            let wanted = |(_, text): &(&(String, String), &String)| page.wanted.includes(text);
            let rows = values.range((after, Bound::Unbounded)).filter(wanted).take(limit);
            rows.map(|(key, text)| (key.clone(), text.clone())).collect()
        };
        let mut written = 0;
        for ((owner, field), text) in &shown {
            let decision = decide(&StoredValue::new(&self.purpose, owner, field, text));
            let (Decision::Replace(sealed), Mode::Change) = (decision, page.mode) else {
                continue;
            };
            let mut values = self.lock();
            if let Some(current) = values.get_mut(&(owner.clone(), field.clone()))
                && current == text
            {
                sealed.as_str().clone_into(current);
                written += 1;
            }
        }
        let last = shown.last().filter(|_| shown.len() == limit);
        Ok(Visited::new(written, last.map(|(key, _)| cursor(key))))
    }
}

/// A length before the owner keeps the two parts apart, whatever they hold.
fn cursor((owner, field): &(String, String)) -> Cursor {
    Cursor::new(format!("{}:{owner}{field}", owner.len()))
}

fn key(cursor: &Cursor) -> (String, String) {
    let parts = cursor.as_str().split_once(':').and_then(|(length, rest)| {
        let (owner, field) = rest.split_at_checked(length.parse().ok()?)?;
        Some((owner.to_owned(), field.to_owned()))
    });
    parts.unwrap_or_default()
}
