//! A process that serves tenants: a router as any service has it, and writers that do whatever writers do.

use std::{
    env,
    fs::{File, OpenOptions},
    io::Write,
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    keyring::Keyring,
    plane::{IsolationLevel, TenantDb, TenantExecutor, TenantTx, TxOptions},
    pool::PoolOptions,
    router::CacheOptions,
    settings::Settings,
    tenant::TenantId,
};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{
    dice::Dice,
    process::{say, told},
    world::{APP, Control, LIMIT, NAME, SEED, TENANTS, connect, connect_to, directory, run, slug},
};

/// Writers for each tenant.
const WRITERS: usize = 1;
/// How long one waits at most before it writes again: to go faster would only wear out the machine.
const PAUSE: u64 = 40;

pub(crate) const LEVELS: [(IsolationLevel, &str); 3] = [
    (IsolationLevel::ReadCommitted, "read committed"),
    (IsolationLevel::RepeatableRead, "repeatable read"),
    (IsolationLevel::Serializable, "serializable"),
];

/// How a row comes to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// `execute(&db)`, which is a transaction for tenants that share their database.
    Statement,
    /// Statements on a connection that is held, where there is one to be had.
    Held,
    /// A transaction at this level.
    Transaction(usize),
    /// One that is prepared, and committed by name.
    Prepared(usize),
    /// One that has read before it enters, which only who writes his own SQL can do.
    Late(usize),
}

impl Way {
    pub(crate) const ALL: [Self; 11] = [
        Self::Statement,
        Self::Held,
        Self::Transaction(0),
        Self::Transaction(1),
        Self::Transaction(2),
        Self::Prepared(0),
        Self::Prepared(1),
        Self::Prepared(2),
        Self::Late(0),
        Self::Late(1),
        Self::Late(2),
    ];
}

/// The router of a process of these tests, as its environment describes it.
pub(crate) fn biplane(settings: &Settings, keyring: Keyring, name: &str) -> Biplane {
    let cap = NonZeroU32::new(20).unwrap();
    // On a machine that has too much to do, an answer may take longer than a service would wait for it.
    let pool = PoolOptions::default().cap(cap).connect_timeout(LIMIT);
    Biplane::from_settings(settings, keyring)
        .unwrap()
        .cache(CacheOptions::default().load_timeout(LIMIT))
        .pool(pool.wait_timeout(LIMIT))
        .service(name)
        .build()
        .unwrap()
}

/// A row, in the same words in each mode.
pub(crate) async fn insert<'c>(
    db: impl TenantExecutor<'c>,
    owner: TenantId,
    id: Uuid,
    way: Way,
) -> sqlx::Result<()> {
    sqlx::query("insert into note (id, owner, way) values ($1, $2, $3)")
        .bind(id)
        .bind(*owner.as_uuid())
        .bind(format!("{way:?}"))
        .execute(db)
        .await
        .map(drop)
}

/// The file in which a process writes, before it does anything else, what it has been told is committed.
pub(crate) struct Journal(File);

impl Journal {
    pub(crate) fn open(directory: &Path, name: &str) -> Self {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(directory.join(name));
        Self(file.unwrap())
    }

    pub(crate) fn committed(&self, tenant: &str, way: Way, id: Uuid) {
        // In one write, so that a reader finds whole lines.
        (&self.0)
            .write_all(format!("{tenant} {way:?} {id}\n").as_bytes())
            .unwrap();
    }
}

struct Router {
    name: String,
    biplane: Biplane,
    control: Control,
    journal: Journal,
    over: AtomicBool,
}

impl Router {
    fn from_env() -> Self {
        let name = env::var(NAME).unwrap();
        let settings = Settings::from_env().unwrap();
        let keyring = Keyring::from_env(Keyring::VARIABLE).unwrap();
        Self {
            biplane: biplane(&settings, keyring, &name),
            control: Control::from_env(),
            journal: Journal::open(&directory(), &name),
            over: AtomicBool::new(false),
            name,
        }
    }

    async fn handle(&self, tenant: &str) -> Result<TenantDb, Error> {
        self.biplane.route(&slug(tenant)).await
    }
}

/// A router process whose writers write until it is told to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests of this binary, as a process of its own"]
async fn a_process_that_writes() {
    let router = Arc::new(Router::from_env());
    let seed: u64 = env::var(SEED).unwrap().parse().unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS * TENANTS.len() {
        let writer = Writer {
            router: Arc::clone(&router),
            tenant: TENANTS[number % TENANTS.len()].0,
            dice: Dice::new(seed.wrapping_mul(1_000).wrapping_add(number as u64)),
        };
        writers.spawn(writer.write());
    }
    let mut told = told();
    tokio::select! {
        _ = told.recv() => router.over.store(true, Ordering::SeqCst),
        // It does not end before it is told to.
        Some(ended) = writers.join_next() => ended.unwrap(),
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    router.biplane.close(LIMIT).await;
}

struct Writer {
    router: Arc<Router>,
    tenant: &'static str,
    dice: Dice,
}

impl Writer {
    async fn write(mut self) {
        while !self.router.over.load(Ordering::SeqCst) {
            let way = self.dice.choose(&Way::ALL);
            if let Err(error) = self.attempt(way).await {
                expect(&error, way);
            }
            let pause = Duration::from_millis(PAUSE).mul_f64(self.dice.roll(100) as f64 / 100.0);
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&mut self, way: Way) -> sqlx::Result<()> {
        let db = self.router.handle(self.tenant).await.map_err(sqlx::Error::from)?;
        let owner = db.tenant();
        let id = Uuid::new_v4();
        self.dice.dawdle().await;
        match way {
            Way::Statement => insert(&db, owner, id, way).await?,
            Way::Held => return self.hold(&db).await,
            Way::Transaction(level) => {
                let tx = self.transaction(&db, level, id, way).await?;
                tx.commit().await?;
            }
            Way::Prepared(level) => {
                let tx = self.transaction(&db, level, id, way).await?;
                self.prepare(tx).await?;
            }
            Way::Late(level) => self.enter_late(LEVELS[level].1, id, way).await?,
        }
        self.router.journal.committed(self.tenant, way, id);
        Ok(())
    }

    async fn transaction(
        &mut self,
        db: &TenantDb,
        level: usize,
        id: Uuid,
        way: Way,
    ) -> sqlx::Result<TenantTx> {
        let options = TxOptions::new().isolation(LEVELS[level].0);
        let mut tx = db.begin_with(options).await?;
        self.dice.dawdle().await;
        insert(&mut tx, db.tenant(), id, way).await?;
        self.dice.dawdle().await;
        Ok(tx)
    }

    /// Several statements by themselves, in a session that has entered once.
    async fn hold(&mut self, db: &TenantDb) -> sqlx::Result<()> {
        let mut held = db.acquire().await?;
        for _ in 0..=self.dice.roll(4) {
            let id = Uuid::new_v4();
            insert(&mut held, db.tenant(), id, Way::Held).await?;
            self.router.journal.committed(self.tenant, Way::Held, id);
            self.dice.dawdle().await;
        }
        Ok(())
    }

    /// Prepares a transaction, and commits it from another session.
    async fn prepare(&mut self, mut tx: TenantTx) -> sqlx::Result<()> {
        let name = format!("{} {}", self.router.name, Uuid::new_v4());
        let (port, database): (i32, String) =
            sqlx::query_as("select current_setting('port')::int, current_database()::text")
                .fetch_one(&mut tx)
                .await?;
        let prepare = format!("prepare transaction '{name}'");
        run(tx.dangerous_connection(), prepare).await?;
        drop(tx);
        self.dice.dawdle().await;
        let finish = format!("commit prepared '{name}'");
        let until = Instant::now() + LIMIT;
        loop {
            let finished = match connect_to(port.try_into().unwrap(), &database, APP, &self.router.name).await
            {
                Ok(mut session) => run(&mut session, &*finish).await,
                Err(error) => Err(error),
            };
            match finished {
                Ok(()) => return Ok(()),
                // It is done, or somebody has rolled it back who could not wait.
                Err(error) if code(&error).as_deref() == Some("42704") => {
                    return Err(sqlx::Error::PoolTimedOut);
                }
                Err(error) => {
                    assert!(Instant::now() < until, "{error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn enter_late(&mut self, level: &str, id: Uuid, way: Way) -> sqlx::Result<()> {
        let mut late = begin_late(&self.router.control, self.tenant, level, &self.router.name).await?;
        self.dice.dawdle().await;
        late.enter().await?;
        self.dice.dawdle().await;
        late.insert(id, way).await?;
        self.dice.dawdle().await;
        run(&mut late.session, "commit").await
    }
}

/// A transaction of somebody who writes his own SQL: it has a snapshot, and has not entered.
struct Late {
    session: PgConnection,
    owner: TenantId,
    enter: String,
}

async fn begin_late(control: &Control, tenant: &str, level: &str, name: &str) -> sqlx::Result<Late> {
    let record = control.tenant(tenant).await.map_err(sqlx::Error::from)?;
    let mut session = connect(&record.source, APP, name).await?;
    run(&mut session, format!("begin isolation level {level}; select 1")).await?;
    let (id, epoch) = (record.tenant.id, record.tenant.placement.epoch);
    let database = record.source.database_id.unwrap();
    Ok(Late {
        session,
        owner: id,
        enter: format!("select biplane.enter_v1('{id}', {epoch}, '{database}')"),
    })
}

impl Late {
    async fn enter(&mut self) -> sqlx::Result<()> {
        run(&mut self.session, &*self.enter).await
    }

    async fn insert(&mut self, id: Uuid, way: Way) -> sqlx::Result<()> {
        let sql = format!(
            "insert into note (id, owner, way) values ('{id}', '{}', '{way:?}')",
            self.owner
        );
        // Under no name, which another client of a pooler's session may have as well.
        sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .execute(&mut self.session)
            .await
            .map(drop)
    }
}

/// Much goes wrong for a writer of a tenant that moves. What never may: that it is somewhere else, that it has not entered,
/// or that somebody else's work is in its way.
fn expect(error: &sqlx::Error, way: Way) {
    let kind = Error::of(error).map(Error::kind);
    let ours = matches!(
        kind,
        Some(ErrorKind::WrongDatabase | ErrorKind::Internal | ErrorKind::MissingPrivilege)
    );
    let theirs = [
        "25P02", "42704", "42501", "23505", "42P01", "42P05", "26000", "BP003", "BP004", "BP005",
    ];
    let theirs = code(error).is_some_and(|code| theirs.contains(&&*code));
    assert!(!ours && !theirs, "{way:?}: {error:?}");
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// A router process that does what it is told: `hold` begins work of every kind for every tenant, `finish` tries to commit
/// it, and `write` writes something new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests of this binary, as a process of its own"]
async fn a_process_that_is_told_to_write() {
    let router = Router::from_env();
    let mut told = told();
    let mut begun: Vec<(&str, Way, Begun)> = Vec::new();
    while let Some(command) = told.recv().await {
        match command.as_str() {
            "hold" => {
                for (tenant, _) in TENANTS {
                    begin_everything(&router, tenant, &mut begun).await.unwrap();
                }
                say("holding");
            }
            "finish" => {
                for (tenant, way, work) in begun.drain(..) {
                    let (id, finished) = work.finish(way).await;
                    if finished.is_ok() {
                        router.journal.committed(tenant, way, id);
                    }
                    let outcome = if finished.is_ok() { "committed" } else { "refused" };
                    say(format!("{tenant} {way:?} {outcome}"));
                }
                say("finished");
            }
            command => {
                let tenant = command.strip_prefix("write ").unwrap();
                let (id, way) = (Uuid::new_v4(), Way::Statement);
                let db = router.handle(tenant).await.unwrap();
                match insert(&db, db.tenant(), id, way).await {
                    Ok(()) => {
                        router.journal.committed(tenant, way, id);
                        say("written");
                    }
                    Err(error) => say(format!("refused: {error}")),
                }
            }
        }
    }
}

/// Work that was begun before a process was stopped.
enum Begun {
    /// A row that is written and not committed.
    Written(Box<TenantTx>, Uuid),
    /// A session that has entered.
    Entered(Box<biplane::plane::TenantConn>, TenantId),
    /// A snapshot from before.
    Late(Box<Late>),
}

async fn begin_everything(
    router: &Router,
    tenant: &'static str,
    begun: &mut Vec<(&'static str, Way, Begun)>,
) -> sqlx::Result<()> {
    let db = router.handle(tenant).await.map_err(sqlx::Error::from)?;
    for (number, (level, name)) in LEVELS.into_iter().enumerate() {
        let (id, way) = (Uuid::new_v4(), Way::Transaction(number));
        let mut tx = db.begin_with(TxOptions::new().isolation(level)).await?;
        insert(&mut tx, db.tenant(), id, way).await?;
        begun.push((tenant, way, Begun::Written(Box::new(tx), id)));
        let late = begin_late(&router.control, tenant, name, &router.name).await?;
        begun.push((tenant, Way::Late(number), Begun::Late(Box::new(late))));
    }
    match db.acquire().await {
        Ok(mut held) => {
            let id = Uuid::new_v4();
            insert(&mut held, db.tenant(), id, Way::Held).await?;
            router.journal.committed(tenant, Way::Held, id);
            begun.push((tenant, Way::Held, Begun::Entered(Box::new(held), db.tenant())));
        }
        Err(error) => assert!(
            matches!(
                Error::of(&error).map(Error::kind),
                Some(ErrorKind::UnsupportedIsolation { .. } | ErrorKind::InvalidConfiguration)
            ),
            "{error}"
        ),
    }
    Ok(())
}

impl Begun {
    async fn finish(self, way: Way) -> (Uuid, sqlx::Result<()>) {
        match self {
            Self::Written(tx, id) => (id, tx.commit().await),
            Self::Entered(mut held, owner) => {
                let id = Uuid::new_v4();
                (id, insert(&mut *held, owner, id, way).await)
            }
            Self::Late(mut late) => {
                let id = Uuid::new_v4();
                let finishing = async {
                    late.enter().await?;
                    late.insert(id, way).await?;
                    run(&mut late.session, "commit").await
                };
                (id, finishing.await)
            }
        }
    }
}
