//! A push that breaks one promise.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use biplane::{
    error::Error,
    repository::{ChangeHint, ChangeListener, ChangePush},
    tenant::Seq,
    testing::conformance::{PushBackend, async_trait},
};
use tokio::sync::broadcast;

use super::{How, Wrong};

/// What heartbeats are told by, where they are told.
#[derive(Clone, Debug)]
pub(super) struct Beats(pub(super) broadcast::Sender<()>);

impl Default for Beats {
    fn default() -> Self {
        Self(broadcast::Sender::new(100))
    }
}

#[derive(Debug)]
struct Listener {
    how: How,
    inner: Box<dyn ChangeListener>,
    beats: broadcast::Receiver<()>,
    told: usize,
    /// Whether it is not the first.
    late: bool,
}

#[async_trait]
impl ChangePush for Wrong {
    async fn listen(&self) -> Result<Box<dyn ChangeListener>, Error> {
        Ok(Box::new(Listener {
            how: self.how,
            inner: self.inner.listen().await?,
            beats: self.beats.0.subscribe(),
            told: 0,
            late: self.listened_to.swap(true, Ordering::SeqCst),
        }))
    }
}

#[async_trait]
impl ChangeListener for Listener {
    async fn next(&mut self) -> Result<ChangeHint, Error> {
        let deaf = match self.how {
            How::PushTellsOnce => self.told > 0,
            How::PushTellsTheFirstListenerAlone => self.late,
            _ => false,
        };
        if deaf {
            std::future::pending::<()>().await;
        }
        self.told += 1;
        if self.how == How::PushTellsBeats && self.beats.recv().await.is_ok() {
            return Ok(ChangeHint::Reached(Seq::ZERO));
        }
        let hint = self.inner.next().await?;
        Ok(match (self.how, hint) {
            (How::PushTellsTooSoon, ChangeHint::Reached(seq)) => ChangeHint::Reached(seq.next()),
            (How::PushLagsBehind, ChangeHint::Reached(seq)) => ChangeHint::Reached(Seq::new(seq.value() - 1)),
            _ => hint,
        })
    }
}

#[async_trait]
impl PushBackend for Wrong {
    fn push(&self) -> Arc<dyn ChangePush> {
        Arc::new(self.clone())
    }
}

/// Whether anybody has listened.
pub(super) type Listened = Arc<AtomicBool>;
