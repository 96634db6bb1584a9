//! Three tenants in one program: one with a database of its own, one with a schema of a shared database, and one with rows
//! in shared tables.
//!
//! ```text
//! cargo run --all-features --example isolation_modes
//! ```
//!
//! It starts a throwaway Postgres server and leaves nothing behind. The code that works with notes, [`add`] and [`notes`],
//! is the same for all of them; where a tenant lives is for the control plane to know.
#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::{error::Error as StdError, process::ExitCode};

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    plane::{DataSchema, RoleName, RowPolicy, TenantDb, TenantExecutor},
    repository::{Actor, MemoryControl, MemoryCredentials, NewSource, NewTenant, TenantAdmin},
    tenant::{DataSource, DatabaseId, Isolation, Location, Role, Slug, Tenant, TenantStatus},
    testing::postgres::Cluster,
};
use secrecy::SecretString;

/// The example needs no errors of its own.
type Result<T = ()> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// What services log in as: no superuser, for whom no policy would hold.
const LOGIN: &str = "service";

#[tokio::main]
async fn main() -> ExitCode {
    match story().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe example came to an end: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn add(db: impl TenantExecutor<'_>, text: &str) -> sqlx::Result<()> {
    sqlx::query("insert into note (text) values ($1)")
        .bind(text)
        .execute(db)
        .await
        .map(drop)
}

async fn notes(db: impl TenantExecutor<'_>) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("select text from note order by text")
        .fetch_all(db)
        .await
}

async fn story() -> Result {
    println!("1. A server with one database for acme, and one that globex, initech and hooli share");
    let place = Place::set_up().await?;
    let (alone, shared) = (
        place.database("acme_db").await?,
        place.database("shared_db").await?,
    );
    let acme = place.tenant("acme", &alone, Isolation::Database).await?;
    let globex = place.tenant("globex", &shared, Isolation::Schema).await?;
    let initech = place.tenant("initech", &shared, Isolation::Row).await?;
    let hooli = place.tenant("hooli", &shared, Isolation::Row).await?;

    println!("2. Their tables: note, under the same name for all");
    let columns = "id bigint generated always as identity primary key, text text not null";
    let grant = format!("grant select, insert on note to {LOGIN}");
    place
        .sql("acme_db", &format!("create table note ({columns}); {grant}"))
        .await?;
    place
        .sql(
            "shared_db",
            &format!(
                "create table note ({columns}, tenant_id uuid not null); {} {grant};
                 create schema globex; grant usage on schema globex to {LOGIN};
                 set local search_path = globex; create table note ({columns}); {grant}",
                RowPolicy::new("public", "note", "tenant_id").sql()
            ),
        )
        .await?;

    println!("3. Who lives where, in the databases themselves");
    place.settle("acme_db", &alone, &acme, None).await?;
    place
        .settle("shared_db", &shared, &globex, Some("globex"))
        .await?;
    for tenant in [&initech, &hooli] {
        place.settle("shared_db", &shared, tenant, None).await?;
    }

    println!("4. One program for all of them");
    let biplane = Biplane::postgres(place.control.clone(), place.credentials.clone()).build()?;
    let mut handles = Vec::new();
    for tenant in [&acme, &globex, &initech, &hooli] {
        let db: TenantDb = biplane.route(&tenant.slug).await?;
        add(&db, &format!("a note of {}", tenant.slug)).await?;
        let mut tx = db.begin().await?;
        add(&mut tx, &format!("another of {}", tenant.slug)).await?;
        tx.commit().await?;
        handles.push((tenant, db));
    }
    for (tenant, db) in &handles {
        let found = notes(db).await?;
        println!(
            "   {:<8} by {:<8}: {}",
            tenant.slug,
            tenant.placement.isolation,
            found.join(", ")
        );
        let own = tenant.slug.to_string();
        if found.len() != 2 || !found.iter().all(|text| text.ends_with(&own)) {
            return Err(format!("{own} sees something else than its own notes").into());
        }
    }

    println!("5. Row-level security is looked at, too");
    let report = handles[2].1.row_security_report(&["note"]).await?;
    println!("   as {}: {} gaps", report.role, report.gaps.len());
    if !report.is_tight() {
        return Err("the policies have gaps".into());
    }

    println!("6. globex is fenced, and nobody else");
    let fence = format!(
        "update biplane.residence set state = 'fenced' where tenant_id = '{}'",
        globex.id
    );
    place.sql("shared_db", &fence).await?;
    match notes(&handles[1].1).await {
        Err(error) => match Error::of(&error).map(Error::kind) {
            Some(ErrorKind::Fenced { .. }) => println!("   globex: {error}"),
            _ => return Err(error.into()),
        },
        Ok(_) => return Err("a fenced tenant was read".into()),
    }
    println!("   initech: {} notes", notes(&handles[2].1).await?.len());

    println!("7. A connection is held where the database is one's own, and nowhere else");
    drop(handles[0].1.acquire().await?);
    match handles[2].1.acquire().await {
        Err(refused) => println!("   initech: {refused}"),
        Ok(_) => return Err("a connection to a shared database was held".into()),
    }
    Ok(())
}

/// A server, and a control plane in memory.
struct Place {
    cluster: Cluster,
    control: MemoryControl,
    credentials: MemoryCredentials,
    by: Actor,
}

impl Place {
    async fn set_up() -> Result<Self> {
        let cluster = Cluster::start().await?;
        cluster
            .create_role(LOGIN, &SecretString::from("of the service"), &[])
            .await?;
        Ok(Self {
            cluster,
            control: MemoryControl::new(),
            credentials: MemoryCredentials::new(),
            by: Actor::new("isolation_modes", "setting up"),
        })
    }

    /// A database with a fence, and the data source for it.
    async fn database(&self, name: &str) -> Result<DataSource> {
        self.cluster.create_database(name).await?;
        let id = DatabaseId::new();
        let mut owner = self.cluster.connect(name).await?;
        DataSchema::install(&mut owner, id, &[RoleName::parse(LOGIN)?]).await?;
        let mut source = NewSource::new(name, Location::Server(self.cluster.server(name)));
        // This is what makes the fence required.
        source.database_id = Some(id);
        let source = self.control.create_source(&self.by, source).await?;
        let login = biplane::secret::Credential::new(LOGIN, SecretString::from("of the service"))?;
        self.credentials.set(source.id, Role::App, login);
        Ok(source)
    }

    async fn tenant(&self, name: &str, source: &DataSource, isolation: Isolation) -> Result<Tenant> {
        let mut tenant = NewTenant::new(Slug::parse(name)?, source.id);
        tenant.isolation = isolation;
        let tenant = self.control.create(&self.by, tenant).await?;
        let active = self
            .control
            .set_status(&self.by, tenant.id, tenant.version, TenantStatus::Active);
        Ok(active.await?)
    }

    /// Says in the database that the tenant lives there.
    async fn settle(
        &self,
        database: &str,
        source: &DataSource,
        tenant: &Tenant,
        schema: Option<&str>,
    ) -> Result {
        let id = source.database_id.ok_or("the data source has a database_id")?;
        let mut owner = self.cluster.connect(database).await?;
        sqlx::query(
            "insert into biplane.residence (tenant_id, epoch, state, isolation, schema_name, database_id)
             values ($1, $2, 'open', $3, $4, $5)",
        )
        .bind(tenant.id.as_uuid())
        .bind(i64::try_from(tenant.placement.epoch.value())?)
        .bind(tenant.placement.isolation.as_str())
        .bind(schema)
        .bind(id.as_uuid())
        .execute(&mut owner)
        .await?;
        Ok(())
    }

    async fn sql(&self, database: &str, sql: &str) -> Result {
        Ok(self.cluster.sql(database, sql).await?)
    }
}
