//! What happens to connections that nobody holds: rest, cleaning, cancelling, the end.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use sqlx::{
    Connection, Executor,
    postgres::{PgConnection, PgTransactionManager},
};
use sqlx_core::transaction::TransactionManager;
use tokio::time::{Instant, timeout};

use super::{
    Shared, Stack,
    connection::{Physical, State, give_back},
    dial,
    failure::breaks_connection,
    locked,
    scheduler::Rest,
};

/// How often resting connections are looked over. A fraction of the shortest sensible idle timeout.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// How often a backend that is being ended is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Closes connections that rested too long or are too old, until the pool is gone.
pub(super) async fn reap(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(REAP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        let keeps: HashMap<_, _> = locked(&shared.stacks)
            .iter()
            .filter_map(|(id, stack)| Some((*id, stack.upgrade()?.keep)))
            .collect();
        let now = Instant::now();
        let idle_timeout = shared.options.idle_timeout;
        shared.act(|scheduler, actions| {
            scheduler.reap(
                |id, physical, above| {
                    let rested = now.saturating_duration_since(physical.since());
                    let kept = keeps.get(&id).is_some_and(|keep| above < *keep);
                    physical.is_expired(now) || (rested >= idle_timeout && !kept)
                },
                actions,
            );
        });
    }
}

/// Says goodbye and releases the permit, which is already marked as closing.
pub(super) async fn hang_up(physical: Physical, limit: Duration) {
    let (connection, permit) = physical.part();
    dial::hang_up(connection, limit).await;
    drop(permit);
}

/// Cleans a connection that came back in the middle of something and puts it on its stack, or ends it.
pub(super) fn rescue(stack: Stack, physical: Physical, state: State) {
    let shared = Arc::clone(&stack.0.shared);
    // Without a runtime the process is ending, and the socket closes with the connection.
    if let Some(runtime) = shared.runtime.get() {
        runtime.spawn(async move {
            let mut physical = physical;
            match clean(&stack, &mut physical, state).await {
                Outcome::Clean => give_back(&stack, physical),
                Outcome::Ended => {
                    hang_up(
                        physical.closing(&stack.0.shared),
                        stack.0.shared.options.reset_timeout,
                    )
                    .await
                }
                Outcome::Running => end(&stack, physical).await,
            }
        });
    }
}

enum Outcome {
    /// As good as new.
    Clean,
    /// The server knows that the session is over, or will as soon as the socket closes.
    Ended,
    /// The backend may still be at work.
    Running,
}

async fn clean(stack: &Stack, physical: &mut Physical, state: State) -> Outcome {
    let options = &stack.0.shared.options;
    if state.broken || !stack.0.dial.session_is_ours() {
        return Outcome::Ended;
    }
    if state.busy {
        match timeout(options.cancel_after, catch_up(&mut physical.connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Outcome::Ended,
            Err(_) => {
                if signal(stack, physical.backend, "select pg_catalog.pg_cancel_backend($1)")
                    .await
                    .is_err()
                {
                    return Outcome::Running;
                }
                match timeout(options.reset_timeout, catch_up(&mut physical.connection)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Outcome::Ended,
                    Err(_) => return Outcome::Running,
                }
            }
        }
    }
    match timeout(
        options.reset_timeout,
        reset(stack, &mut physical.connection, state),
    )
    .await
    {
        Ok(Ok(())) => Outcome::Clean,
        Ok(Err(_)) => Outcome::Ended,
        Err(_) => Outcome::Running,
    }
}

/// Reads what the server still has to say, a refusal included.
async fn catch_up(connection: &mut PgConnection) -> sqlx::Result<()> {
    loop {
        match connection.ping().await {
            Ok(()) => return Ok(()),
            Err(error) if breaks_connection(&error) => return Err(error),
            Err(_) => {}
        }
    }
}

async fn reset(stack: &Stack, connection: &mut PgConnection, state: State) -> sqlx::Result<()> {
    let counted = PgTransactionManager::get_transaction_depth(connection) > 0;
    while PgTransactionManager::get_transaction_depth(connection) > 0 {
        PgTransactionManager::rollback(connection).await?;
    }
    if !counted && (state.in_transaction || state.altered) {
        connection.execute("rollback").await?;
    }
    if state.altered {
        connection.clear_cached_statements().await?;
        connection.execute("discard all").await?;
        stack.0.dial.settle(connection).await?;
    }
    Ok(())
}

/// Ends a backend that may still be at work, and holds the permit until it is gone or is given up.
async fn end(stack: &Stack, physical: Physical) {
    let shared = &stack.0.shared;
    let physical = physical.closing(shared);
    let backend = physical.backend;
    let (connection, permit) = physical.part();
    dial::hang_up(connection, shared.options.reset_timeout).await;
    match timeout(shared.options.leak_after, see_off(stack, backend)).await {
        Ok(()) => {}
        Err(_) => {
            shared.counters.leaked.fetch_add(1, Relaxed);
            tracing::warn!(database = %stack.0.dial.whereabouts(), "a backend did not end in time; its permit is given up");
        }
    }
    drop(permit);
}

async fn see_off(stack: &Stack, backend: Option<i32>) {
    if signal(stack, backend, "select pg_catalog.pg_terminate_backend($1)")
        .await
        .is_err()
    {
        // A server that cannot be reached has no backend of ours to wait for, as far as anybody can tell.
        return;
    }
    const PRESENT: &str = "select exists(select from pg_catalog.pg_stat_activity where pid = $1)";
    while signal(stack, backend, PRESENT).await == Ok(true) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks the server about a backend of this stack, through a reserved connection.
async fn signal(stack: &Stack, backend: Option<i32>, question: &'static str) -> Result<bool, ()> {
    let shared = &stack.0.shared;
    let backend = backend.ok_or(())?;
    let _reserved = shared.reserved.acquire().await.map_err(|_| ())?;
    let mut dialed = stack.0.dial.connect(&shared.options).await.map_err(|_| ())?;
    let answer = sqlx::query_scalar(question)
        .bind(backend)
        .persistent(false)
        .fetch_one(&mut dialed.connection)
        .await;
    dial::hang_up(dialed.connection, shared.options.reset_timeout).await;
    answer.map_err(|_| ())
}

/// Ends every lent connection at its server. Whoever holds one sees its statement fail.
pub(super) async fn end_lent(shared: &Arc<Shared>) {
    let lent: Vec<(Option<Stack>, Option<i32>)> = locked(&shared.lent)
        .values()
        .map(|lent| (lent.stack.upgrade().map(Stack), lent.backend))
        .collect();
    for (stack, backend) in lent {
        if let Some(stack) = stack {
            // A server that cannot be asked has ended the session, or will when the socket closes.
            let _ = signal(&stack, backend, "select pg_catalog.pg_terminate_backend($1)").await;
        }
    }
}
