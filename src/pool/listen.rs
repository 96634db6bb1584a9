//! Listening to a database on a connection of its own, which is no part of the pool's cap.

use std::{fmt, sync::Arc};

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{Instant, timeout_at};

use super::{Dial, PoolOptions, Stack, dial::Purpose, later, locked};
use crate::error::{Error, ErrorKind};

/// A connection that waits for notifications on one channel.
pub(crate) struct Listening {
    listener: PgListener,
    dial: Arc<Dial>,
}

impl Stack {
    /// Whether the sessions of this stack can listen at all: behind a transaction pooler nobody is at the other end
    /// when there is something to hear.
    pub(crate) fn may_listen(&self) -> bool {
        self.dial().session_is_ours()
    }

    /// Connects to the first endpoint that answers and lets us listen, all within `connect_timeout`.
    pub(crate) async fn listen(&self, channel: &str) -> Result<Listening, Error> {
        let dial = self.dial();
        let options = &self.0.shared.options;
        let listener = dial.listener(channel, options).await?;
        Ok(Listening { listener, dial })
    }

    fn dial(&self) -> Arc<Dial> {
        Arc::clone(&locked(&self.0.target).dial)
    }
}

impl Listening {
    /// Waits for a notification, and gives its payload.
    ///
    /// After an error some may have been missed; nothing is connected again behind the caller's back.
    pub(crate) async fn next(&mut self) -> Result<String, Error> {
        match self.listener.try_recv().await {
            Ok(Some(notification)) => Ok(notification.payload().to_owned()),
            Ok(None) => Err(self.dial.unavailable("the connection that listened is lost")),
            Err(error) => Err(self.dial.placed(error)),
        }
    }
}

impl Dial {
    async fn listener(&self, channel: &str, options: &PoolOptions) -> Result<PgListener, Error> {
        let deadline = later(Instant::now(), options.connect_timeout);
        let silent = || self.unavailable("no answer within the time for connecting");
        let credential = timeout_at(deadline, self.logins.current())
            .await
            .map_err(|_| silent())??;
        let mut failure =
            Error::new(ErrorKind::InvalidConfiguration).detail("the data source has no endpoint");
        let mut left = u32::try_from(self.server.endpoints.len()).unwrap_or(u32::MAX);
        for endpoint in &self.server.endpoints {
            let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
            left -= 1;
            let connect = self.options(endpoint, &credential, Purpose::Listening, options);
            let listening = async {
                // sqlx listens on connections of its own pools alone. This one has a single connection, makes no other,
                // and ends with the listener.
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .min_connections(0)
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .test_before_acquire(false)
                    .acquire_timeout(share)
                    .connect_lazy_with(connect);
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.ignore_pool_close_event(true);
                listener.eager_reconnect(false);
                listener.listen(channel).await?;
                Ok(listener)
            };
            failure = match timeout_at(later(Instant::now(), share), listening).await {
                Ok(Ok(listener)) => return Ok(listener),
                // On a standby, which hears nothing, the next one may be the primary.
                Ok(Err(error)) => self.placed(error),
                Err(_) => silent(),
            };
        }
        Err(failure)
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listening").field(&self.dial).finish()
    }
}
