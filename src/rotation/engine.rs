//! Going over a store page by page, and again for what others held.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    error::{Error, ErrorKind},
    keyring::KeyringError,
};

use super::{
    Decision, Failure, Mode, Progress, SealedStore, StoreReport, StoredValue, Visit, Visited, Wanted,
    store::Cursor,
};

/// How many passes that got something done there are at most. Several are needed only while others write; whoever goes
/// on sealing under an old key would keep the job busy for ever.
const PASSES: u32 = 16;
/// How often a page is tried that loses to other transactions. The database lets one of them through, so a few do.
const ATTEMPTS: u32 = 5;
/// Between passes over what others hold, which nobody tells the end of: short for a transaction that ends soon, then longer,
/// because each pass looks the store over again.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// How a store is gone over.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    pub(super) page: NonZeroU32,
    pub(super) rate: Option<NonZeroU32>,
    pub(super) patience: Duration,
    pub(super) kept_failures: usize,
}

/// 500 values are opened and sealed in some milliseconds, so that the rows of a page are locked about as long as by any
/// short transaction. 30 s without any progress is longer than a transaction should hold a row, and short enough for
/// somebody who waits for the job. 100 failures show what is wrong; the rest is usually the same again.
impl Default for Pace {
    fn default() -> Self {
        Self {
            page: NonZeroU32::MIN.saturating_add(499),
            rate: None,
            patience: Duration::from_secs(30),
            kept_failures: 100,
        }
    }
}

/// Decides about each value, or says what is wrong with it.
pub(super) type Judge<'a> = dyn FnMut(&StoredValue<'_>) -> Result<Decision, KeyringError> + Send + 'a;
/// Hears how far it is.
pub(super) type Listener = Box<dyn FnMut(&Progress<'_>) + Send>;

pub(super) struct Run<'a> {
    pub(super) store: &'a dyn SealedStore,
    pub(super) wanted: Wanted,
    pub(super) mode: Mode,
    pub(super) pace: &'a Pace,
    pub(super) judge: &'a mut Judge<'a>,
    pub(super) listener: Option<&'a mut Listener>,
}

impl Run<'_> {
    /// Goes over the store until nothing is left, or only what fails, or patience runs out. What has been done is in
    /// `report` also when this fails or is dropped.
    pub(super) async fn work_off(&mut self, report: &mut StoreReport) -> Result<(), Error> {
        let (mut passes, mut productive) = (0, 0);
        let (mut waited, mut backoff) = (Duration::ZERO, FIRST_BACKOFF);
        let mut looked = 0;
        loop {
            passes += 1;
            let before = report.done;
            self.pass(passes, &mut looked, report).await?;
            if self.mode == Mode::Look {
                return Ok(());
            }
            // What others held was passed over, and is only seen by counting.
            let remaining = self.store.count(self.wanted).await?;
            report.busy = remaining.saturating_sub(report.failed);
            if cfg!(biplane_mutant = "skipped_rows_are_forgotten") {
                report.busy = 0;
            }
            if report.busy == 0 {
                return Ok(());
            }
            if report.done > before {
                productive += 1;
                (waited, backoff) = (Duration::ZERO, FIRST_BACKOFF);
                if productive == PASSES {
                    return Ok(());
                }
            }
            if waited >= self.pace.patience {
                return Ok(());
            }
            let pause = backoff.min(self.pace.patience - waited);
            sleep(pause).await;
            waited += pause;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn pass(&mut self, number: u32, looked: &mut u64, report: &mut StoreReport) -> Result<(), Error> {
        // What failed in a pass before is shown again, or has been repaired meanwhile.
        report.failed = 0;
        report.failures.clear();
        let mut after = None;
        // A page is at most what a second allows, so that a low rate does not come in bursts.
        let limit = self
            .pace
            .rate
            .map_or(self.pace.page, |rate| rate.min(self.pace.page));
        loop {
            let began = Instant::now();
            let page = self.page(after.as_ref(), limit).await?;
            let done = match self.mode {
                Mode::Look => page.decided,
                Mode::Change => page.visited.written,
            };
            *looked += page.looked;
            report.done += done;
            report.failed += page.failed;
            let room = self.pace.kept_failures.saturating_sub(report.failures.len());
            report.failures.extend(page.failures.into_iter().take(room));
            report.overtaken += page.decided - done.min(page.decided);
            self.tell(number, *looked, report);
            after = page.visited.next;
            if let Some(rate) = self.pace.rate {
                sleep_until(began + share(page.looked, rate)).await;
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn page(&mut self, after: Option<&Cursor>, limit: NonZeroU32) -> Result<Page, Error> {
        let visit = Visit::new(self.wanted, self.mode, after, limit);
        let mut attempt = 1;
        loop {
            let mut page = Page::default();
            let kept = self.pace.kept_failures;
            let outcome = {
                let judge = &mut *self.judge;
                let mut decide = |value: &StoredValue<'_>| page.take(value, judge(value), kept);
                self.store.visit(&visit, &mut decide).await
            };
            match outcome {
                Ok(visited) => {
                    page.visited = visited;
                    return Ok(page);
                }
                Err(error) if error.kind() == ErrorKind::TransactionConflict && attempt < ATTEMPTS => {
                    attempt += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn tell(&mut self, number: u32, looked: u64, report: &StoreReport) {
        let progress = Progress {
            store: &report.store,
            pass: number,
            wanted: report.wanted,
            looked,
            done: report.done,
            failed: report.failed,
            overtaken: report.overtaken,
        };
        tracing::debug!(
            store = progress.store,
            pass = progress.pass,
            wanted = progress.wanted,
            looked = progress.looked,
            done = progress.done,
            failed = progress.failed,
            overtaken = progress.overtaken,
            "a page of sealed values is done"
        );
        if let Some(listener) = &mut self.listener {
            listener(&progress);
        }
    }
}

/// What one page came to.
struct Page {
    looked: u64,
    decided: u64,
    failed: u64,
    failures: Vec<Failure>,
    visited: Visited,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            looked: 0,
            decided: 0,
            failed: 0,
            failures: Vec::new(),
            visited: Visited::new(0, None),
        }
    }
}

impl Page {
    fn take(
        &mut self,
        value: &StoredValue<'_>,
        outcome: Result<Decision, KeyringError>,
        kept: usize,
    ) -> Decision {
        self.looked += 1;
        match outcome {
            Ok(decision) => {
                self.decided += u64::from(decision != Decision::Keep);
                decision
            }
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < kept {
                    self.failures.push(Failure {
                        owner: value.owner().into(),
                        field: value.label().into(),
                        error,
                    });
                }
                Decision::Keep
            }
        }
    }
}

/// How long so many values take at this rate per second.
fn share(values: u64, rate: NonZeroU32) -> Duration {
    let values = u32::try_from(values).unwrap_or(u32::MAX);
    Duration::from_secs(1).saturating_mul(values) / rate.get()
}
