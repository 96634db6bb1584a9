//! What a call costs that an open breaker refuses, beside a connect that the operating system refuses on this machine,
//! which is as fast as a dead server can answer.

use std::{
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    plane::TenantDb,
    pool::BreakerOptions,
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, TenantAdmin},
    secret::Credential,
    tenant::{Endpoint, Location, Role, Server, Slug, TenantStatus},
};
use tokio::{net::TcpStream, runtime::Runtime};

use crate::measure::{Claim, Goal, on_one_thread, ratio};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[refused_against_connect, slower_than_a_millisecond];

/// Calls in a round.
const CALLS: usize = 100;

fn refused_against_connect() -> Claim {
    Claim::new("breaker_open/refused_connect", Goal::RatioAtMost(1.0), || {
        let bench = Bench::start();
        ratio(
            || bench.time(CALLS, async || refuse(&bench.db).await),
            || {
                bench.time(CALLS, async || {
                    let refused = TcpStream::connect(bench.nowhere).await;
                    assert!(refused.is_err(), "nobody listens there");
                })
            },
        )
    })
}

/// Of 10,000 calls, those that took longer than 1 ms, but for one in a hundred, in which the machine did something else.
fn slower_than_a_millisecond() -> Claim {
    Claim::new("breaker_open_slower_than_1_ms", Goal::CountAtMost(100), || {
        let bench = Bench::start();
        let slow = (0..10_000)
            .filter(|_| bench.time(1, async || refuse(&bench.db).await) >= Duration::from_millis(1))
            .count();
        slow as f64
    })
}

async fn refuse(db: &TenantDb) {
    let error = db.begin().await.expect_err("it is open");
    let kind = Error::of(&error).map(Error::kind);
    assert!(
        matches!(
            kind,
            Some(ErrorKind::DatabaseUnavailable { retry_after: Some(_) })
        ),
        "{error}"
    );
}

struct Bench {
    runtime: Runtime,
    db: TenantDb,
    nowhere: SocketAddr,
}

impl Bench {
    fn start() -> Self {
        let runtime = on_one_thread();
        let nowhere = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port is free");
        let db = runtime.block_on(handle(nowhere)).expect("no server is needed");
        Self { runtime, db, nowhere }
    }

    fn time(&self, calls: usize, mut call: impl AsyncFnMut()) -> Duration {
        self.runtime.block_on(async {
            let begun = Instant::now();
            for _ in 0..calls {
                call().await;
            }
            begun.elapsed()
        })
    }
}

/// A handle on a tenant whose server does not answer, and is known not to.
async fn handle(nowhere: SocketAddr) -> Result<TenantDb, Box<dyn std::error::Error>> {
    let (control, credentials) = (MemoryControl::new(), MemoryCredentials::new());
    let by = Actor::new("bench", "measuring");
    let server = Server::new(Endpoint::new(nowhere.ip().to_string(), nowhere.port()), "acme");
    let source = control
        .create_source(&by, NewSource::new("acme", Location::Server(server)))
        .await?;
    credentials.set(source.id, Role::App, Credential::without_password("acme")?);
    let tenant = control
        .create(&by, NewTenant::new(Slug::parse("acme")?, source.id))
        .await?;
    control
        .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
        .await?;
    let long = Duration::from_secs(3_600);
    let biplane = Biplane::postgres(control, credentials)
        .breakers(BreakerOptions::default().back_off(long, long))
        .build()?;
    let db = biplane.route(tenant.id).await?;
    for _ in 0..3 {
        let failed = db.begin().await;
        assert!(failed.is_err(), "nobody listens there");
    }
    Ok(db)
}
