//! The store in memory, and what does not depend on a store.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use biplane::{
    error::{Error, ErrorKind},
    rotation::{
        Census, Decide, Decision, MemoryStore, Mode, Reseal, RotationError, SealedStore, Visit, Visited,
        Wanted, doctor,
    },
    testing::conformance::async_trait,
};
use tokio::time::Instant;

use crate::sealed::{Keys, PURPOSE, incomplete, open, seal};

fn filled(keys: &Keys, values: u32) -> MemoryStore {
    let store = MemoryStore::new("settings", PURPOSE);
    for owner in 0..values {
        let owner = format!("{owner:04}");
        store.insert(&owner, "token", seal(&keys.before, &owner, "token", &owner));
    }
    store
}

fn pages_of(rows: u32) -> NonZeroU32 {
    NonZeroU32::new(rows).unwrap()
}

#[tokio::test]
async fn every_value_comes_under_the_primary_key() {
    let keys = Keys::new();
    let store = filled(&keys, 25);
    let report = Reseal::new(keys.after.clone())
        .store(store.clone())
        .page(pages_of(4))
        .run()
        .await
        .unwrap();
    assert_eq!(report.done(), 25);
    for owner in 0..25 {
        let owner = format!("{owner:04}");
        let text = store.find(&owner, "token").unwrap();
        assert!(text.starts_with(&format!("bp1.{}.", keys.new)));
        assert_eq!(open(&keys.after, &owner, "token", &text), owner);
    }
    assert_eq!(store.census().await.unwrap().under(keys.new), 25);
}

#[tokio::test]
async fn a_dry_run_writes_nothing() {
    let keys = Keys::new();
    let store = filled(&keys, 9);
    let report = Reseal::new(keys.after.clone())
        .store(store.clone())
        .page(pages_of(4))
        .dry_run()
        .run()
        .await
        .unwrap();
    assert_eq!(report.done(), 9);
    assert_eq!(store.census().await.unwrap().under(keys.old), 9);
}

#[tokio::test]
async fn an_empty_store_is_an_error_unless_it_may_be_empty() {
    let keys = Keys::new();
    let empty = || filled(&keys, 0);
    let error = Reseal::new(keys.after.clone())
        .store(empty())
        .run()
        .await
        .unwrap_err();
    assert!(matches!(error, RotationError::NothingFound { .. }));
    let mut job = Reseal::new(keys.after.clone()).store_that_may_be_empty(empty());
    job.run().await.unwrap();
}

#[tokio::test]
async fn a_value_that_changes_between_reading_and_writing_stays() {
    let keys = Keys::new();
    let store = filled(&keys, 3);
    let theirs = seal(&keys.before, "0001", "token", "theirs");
    let (shared, text) = (store.clone(), theirs.clone());
    let sealed = seal(&keys.after, "0000", "token", "ours");
    let visit = Visit::new(Wanted::All, Mode::Change, None, pages_of(10));
    let visited = store
        .visit(&visit, &mut |_| {
            shared.insert("0001", "token", text.clone());
            shared.remove("0002", "token");
            Decision::Replace(biplane::tenant::SealedText::new(sealed.as_str()))
        })
        .await
        .unwrap();
    assert_eq!(visited.written, 1);
    assert_eq!(store.find("0001", "token"), Some(theirs));
    assert_eq!(store.find("0002", "token"), None);
}

/// Owners and fields that look like parts of a position must not derail it.
#[tokio::test]
async fn any_owner_and_field_is_shown_once() {
    let keys = Keys::new();
    let store = MemoryStore::new("odd", PURPOSE);
    for owner in ["", "1", "1:", ":1", "é:é", "2:ab"] {
        for field in ["", "1", "x:y"] {
            store.insert(owner, field, seal(&keys.before, owner, field, "x"));
        }
    }
    let diagnosis = doctor(&keys.before, &[&store]).await.unwrap();
    assert_eq!((diagnosis.stores[0].values, diagnosis.stores[0].opened), (18, 18));
    let report = Reseal::new(keys.after.clone())
        .store(store)
        .page(pages_of(1))
        .run()
        .await
        .unwrap();
    assert_eq!(report.done(), 18);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_to_the_second() {
    let keys = Keys::new();
    let began = Instant::now();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = Arc::clone(&seen);
    Reseal::new(keys.after.clone())
        .store(filled(&keys, 100))
        .rate(NonZeroU32::new(10).unwrap())
        .on_progress(move |progress| listener.lock().unwrap().push((progress.looked, began.elapsed())))
        .run()
        .await
        .unwrap();
    for (looked, elapsed) in seen.lock().unwrap().iter() {
        // The page that is being reported was read after those before it had had their time.
        let allowed = 10 * (elapsed.as_secs() + 1);
        assert!(*looked <= allowed, "{looked} values in {elapsed:?}");
    }
    assert!(
        (10..=11).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn what_fails_does_not_make_the_job_wait() {
    let keys = Keys::new();
    let store = filled(&keys, 3);
    store.insert("0001", "token", "not sealed");
    let began = Instant::now();
    let report = incomplete(Reseal::new(keys.after.clone()).store(store).run().await);
    assert_eq!((report.done(), report.failed(), report.busy()), (2, 1, 0));
    assert_eq!(began.elapsed().as_millis(), 0);
}

/// A store of somebody's own, whose every page fails so often before it is read and written.
#[derive(Debug)]
struct Failing {
    inner: MemoryStore,
    how: ErrorKind,
    times: u32,
    left: AtomicU32,
}

impl Failing {
    fn new(inner: MemoryStore, how: ErrorKind, times: u32) -> Self {
        Self {
            inner,
            how,
            times,
            left: AtomicU32::new(times),
        }
    }
}

#[async_trait]
impl SealedStore for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    async fn census(&self) -> Result<Census, Error> {
        self.inner.census().await
    }

    async fn count(&self, wanted: Wanted) -> Result<u64, Error> {
        self.inner.count(wanted).await
    }

    async fn visit(&self, page: &Visit<'_>, decide: &mut Decide<'_>) -> Result<Visited, Error> {
        if self.left.load(Ordering::SeqCst) > 0 {
            self.left.fetch_sub(1, Ordering::SeqCst);
            // What was shown does not count when the page is lost.
            let look = Visit::new(page.wanted, Mode::Look, page.after, page.limit);
            self.inner.visit(&look, decide).await?;
            return Err(self.how.into());
        }
        self.left.store(self.times, Ordering::SeqCst);
        self.inner.visit(page, decide).await
    }
}

#[tokio::test]
async fn pages_that_lose_to_others_are_tried_again_and_count_once() {
    let keys = Keys::new();
    let store = filled(&keys, 10);
    store.insert("0003", "token", "not sealed");
    let failing = Failing::new(store, ErrorKind::TransactionConflict, 2);
    let mut job = Reseal::new(keys.after.clone()).store(failing).page(pages_of(4));
    let report = incomplete(job.run().await);
    assert_eq!(
        (report.done(), report.failed(), report.stores[0].failures.len()),
        (9, 1, 1)
    );
    assert_eq!(report.stores[0].overtaken, 0);
}

#[tokio::test]
async fn pages_that_lose_for_ever_end_the_job_with_what_was_done() {
    let keys = Keys::new();
    let whole = filled(&keys, 3);
    for how in [ErrorKind::TransactionConflict, ErrorKind::MissingPrivilege] {
        let failing = Failing::new(filled(&keys, 3), how, u32::MAX);
        let mut job = Reseal::new(keys.after.clone())
            .store_that_may_be_empty(whole.clone())
            .store(failing);
        let error = job.run().await.unwrap_err();
        assert_eq!(error.report().unwrap().stores.len(), 2);
        let RotationError::Store { store, source, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!((&*store, source.kind()), ("failing", how));
    }
    assert_eq!(whole.census().await.unwrap().under(keys.new), 3);
}
