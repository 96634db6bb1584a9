//! Rows that others hold or change meanwhile.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use biplane::{
    rotation::{Decision, Mode, PgColumns, Reseal, SealedStore, Visit, Wanted},
    tenant::SealedText,
    testing::wait,
};
use sqlx::PgConnection;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{JoinHandle, block_in_place},
};

use crate::{
    control,
    sealed::{Keys, assert_all_under, columns, incomplete, open, seal, settings},
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn rows_that_others_hold_are_reported_and_done_by_the_next_run() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 20).await;
    base.sql("begin; update app.setting set note = 'held' where id in (4, 5, 17)")
        .await;
    let mut job = Reseal::new(keys.after.clone())
        .store(store)
        .patience(Duration::ZERO);
    let report = incomplete(job.run().await);
    assert_eq!((report.done(), report.failed(), report.busy()), (17, 0, 3));
    base.sql("commit").await;
    assert_eq!(job.run().await.unwrap().done(), 3);
    assert_all_under(&mut base, &keys.after, 20).await;
}

#[tokio::test]
async fn rows_that_others_let_go_in_time_are_done_by_the_same_run() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 20).await;
    base.sql("begin; update app.setting set note = 'held' where id in (4, 5, 17)")
        .await;
    let first_pass = Arc::new(Notify::new());
    let told = Arc::clone(&first_pass);
    let mut job = Reseal::new(keys.after.clone())
        .store(store)
        .patience(LIMIT)
        .on_progress(move |progress| {
            if progress.pass == 1 {
                told.notify_one();
            }
        });
    let let_go = async {
        first_pass.notified().await;
        base.sql("commit").await;
    };
    let (outcome, ()) = tokio::join!(job.run(), let_go);
    assert_eq!(outcome.unwrap().done(), 20);
    assert_all_under(&mut base, &keys.after, 20).await;
}

/// A foreign key that is checked holds its row, too, but for nothing that a sealed value matters to.
#[tokio::test]
async fn rows_that_others_refer_to_are_not_passed_over() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 3).await;
    base.sql("create table child (setting bigint references app.setting)")
        .await;
    base.sql("begin; insert into child values (2)").await;
    let mut job = Reseal::new(keys.after.clone())
        .store(store)
        .patience(Duration::ZERO);
    assert_eq!(job.run().await.unwrap().done(), 3);
}

/// Starts to change row 2 in a session of its own, and comes back when that is done or waits for a lock.
async fn overwrite(mut writer: PgConnection, watcher: &mut PgConnection, with: String) -> JoinHandle<()> {
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut writer)
        .await
        .unwrap();
    let writing = tokio::spawn(async move {
        let update = sqlx::query("update app.setting set token = $1 where id = 2").bind(with);
        assert_eq!(update.execute(&mut writer).await.unwrap().rows_affected(), 1);
    });
    wait::until("the writer is done or waits for the row", LIMIT, async || {
        let waits =
            sqlx::query_scalar("select wait_event_type = 'Lock' from pg_stat_activity where pid = $1")
                .bind(pid)
                .fetch_optional(&mut *watcher);
        writing.is_finished() || waits.await.unwrap().flatten().unwrap_or(false)
    })
    .await
    .unwrap();
    writing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_changed_while_a_page_is_open_stays_as_its_writer_left_it() {
    let keys = Keys::new();
    let (mut base, store) = settings(&keys, 3).await;
    let theirs = seal(&keys.before, "2", "token", "theirs");
    let writer = control::owner(&base.database).await;
    let mut interference = Some((writer, theirs));
    let mut writing = None;
    let visit = Visit::new(
        Wanted::NotUnder(keys.new),
        Mode::Change,
        None,
        NonZeroU32::new(10).unwrap(),
    );
    store
        .visit(&visit, &mut |value| {
            if let Some((writer, theirs)) = interference.take() {
                let overwriting = overwrite(writer, &mut base.owner, theirs);
                writing = Some(block_in_place(|| Handle::current().block_on(overwriting)));
            }
            let ours = seal(&keys.after, value.owner(), value.field(), "ours");
            Decision::Replace(SealedText::new(ours))
        })
        .await
        .unwrap();
    writing.unwrap().await.unwrap();
    let texts = base.texts("select token from app.setting order by id").await;
    let opened: Vec<_> = (texts.iter().zip(1..))
        .map(|(text, id)| open(&keys.after, &id.to_string(), "token", text.as_deref().unwrap()))
        .collect();
    assert_eq!(opened, ["ours", "theirs", "ours"]);
}

/// Each sees the other's rows as held by somebody, and neither leaves them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_workers_share_the_rows_and_leave_none() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 400).await;
    let page = NonZeroU32::new(20).unwrap();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let mut job = Reseal::new(keys.after.clone())
                .store(columns(&base.db))
                .page(page);
            tokio::spawn(async move { job.run().await.unwrap().done() })
        })
        .collect();
    let mut done = 0;
    for worker in workers {
        done += worker.await.unwrap();
    }
    assert_eq!(done, 400);
    assert_all_under(&mut base, &keys.after, 400).await;
}

#[tokio::test]
async fn a_page_that_the_database_refuses_leaves_its_rows_whole() {
    let keys = Keys::new();
    let (mut base, _) = settings(&keys, 6).await;
    let refuse = format!(
        "alter table app.setting add constraint no_three check (id <> 3 or token not like 'bp1.{}.%')",
        keys.new
    );
    base.sql(&refuse).await;
    let store: PgColumns<_> = columns(&base.db);
    let error = Reseal::new(keys.after.clone())
        .store(store)
        .run()
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("\"no_three\" of app.setting"), "{cause}");
    let old = format!(
        "select count(*) from app.setting where token like 'bp1.{}.%'",
        keys.old
    );
    assert_eq!(base.count(&old).await, 6);
}
