//! What happens to connections that nobody holds: rest, cleaning, cancelling, the end.

use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use sqlx::{
    Connection, Executor,
    postgres::{PgConnection, PgTransactionManager},
};
use sqlx_core::transaction::TransactionManager;
use tokio::{
    sync::{MutexGuard, SemaphorePermit},
    time::{Instant, sleep, timeout},
};

use super::{
    Shared,
    attempt::Way,
    connection::{Health, Physical, State, catch_up, give_back},
    dial::{self, Backend, Dial, Purpose},
    entry::Memory,
    failure::Blame,
    locked,
    scheduler::{Rest, StackId},
};

/// How often resting connections are looked over. A fraction of the shortest sensible idle timeout.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// How often a backend that is being ended is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often a backend is looked for in a row. One that takes its time must not keep the connection beyond the cap from
/// those who want to cancel something.
const LOOKS: u32 = 20;

/// How often a server is asked again that would not be asked.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// How long a backend that was told to go is taken to be there, where nobody waits for its permit. sqlx drops the socket
/// with its goodbye, so that the end cannot be seen; it takes a tenth of this on an idle machine.
const GOODBYE: Duration = Duration::from_millis(10);

const CANCEL: &str = "
    select pg_catalog.pg_cancel_backend(pid)
    from pg_catalog.pg_stat_get_activity($1)
    where (extract(epoch from backend_start) * 1000000)::int8 = $2";

const TERMINATE: &str = "
    select pg_catalog.count(pg_catalog.pg_terminate_backend(activity.pid))
    from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::int8[])) as ended (pid, started),
        lateral pg_catalog.pg_stat_get_activity(ended.pid) as activity
    where (extract(epoch from activity.backend_start) * 1000000)::int8 = ended.started";

const PRESENT: &str = "
    select pg_catalog.count(*)
    from rows from (pg_catalog.unnest($1::int4[]), pg_catalog.unnest($2::int8[])) as ended (pid, started),
        lateral pg_catalog.pg_stat_get_activity(ended.pid) as activity
    where (extract(epoch from activity.backend_start) * 1000000)::int8 = ended.started";

/// Closes connections that rested too long or are too old, until the pool is gone.
pub(super) async fn reap(shared: Weak<Shared>) {
    loop {
        sleep(REAP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.tick();
        shared.follow_logins();
        let now = Instant::now();
        let idle_timeout = shared.options.idle_timeout;
        shared.act(|scheduler, actions| {
            scheduler.reap(
                |physical, kept| {
                    let rested = now.saturating_duration_since(physical.since());
                    physical.is_expired(now) || (rested >= idle_timeout && !kept)
                },
                actions,
            );
        });
    }
}

/// Says goodbye and releases the permit, which is already marked as closing, once the backend is gone. At the cap, where
/// the permit may be taken at once, the server is asked.
pub(super) async fn hang_up(shared: Arc<Shared>, physical: Physical) {
    let (dial, backend) = (Arc::clone(&physical.dial), physical.backend);
    let (connection, permit) = physical.part();
    dial::hang_up(connection, shared.options.reset_timeout).await;
    match backend.filter(|_| dial.is_direct() && shared.is_at_cap()) {
        Some(backend) => watch(&shared, &dial, see_off(&shared, &dial, PRESENT, &[backend])).await,
        None => sleep(GOODBYE).await,
    }
    drop(permit);
}

/// Cleans a connection that came back in the middle of something and puts it on its stack, or ends it.
pub(super) fn rescue(shared: Arc<Shared>, stack: StackId, physical: Physical, state: State) {
    Arc::clone(&shared).spawn(async move {
        let mut physical = physical;
        match clean(&shared, &mut physical, state).await {
            Outcome::Clean => give_back(&shared, stack, physical),
            Outcome::Over => {
                let physical = physical.closing(&shared);
                hang_up(shared, physical).await;
            }
            Outcome::Unknown => end(&shared, physical).await,
        }
    });
}

enum Outcome {
    /// As good as new.
    Clean,
    /// Of no use, and its backend gone, or waiting for what comes next: a goodbye is enough.
    Over,
    /// The backend may still be at work.
    Unknown,
}

async fn clean(shared: &Shared, physical: &mut Physical, state: State) -> Outcome {
    let options = &shared.options;
    match state.health {
        Health::Sound => {}
        // A pooler may have given the backend to somebody else by now.
        Health::Suspect if physical.dial.is_direct() => return Outcome::Unknown,
        Health::Suspect | Health::Gone => return Outcome::Over,
    }
    if state.busy {
        match timeout(options.cancel_after, catch_up(&mut physical.connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Outcome::Unknown,
            Err(_) => {
                if !cancel(shared, physical).await {
                    return Outcome::Unknown;
                }
                match timeout(options.reset_timeout, catch_up(&mut physical.connection)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Outcome::Unknown,
                }
            }
        }
    }
    if state.altered && !physical.dial.session_is_ours() {
        // The session is the pooler's to clean. With the connection it loses the server's, too, if that is in use.
        return Outcome::Over;
    }
    match timeout(options.reset_timeout, reset(physical, state)).await {
        Ok(Ok(())) => Outcome::Clean,
        Ok(Err(_)) | Err(_) => Outcome::Unknown,
    }
}

async fn reset(physical: &mut Physical, state: State) -> sqlx::Result<()> {
    let connection = &mut physical.connection;
    let counted = PgTransactionManager::get_transaction_depth(connection) > 0;
    while PgTransactionManager::get_transaction_depth(connection) > 0 {
        PgTransactionManager::rollback(connection).await?;
    }
    if state.in_transaction && !counted && !cfg!(biplane_mutant = "begins_cut_short_are_believed") {
        // A BEGIN that was cut short: sqlx does not know of it.
        connection.execute("rollback").await?;
    }
    if state.altered {
        // First, for it is not known from here on what the session still has.
        physical.memory = Memory::default();
        connection.clear_cached_statements().await?;
        discard_all(connection).await?;
        let settings = physical.dial.settings_anew();
        let settled = physical.dial.settle(connection, &settings).await;
        if cfg!(biplane_mutant = "any_answer_will_do") {
            return Ok(());
        }
        if settled? != physical.backend {
            return Err(sqlx::Error::Protocol("the answer of another backend".into()));
        }
    }
    Ok(())
}

/// Ends a transaction only if there is one, for the server's log and ours would note each time that there is none.
async fn discard_all(connection: &mut PgConnection) -> sqlx::Result<()> {
    match connection.execute("discard all").await {
        Err(sqlx::Error::Database(refused))
            if matches!(refused.code().as_deref(), Some("25001" | "25P02")) =>
        {
            connection.execute("rollback").await?;
            connection.execute("discard all").await?;
            Ok(())
        }
        discarded => discarded.map(|_| ()),
    }
}

/// Interrupts the statement that a connection is busy with. The signal has been sent before this returns, so it cannot
/// strike whatever runs after what was read of the statement's answer.
async fn cancel(shared: &Shared, physical: &Physical) -> bool {
    let Some(backend) = physical.backend else {
        return false;
    };
    let work = async {
        let mut reserved = Reserved::open(shared, &physical.dial).await.ok()?;
        let sent: Option<bool> = sqlx::query_scalar(CANCEL)
            .bind(backend.pid)
            .bind(backend.started)
            .persistent(false)
            .fetch_optional(&mut reserved.connection)
            .await
            .ok()?;
        reserved.close(shared).await;
        sent
    };
    timeout(patience(shared), work).await == Ok(Some(true))
}

/// Ends a backend that may still be at work, and holds the permit until it is gone or is given up.
pub(super) async fn end(shared: &Shared, physical: Physical) {
    let physical = physical.closing(shared);
    let dial = Arc::clone(&physical.dial);
    let backend = physical.backend;
    let (connection, permit) = physical.part();
    let permit = (!cfg!(biplane_mutant = "permits_end_early")).then_some(permit);
    end_backend(shared, &dial, backend, connection).await;
    drop(permit);
}

/// Ends the backend of a connection, and the connection.
pub(super) async fn end_backend(
    shared: &Shared,
    dial: &Dial,
    backend: Option<Backend>,
    connection: PgConnection,
) {
    if let Some(backend) = backend {
        // While the connection is ours: a pooler gives the backend of one that was closed to somebody else.
        watch(shared, dial, see_off(shared, dial, TERMINATE, &[backend])).await;
    }
    dial::hang_up(connection, shared.options.reset_timeout).await;
}

/// Waits for backends to go, and no longer than a permit is kept for them.
async fn watch(shared: &Shared, dial: &Dial, gone: impl Future<Output = ()>) {
    if timeout(shared.options.leak_after, gone).await.is_err() {
        shared.counters.leaked.fetch_add(1, Relaxed);
        tracing::warn!(database = %dial.whereabouts(), "a backend did not end in time; its permit is given up");
    }
}

/// Asks about backends, first with `question`, and waits until they are gone, for ever if that cannot be found out.
async fn see_off(shared: &Shared, dial: &Dial, mut question: &'static str, backends: &[Backend]) {
    loop {
        match Reserved::open(shared, dial).await {
            Ok(mut reserved) => {
                for _ in 0..LOOKS {
                    let Ok(left) = reserved.count(question, backends).await else {
                        break;
                    };
                    if left == 0 {
                        return reserved.close(shared).await;
                    }
                    question = PRESENT;
                    sleep(LOOK_EVERY).await;
                }
                reserved.close(shared).await;
            }
            // A server that cannot be reached has no backend of ours, as far as anybody can tell.
            Err(Unreserved::Unreachable) => return,
            Err(Unreserved::Refused) => {}
        }
        sleep(RETRY_EVERY).await;
    }
}

/// Ends every lent connection at its server. Whoever holds one sees its statement fail.
pub(super) async fn end_lent(shared: &Shared) {
    let lent: Vec<(Arc<Dial>, Backend)> = locked(&shared.lent)
        .values()
        .filter_map(|one| Some((Arc::clone(&one.dial), one.backend?)))
        .collect();
    if !cfg!(biplane_mutant = "close_waits_for_ever") {
        end_backends(shared, lent).await;
    }
}

/// Ends backends at their servers, however many there are of one.
pub(super) async fn end_backends(shared: &Shared, all: Vec<(Arc<Dial>, Backend)>) {
    let mut by_dial: Vec<(Arc<Dial>, Vec<Backend>)> = Vec::new();
    for (dial, backend) in all {
        match by_dial.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &dial)) {
            Some((_, backends)) => backends.push(backend),
            None => by_dial.push((dial, vec![backend])),
        }
    }
    let ended = by_dial
        .iter()
        .map(|(dial, backends)| see_off(shared, dial, TERMINATE, backends));
    futures_util::future::join_all(ended).await;
}

/// A connection beyond the cap, for moments.
struct Reserved<'a> {
    connection: PgConnection,
    _permit: SemaphorePermit<'a>,
    _turn: MutexGuard<'a, ()>,
}

/// Why there is none.
enum Unreserved {
    /// Nothing answers.
    Unreachable,
    /// The server, or whoever gives the login, lets us not in just now.
    Refused,
}

impl<'a> Reserved<'a> {
    async fn open(shared: &'a Shared, dial: &'a Dial) -> Result<Self, Unreserved> {
        if dial
            .guard
            .as_ref()
            .is_some_and(|guard| shared.breakers.is_open(guard.login()))
        {
            return Err(Unreserved::Refused);
        }
        let turn = dial.turn.lock().await;
        let permit = shared.reserved.acquire().await.expect("never closed");
        let (purpose, options) = (Purpose::Reserved, &shared.options);
        let mut dialed = dial.connect(purpose, options, Way::Known(shared)).await;
        if let Err(not) = &dialed
            && not.blame == Blame::Login
            && let Some(successor) = dial.successor()
        {
            dialed = successor.connect(purpose, options, Way::Known(shared)).await;
        }
        match dialed {
            Ok(dialed) => Ok(Self {
                connection: dialed.connection,
                _permit: permit,
                _turn: turn,
            }),
            Err(not) if not.answered => Err(Unreserved::Refused),
            Err(_) => Err(Unreserved::Unreachable),
        }
    }

    async fn count(&mut self, question: &'static str, backends: &[Backend]) -> sqlx::Result<i64> {
        let (pids, started): (Vec<i32>, Vec<i64>) = backends
            .iter()
            .map(|backend| (backend.pid, backend.started))
            .unzip();
        sqlx::query_scalar(question)
            .bind(pids)
            .bind(started)
            .persistent(false)
            .fetch_one(&mut self.connection)
            .await
    }

    async fn close(self, shared: &Shared) {
        dial::hang_up(self.connection, shared.options.reset_timeout).await;
        sleep(GOODBYE).await;
    }
}

/// How long a connection beyond the cap may take, the wait for one included.
fn patience(shared: &Shared) -> Duration {
    shared
        .options
        .connect_timeout
        .saturating_add(shared.options.reset_timeout)
}
