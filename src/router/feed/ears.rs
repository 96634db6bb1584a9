//! Listening to a push, and never relying on it: whenever something may have been missed, the log is read.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};

use super::{Feed, Jitter};
use crate::{
    error::{Error, ErrorKind},
    repository::{ChangeHint, ChangeListener, ChangePush},
    tenant::Seq,
};

/// How long it may take to begin to listen. Connections have limits of their own; this one is for a push that has none.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The first pause before listening is tried again. It doubles up to the last one, and half of each is random, so that a
/// control plane that comes back is not met by all processes at once.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What was heard so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// How often something happened of which it is not known what.
    pub(super) looks: u64,
    /// Where the log stood, as was last told.
    pub(super) seq: Seq,
}

/// Listens, for ever.
pub(super) async fn listen(push: &Arc<dyn ChangePush>, feed: &Feed) {
    let mut jitter = Jitter::new();
    let mut pause = FIRST_PAUSE;
    loop {
        match begin(push).await {
            Ok(mut listener) => {
                let began = Instant::now();
                feed.hears();
                // What was committed before this moment, nobody was told.
                feed.gap();
                let error = tokio::select! {
                    error = hear(&mut *listener, feed) => error,
                    () = feed.deaf.notified() => Error::new(ErrorKind::ControlPlaneUnavailable)
                        .detail("the change log has grown and push did not tell"),
                };
                feed.hears_no_more(&error);
                feed.gap();
                if began.elapsed() > LAST_PAUSE {
                    pause = FIRST_PAUSE;
                }
            }
            Err(error) => feed.hears_no_more(&error),
        }
        sleep(jitter.upper_half(pause)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn begin(push: &Arc<dyn ChangePush>) -> Result<Box<dyn ChangeListener>, Error> {
    let listening = AssertUnwindSafe(async { push.listen().await }).catch_unwind();
    match timeout(LISTEN_TIMEOUT, listening).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(_panic)) => Err(Error::new(ErrorKind::Internal).detail("the push panicked")),
        Err(_) => {
            Err(Error::new(ErrorKind::ControlPlaneUnavailable)
                .detail("push could not be listened to in time"))
        }
    }
}

/// Passes on what is heard, until nothing is heard any more.
async fn hear(listener: &mut dyn ChangeListener, feed: &Feed) -> Error {
    loop {
        match AssertUnwindSafe(listener.next()).catch_unwind().await {
            Ok(Ok(ChangeHint::Reached(seq))) => feed.heard.send_modify(|heard| heard.seq = seq),
            Ok(Ok(ChangeHint::Look)) => feed.heard.send_modify(|heard| heard.looks += 1),
            Ok(Err(error)) => return error,
            Err(_panic) => return Error::new(ErrorKind::Internal).detail("the push panicked"),
        }
    }
}

impl Feed {
    /// Something may have been missed.
    fn gap(&self) {
        if !cfg!(biplane_mutant = "gaps_are_not_read") {
            self.heard.send_modify(|heard| heard.looks += 1);
        }
    }
}
