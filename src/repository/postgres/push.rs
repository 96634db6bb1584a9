//! Hearing of changes by `LISTEN`.

use async_trait::async_trait;

use super::{PgTenants, failure::not_heard};
use crate::{
    error::Error,
    plane::Listening,
    repository::{ChangeHint, ChangeListener, ChangePush},
    tenant::Seq,
};

/// What the trigger that appends to the change log notifies on.
const CHANNEL: &str = "biplane_change";

/// By `LISTEN`, on a connection of its own beside those of the handle's pool. The payload of a notification is a hint,
/// because anybody in the database may send one.
///
/// Behind a pooler that is declared as one of transactions nobody can listen: [`PgTenants`] are followed by polling
/// alone there.
#[async_trait]
impl ChangePush for PgTenants {
    async fn listen(&self) -> Result<Box<dyn ChangeListener>, Error> {
        let listening = self.control().listen(CHANNEL).await.map_err(not_heard)?;
        Ok(Box::new(Listener(listening)))
    }
}

#[derive(Debug)]
struct Listener(Listening);

#[async_trait]
impl ChangeListener for Listener {
    async fn next(&mut self) -> Result<ChangeHint, Error> {
        let payload = self.0.next().await.map_err(not_heard)?;
        Ok(payload
            .parse()
            .map_or(ChangeHint::Look, |seq| ChangeHint::Reached(Seq::new(seq))))
    }
}
