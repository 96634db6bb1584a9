//! Logins that are replaced behind PgBouncer, which has to take the new one before anybody is told of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use biplane::{
    Biplane,
    connector::postgres::PgServers,
    error::{Error, ErrorKind},
    repository::{
        CredentialSlot::{Current, Next},
        DataServers,
    },
    rotation::LoginRotationError,
    router::FeedOptions,
    secret::Credential,
    tenant::{DataSource, DataSourceId, Location, Role},
    testing::{
        postgres::{BouncerAuth, Cluster, PgBouncer, PoolMode},
        wait,
    },
};
use futures_util::future::join_all;

use crate::{
    Sealed,
    data_plane::{LIMIT, Placed, Wish, options, through},
    flow::{Tools, heartbeat, rotation},
    login,
    next::for_good,
    poolers::{self, Profile, behind_each_pgbouncer, behind_each_pgbouncer_in_session_mode},
    user,
};

const SOON: Duration = Duration::from_secs(1);
/// As PgBouncer has it by itself.
const LATE: Duration = Duration::from_secs(600);

/// How PgBouncer learns of a login: it asks the server, or is told in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Learns {
    ByAsking,
    ByFile,
}

struct Behind {
    sealed: Arc<Sealed>,
    bouncer: PgBouncer,
    logins: [Credential; 2],
    /// Two with one database and one login, and so with the same sessions of the server.
    tenants: Vec<Placed>,
}

/// Sessions of the server that nobody uses are closed after this time; a login that is used no more is then out of use.
async fn behind(profile: Profile, learns: Learns, idle: Duration) -> Behind {
    let sealed = Sealed::new().await;
    let logins = [sealed.role("a").await, sealed.role("b").await];
    let sessions = match profile.mode {
        PoolMode::Session => 12,
        _ => 1,
    };
    let auth = match learns {
        Learns::ByAsking => BouncerAuth::Query,
        Learns::ByFile => BouncerAuth::Known(vec![logins[0].clone()]),
    };
    let bouncer = profile
        .before(sealed.world.cluster, sessions)
        .auth(auth)
        // 1.18 does not tell a client that waits why it gets no session.
        .setting("query_wait_timeout", "20")
        .setting("server_idle_timeout", idle.as_secs().to_string())
        .start()
        .await
        .unwrap();
    let first = sealed.world.tenant().await;
    let mut tenants = Vec::new();
    for number in 0..2 {
        let name = format!("behind-{number}-{}", uuid::Uuid::new_v4().simple());
        let server = sealed.world.cluster.server(&first.database);
        let wish = Wish {
            server: Some(through(server, bouncer.pooler(), bouncer.endpoint())),
            ..Wish::default()
        };
        let placed = sealed.world.tenant_on(&name, &first.database, wish).await;
        sealed.store(&placed, Current, &logins[0]).await;
        tenants.push(placed);
    }
    Behind {
        sealed: Arc::new(sealed),
        bouncer,
        logins,
        tenants,
    }
}

async fn nobody_fails_while_logins_rotate(profile: Profile) {
    rotate(behind(profile, Learns::ByAsking, SOON).await, Learns::ByAsking).await;
}

async fn nor_where_a_file_tells_it_of_logins(profile: Profile) {
    rotate(behind(profile, Learns::ByFile, SOON).await, Learns::ByFile).await;
}

async fn rotate(behind: Behind, learns: Learns) {
    let Behind {
        sealed,
        bouncer,
        logins,
        tenants,
    } = behind;
    let biplane = Biplane::postgres(sealed.world.control.clone(), sealed.keyring.clone())
        .feed(FeedOptions::default().interval(Duration::from_millis(100)))
        .pool(options(4))
        .build()
        .unwrap();
    let biplane = Arc::new(biplane);
    let heartbeat = heartbeat(&sealed, &biplane, Duration::from_millis(50));
    heartbeat.beat_now().await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for number in 0..6 {
        let db = biplane.route(&tenants[number % 2].slug).await.unwrap();
        let done = Arc::clone(&done);
        callers.push(tokio::spawn(async move {
            let mut calls = 0_u32;
            while !done.load(Relaxed) {
                if calls.is_multiple_of(3) {
                    let mut tx = db.begin().await.unwrap();
                    sqlx::query("select $1::int")
                        .bind(number as i32)
                        .execute(&mut tx)
                        .await
                        .unwrap();
                    tx.commit().await.unwrap();
                } else {
                    user(&db).await.unwrap();
                }
                calls += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            calls
        }));
    }
    let tools = Tools::of(&sealed);
    for round in 0..poolers::patience() {
        let (old, new) = (&logins[round % 2], &logins[1 - round % 2]);
        sealed.sql(&format!("alter role {} login", new.username())).await;
        if learns == Learns::ByFile {
            bouncer.know(&logins).await.unwrap();
        }
        let replaced = tenants.iter().map(async |placed| {
            let tools = tools.tools(&sealed);
            rotation(placed).patience(LIMIT).run(&tools, new).await.unwrap();
        });
        join_all(replaced).await;
        for placed in &tenants {
            let tools = tools.tools(&sealed);
            let rotation = rotation(placed).patience(LIMIT);
            rotation.unused(&tools, old.username()).await.unwrap();
        }
        if learns == Learns::ByFile {
            bouncer.know(std::slice::from_ref(new)).await.unwrap();
        }
        sealed
            .sql(&format!("alter role {} nologin", old.username()))
            .await;
        for placed in &tenants {
            let db = biplane.route(&placed.slug).await.unwrap();
            assert_eq!(user(&db).await.unwrap(), new.username());
        }
    }
    done.store(true, Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0, "everybody worked");
    }
}

/// PgBouncer refuses an old password in words of its own.
async fn a_password_changed_at_the_server_first_fails_nobody_while_the_next_one_is_stored(profile: Profile) {
    let behind = behind(profile, Learns::ByAsking, LATE).await;
    let (sealed, placed, first) = (&behind.sealed, &behind.tenants[0], &behind.logins[0]);
    sealed
        .store(placed, Next, &login(first.username(), "second"))
        .await;
    let biplane = sealed.unfed(options(4), for_good());
    let db = biplane.route(&placed.slug).await.unwrap();
    user(&db).await.unwrap();
    sealed.password(first.username(), "second").await;
    // Whoever comes anew is asked for the password anew.
    let anew = sealed.unfed(options(4), for_good());
    let db_of_new = anew.route(&placed.slug).await.unwrap();
    for db in [&db, &db_of_new] {
        for asked in join_all((0..4).map(|_| user(db))).await {
            assert_eq!(asked.unwrap(), first.username());
        }
    }
    assert_eq!(anew.stats().connector.open_breakers, 0);
    sealed.promote(placed).await;
    anew.invalidate(placed.id).await;
    assert_eq!(user(&db_of_new).await.unwrap(), first.username());
}

async fn a_login_that_it_does_not_take_is_said_to_be_rejected(profile: Profile) {
    for learns in [Learns::ByAsking, Learns::ByFile] {
        let behind = behind(profile, learns, LATE).await;
        let (sealed, placed) = (&behind.sealed, &behind.tenants[0]);
        for wrong in [
            login(behind.logins[0].username(), "wrong"),
            login("nobody_knows", "a"),
        ] {
            sealed.store(placed, Current, &wrong).await;
            let biplane = sealed.unfed(options(2), for_good());
            let db = biplane.route(&placed.slug).await.unwrap();
            let error = user(&db).await.unwrap_err();
            let kind = Error::of(&error).map(Error::kind);
            assert_eq!(kind, Some(ErrorKind::CredentialRejected), "{error:?}");
        }
    }
}

/// It lets clients in by itself, and logs in at the server when there is something to do there.
async fn a_login_that_the_pooler_takes_and_the_server_does_not_is_not_promoted(profile: Profile) {
    let behind = behind(profile, Learns::ByFile, SOON).await;
    let (sealed, placed, [_, new]) = (&behind.sealed, &behind.tenants[0], &behind.logins);
    behind.bouncer.know(&behind.logins).await.unwrap();
    let tools = Tools::of(sealed);
    let tools = tools.tools(sealed);
    let source = sealed.source(placed).await;
    tools.servers.log_in(&source, Role::App, new).await.unwrap();
    sealed
        .sql(&format!("alter role {} nologin", new.username()))
        .await;
    wait::until("its session of the server is closed", LIMIT, async || {
        sealed.sessions_of(new.username()).await == 0
    })
    .await
    .unwrap();
    let before = sealed.stored(placed).await.unwrap();
    let refused = rotation(placed).run(&tools, new).await;
    assert!(
        matches!(refused, Err(LoginRotationError::NotAccepted(_))),
        "{refused:?}"
    );
    let after = sealed.stored(placed).await.unwrap();
    assert_eq!(after.current, before.current, "nothing was promoted");
}

/// Whom it has let in it keeps waiting for as long as the server is silent, if it is set so.
async fn a_server_that_falls_silent_behind_it_is_not_waited_for_for_ever(profile: Profile) {
    let cluster = Cluster::start().await.unwrap();
    let login = cluster.superuser();
    let bouncer = profile
        .before(&cluster, 1)
        .auth(BouncerAuth::Known(vec![login.clone()]))
        .setting("query_wait_timeout", "0")
        .start()
        .await
        .unwrap();
    let server = through(cluster.server("postgres"), bouncer.pooler(), bouncer.endpoint());
    let source = DataSource::new(DataSourceId::new(), "silent", Location::Server(server));
    let servers = PgServers::new();
    servers.log_in(&source, Role::App, &login).await.unwrap();
    assert_eq!(
        servers
            .sessions(&source, Role::App, &login, "nobody")
            .await
            .unwrap(),
        0
    );

    cluster.pause().await.unwrap();
    let servers = servers.patience(Duration::from_secs(1));
    let asked = tokio::time::timeout(LIMIT, servers.log_in(&source, Role::App, &login)).await;
    let counted = tokio::time::timeout(LIMIT, servers.sessions(&source, Role::App, &login, "nobody")).await;
    cluster.resume().await.unwrap();
    let unavailable = ErrorKind::DatabaseUnavailable { retry_after: None };
    assert_eq!(asked.unwrap().unwrap_err().kind(), unavailable);
    assert_eq!(counted.unwrap().unwrap_err().kind(), unavailable);
}

behind_each_pgbouncer!(
    nobody_fails_while_logins_rotate,
    nor_where_a_file_tells_it_of_logins,
    a_password_changed_at_the_server_first_fails_nobody_while_the_next_one_is_stored,
    a_login_that_it_does_not_take_is_said_to_be_rejected,
    a_login_that_the_pooler_takes_and_the_server_does_not_is_not_promoted,
    a_server_that_falls_silent_behind_it_is_not_waited_for_for_ever,
);

behind_each_pgbouncer_in_session_mode!(
    nobody_fails_while_logins_rotate,
    a_password_changed_at_the_server_first_fails_nobody_while_the_next_one_is_stored,
);
