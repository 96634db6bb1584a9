//! Ten thousand values and some hundred credentials, sealed anew beside people who write, by jobs that are stopped in
//! every way there is.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use biplane::{
    keyring::Keyring,
    plane::{ControlDb, ControlOptions},
    repository::{Actor, CredentialSlot, NewSource, PgTenantAdmin, TenantAdmin},
    rotation::{Reseal, RotationError, SealedStore, StoredCredentials, doctor},
    secret::Credential,
    settings::Dsn,
    tenant::{CredentialVersion, DataSourceId, Location, Role},
    testing::wait,
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    control,
    sealed::{Keys, columns, open, seal, settings},
};

const ROWS: usize = 10_000;
const SOURCES: usize = 150;
const WRITERS: usize = 4;
const PAGE: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// What the writers share.
struct Shared {
    keys: Keys,
    database: String,
    /// Whether every process has the keyring in which the new key is primary.
    promoted: AtomicBool,
    /// How many writers know that.
    told: AtomicU32,
    stop: AtomicBool,
}

impl Shared {
    fn keyring(&self, written: usize) -> &Keyring {
        // Before everybody was told, some seal under the old key, some under the new one.
        if self.promoted.load(Ordering::SeqCst) || written.is_multiple_of(2) {
            &self.keys.after
        } else {
            &self.keys.before
        }
    }
}

/// What a writer committed last, by row: the only truth about its rows.
type Committed = HashMap<i64, String>;

/// Changes, deletes and inserts rows that are its own, until told to stop.
async fn write(shared: Arc<Shared>, number: usize, mut committed: Committed) -> Committed {
    let mut session = control::owner(&shared.database).await;
    let mut rows: Vec<i64> = committed.keys().copied().collect();
    rows.sort_unstable();
    let mut next = i64::try_from(ROWS * 10 + number * 1_000_000).unwrap();
    let (mut written, mut told) = (0_usize, false);
    while !shared.stop.load(Ordering::SeqCst) {
        written += 1;
        let promoted = shared.promoted.load(Ordering::SeqCst);
        let place = (written * 7_919) % rows.len();
        let row = rows[place];
        let text = |row: i64| format!("writer {number}, change {written} of {row}");
        let sealed = |row: i64| seal(shared.keyring(written), &row.to_string(), "token", &text(row));
        match written % 10 {
            0 => {
                run(&mut session, &format!("delete from app.setting where id = {row}")).await;
                rows.swap_remove(place);
                committed.remove(&row);
            }
            1 => {
                next += 1;
                let sealed = sealed(next);
                run(
                    &mut session,
                    &format!("insert into app.setting values ({next}, '{sealed}')"),
                )
                .await;
                rows.push(next);
                committed.insert(next, text(next));
            }
            _ => {
                let sealed = sealed(row);
                run(
                    &mut session,
                    &format!("update app.setting set token = '{sealed}' where id = {row}"),
                )
                .await;
                committed.insert(row, text(row));
            }
        }
        if promoted && !told {
            told = true;
            shared.told.fetch_add(1, Ordering::SeqCst);
        }
    }
    committed
}

async fn run(session: &mut PgConnection, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
        .execute(session)
        .await
        .unwrap();
    assert_eq!(done.rows_affected(), 1, "the rows are this writer's alone");
}

/// A handle whose sessions can be told from others.
async fn handle(database: &str, name: &str) -> ControlDb {
    let cluster = control::cluster().await;
    let mut options = ControlOptions::new(cluster.server(database), cluster.superuser());
    options.application_name = name.into();
    ControlDb::connect(options).unwrap()
}

fn by() -> Actor {
    Actor::new("ann", "rotation")
}

/// Re-seals everything there is, in its own process or in this one.
fn job(keys: &Keys, db: &ControlDb) -> Reseal {
    let credentials = StoredCredentials::new(PgTenantAdmin::new(db.clone()), by());
    Reseal::new(keys.after.clone())
        .store(columns(db))
        .store(credentials)
        .page(PAGE)
}

const URL: &str = "BIPLANE_TEST_RESEAL_URL";
const KEYS: &str = "BIPLANE_TEST_RESEAL_KEYS";

/// What the process runs that is killed. Nobody else does.
#[tokio::test]
#[ignore = "started by the test of ten thousand rows, as a process of its own"]
async fn a_process_that_is_killed() {
    let dsn = Dsn::parse(&std::env::var(URL).unwrap()).unwrap();
    let hex = std::env::var(KEYS).unwrap();
    let (old, new) = hex.split_once(',').unwrap();
    let keys = Keys::of([old.to_owned(), new.to_owned()]);
    let db = ControlDb::connect(ControlOptions::new(
        dsn.server().clone(),
        dsn.credential().clone(),
    ))
    .unwrap();
    // Slow enough to be in the middle of it when it is killed.
    let mut job = job(&keys, &db).rate(NonZeroU32::new(400).unwrap());
    let outcome = job.run().await;
    panic!("it was to be killed: {outcome:?}");
}

async fn spawn_process(shared: &Shared) -> Child {
    let cluster = control::cluster().await;
    let url = cluster.url(&shared.database, &cluster.superuser());
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "writers::a_process_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(URL, url.expose_secret())
        .env(KEYS, shared.keys.hex.join(","))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

async fn under_new(session: &mut PgConnection, keys: &Keys) -> i64 {
    let sql = format!(
        "select count(*) from app.setting where token like 'bp1.{}.%'",
        keys.new
    );
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(session)
        .await
        .unwrap()
}

/// Waits until the jobs have brought more rows under the new key than there were.
async fn until_more(session: &mut PgConnection, keys: &Keys, by: i64) {
    let goal = under_new(session, keys).await + by;
    let enough = async || under_new(session, keys).await >= goal;
    wait::until("progress of the jobs", Duration::from_secs(60), enough)
        .await
        .unwrap();
}

async fn add_credentials(admin: &PgTenantAdmin, keys: &Keys) -> Vec<DataSourceId> {
    let mut sources = Vec::new();
    for number in 0..SOURCES {
        let source = NewSource::new(format!("source-{number}"), Location::Memory);
        let source = admin.create_source(&by(), source).await.unwrap().id;
        for role in [Role::App, Role::Service] {
            set_credential(
                admin,
                &keys.before,
                source,
                role,
                None,
                &format!("{number} {role}"),
            )
            .await;
        }
        sources.push(source);
    }
    sources
}

async fn set_credential(
    admin: &PgTenantAdmin,
    keyring: &Keyring,
    source: DataSourceId,
    role: Role,
    before: Option<CredentialVersion>,
    password: &str,
) {
    let login = Credential::new("app", SecretString::from(password)).unwrap();
    let sealed = keyring.seal_credential(source, role, &login).unwrap();
    let current = CredentialSlot::Current;
    admin
        .set_credential(&by(), source, role, current, before, sealed)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_rows_under_writers_and_killed_jobs_are_all_there_and_all_under_the_new_key() {
    let keys = Keys::new();
    let (base, _) = settings(&keys, ROWS).await;
    let mut session = base.owner;
    let install = biplane::repository::ControlSchema::install_sql(&control::grants());
    control::run(&mut session, install).await.unwrap();
    let admin = PgTenantAdmin::new(base.db.clone());
    let sources = add_credentials(&admin, &keys).await;

    let shared = Arc::new(Shared {
        keys: keys.clone(),
        database: base.database.clone(),
        promoted: AtomicBool::new(false),
        told: AtomicU32::new(0),
        stop: AtomicBool::new(false),
    });
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let own =
            (1..=i64::try_from(ROWS).unwrap()).filter(|id| id.unsigned_abs() as usize % WRITERS == number);
        let own = own.map(|id| (id, format!("token of {id}"))).collect();
        writers.push(tokio::spawn(write(Arc::clone(&shared), number, own)));
    }

    // A process that is killed in the middle.
    let mut process = spawn_process(&shared).await;
    until_more(&mut session, &keys, 150).await;
    process.kill().unwrap();
    assert!(!process.wait().unwrap().success());

    // Tasks that are dropped wherever they are.
    let dropped = handle(&base.database, "reseal-dropped").await;
    for millis in [3, 9, 14, 27, 45, 80] {
        let mut job = job(&keys, &dropped);
        let run = tokio::spawn(async move { job.run().await.map(drop) });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        run.abort();
    }

    // A job whose sessions the server ends.
    let ended = handle(&base.database, "reseal-ended").await;
    let mut ending = job(&keys, &ended).rate(NonZeroU32::new(1_000).unwrap());
    let run = tokio::spawn(async move { ending.run().await });
    until_more(&mut session, &keys, 100).await;
    while !run.is_finished() {
        sqlx::query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'reseal-ended'",
        )
        .execute(&mut session)
        .await
        .unwrap();
    }
    let error = run.await.unwrap().unwrap_err();
    assert!(matches!(error, RotationError::Store { .. }), "{error:?}");

    // Everybody has the new keyring from here on. Now three finish it together.
    shared.promoted.store(true, Ordering::SeqCst);
    wait::until("every writer knows", Duration::from_secs(60), async || {
        shared.told.load(Ordering::SeqCst) == u32::try_from(WRITERS).unwrap()
    })
    .await
    .unwrap();
    let mut workers = Vec::new();
    for number in 0..3 {
        let db = handle(&base.database, &format!("reseal-{number}")).await;
        let mut job = job(&keys, &db);
        workers.push(tokio::spawn(async move { job.run().await }));
    }
    // Somebody changes credentials meanwhile.
    for (number, source) in sources.iter().enumerate().step_by(10) {
        set_credential(
            &admin,
            &keys.after,
            *source,
            Role::App,
            Some(CredentialVersion::FIRST),
            &format!("new {number}"),
        )
        .await;
    }
    for worker in workers {
        let report = worker.await.unwrap().unwrap();
        assert_eq!((report.failed(), report.busy()), (0, 0));
    }
    shared.stop.store(true, Ordering::SeqCst);
    let mut committed = Committed::new();
    for writer in writers {
        committed.extend(writer.await.unwrap());
    }

    let rows: Vec<(i64, String)> = sqlx::query_as("select id, token from app.setting")
        .fetch_all(&mut session)
        .await
        .unwrap();
    assert_eq!(rows.len(), committed.len(), "rows were lost or came back");
    let left = rows
        .iter()
        .filter(|(_, text)| text.starts_with(&format!("bp1.{}.", keys.old)));
    assert_eq!(left.count(), 0, "values were left under the old key");
    for (id, text) in &rows {
        let opened = open(&keys.after, &id.to_string(), "token", text);
        assert_eq!(Some(&opened), committed.get(id), "row {id}");
    }

    let credentials = StoredCredentials::new(admin.clone(), by());
    let census = credentials.census().await.unwrap();
    assert_eq!(
        (census.under(keys.new), census.total()),
        (2 * SOURCES as u64, 2 * SOURCES as u64)
    );
    for (number, source) in sources.iter().enumerate() {
        let found = admin.source(&format!("source-{number}")).await.unwrap().unwrap();
        for role in [Role::App, Role::Service] {
            let stored = &found.credentials[&role].current.sealed;
            let login = keys.after.open_credential(*source, role, stored).unwrap();
            let expected = match (role, number % 10) {
                (Role::App, 0) => format!("new {number}"),
                _ => format!("{number} {role}"),
            };
            assert_eq!(login.password().unwrap().expose_secret(), expected);
        }
    }
    let table = columns(&base.db);
    assert!(
        doctor(&keys.after, &[&table, &credentials])
            .await
            .unwrap()
            .is_healthy()
    );
}
