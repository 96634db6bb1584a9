//! What a single statement costs in each isolation mode, beside a connection that is held throughout: in a fenced database
//! of the tenant's own it goes by itself in a session that has entered; in a shared one it is a transaction, with a round
//! trip before it and one after it.

use biplane::{
    Biplane,
    plane::{DataSchema, Fence, Residence, RoleName, TenantDb},
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, TenantAdmin},
    secret::Credential,
    tenant::{DataSource, DatabaseId, Isolation, Location, Role, Slug, TenantStatus},
    testing::postgres::Cluster,
};
use secrecy::SecretString;
use sqlx::{ConnectOptions, PgConnection};
use tokio::runtime::Runtime;

use crate::{
    checkout::{Pinned, Result, TRIPS, address},
    measure::{Claim, Goal, on_one_thread, ratio},
};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[
    || against_held("statement_in_own_database/held", 1.15, Isolation::Database),
    || against_held("statement_in_schema/held", 7.0, Isolation::Schema),
    || against_held("statement_in_shared_tables/held", 7.0, Isolation::Row),
    || {
        against_same(
            "statement_of_another_tenant/of_the_same_in_schema",
            3.0,
            Isolation::Schema,
        )
    },
    || {
        against_same(
            "statement_of_another_tenant/of_the_same_in_shared_tables",
            2.5,
            Isolation::Row,
        )
    },
];

const LOGIN: &str = "service";
const SELECT: &str = "select 1";

fn against_held(name: &'static str, goal: f64, isolation: Isolation) -> Claim {
    Claim::new(name, Goal::RatioAtMost(goal), move || {
        let bench = Bench::start();
        let db = bench.tenant("acme", isolation);
        let mut held = bench.held();
        ratio(
            || bench.time(async || sqlx::query(SELECT).execute(&db).await.map(drop)),
            || bench.time(async || sqlx::query(SELECT).execute(&mut held).await.map(drop)),
        )
    })
}

/// Two tenants in turn on one connection, against one alone.
fn against_same(name: &'static str, goal: f64, isolation: Isolation) -> Claim {
    Claim::new(name, Goal::RatioAtMost(goal), move || {
        let bench = Bench::start();
        let (one, other) = (bench.tenant("one", isolation), bench.tenant("other", isolation));
        let mut turn = false;
        ratio(
            || {
                bench.time(async || {
                    turn = !turn;
                    let db = if turn { &one } else { &other };
                    sqlx::query(SELECT).execute(db).await.map(drop)
                })
            },
            || bench.time(async || sqlx::query(SELECT).execute(&one).await.map(drop)),
        )
    })
}

/// A server with one fenced database, on one thread and one processor.
struct Bench {
    runtime: Runtime,
    cluster: Cluster,
    control: MemoryControl,
    biplane: Biplane,
    source: DataSource,
    by: Actor,
    _pinned: Pinned,
}

impl Bench {
    fn start() -> Self {
        let runtime = on_one_thread();
        // The server inherits it.
        let pinned = Pinned::new();
        let control = MemoryControl::new();
        let by = Actor::new("bench", "measuring");
        let (cluster, source) = runtime.block_on(server(&control, &by)).expect("a server starts");
        let credentials = MemoryCredentials::new();
        credentials.set(source.id, Role::App, login());
        let biplane = Biplane::postgres(control.clone(), credentials).build();
        let biplane = biplane.expect("the settings are valid");
        Self {
            runtime,
            cluster,
            control,
            biplane,
            source,
            by,
            _pinned: pinned,
        }
    }

    fn tenant(&self, name: &str, isolation: Isolation) -> TenantDb {
        let db = async {
            let mut tenant = NewTenant::new(Slug::parse(name)?, self.source.id);
            tenant.isolation = isolation;
            let tenant = self.control.create(&self.by, tenant).await?;
            let open = TenantStatus::Active;
            self.control
                .set_status(&self.by, tenant.id, tenant.version, open)
                .await?;
            let residence = Residence::new(tenant.id, tenant.placement.epoch, isolation);
            let residence = match isolation {
                Isolation::Schema => residence.schema(name),
                _ => residence,
            };
            let mut owner = self.cluster.connect("postgres").await?;
            Fence::new(&mut owner).place(&residence).await?;
            Result::Ok(self.biplane.route(tenant.id).await?)
        };
        self.runtime.block_on(db).expect("the tenant is led there")
    }

    fn held(&self) -> PgConnection {
        let address = address(&self.cluster, &login());
        self.runtime
            .block_on(address.connect())
            .expect("the server is there")
    }

    fn time(&self, mut trip: impl AsyncFnMut() -> sqlx::Result<()>) -> std::time::Duration {
        self.runtime.block_on(async {
            let begun = std::time::Instant::now();
            for _ in 0..TRIPS {
                trip().await.expect("the server is there");
            }
            begun.elapsed()
        })
    }
}

async fn server(control: &MemoryControl, by: &Actor) -> Result<(Cluster, DataSource)> {
    let (cluster, id) = (Cluster::start().await?, DatabaseId::new());
    cluster
        .create_role(LOGIN, &SecretString::from("of the service"), &[])
        .await?;
    let mut owner = cluster.connect("postgres").await?;
    DataSchema::install(&mut owner, id, &[RoleName::parse(LOGIN)?]).await?;
    let mut source = NewSource::new("postgres", Location::Server(cluster.server("postgres")));
    source.database_id = Some(id);
    let source = control.create_source(by, source).await?;
    Ok((cluster, source))
}

fn login() -> Credential {
    Credential::new(LOGIN, SecretString::from("of the service")).expect("a name and a password")
}
