//! Two planes on real Postgres servers: the tenants of two older systems are imported with their credentials sealed
//! anew, a row is written through a handle on each, and direct connections prove where it went.
//!
//! ```text
//! cargo run --all-features --example two_planes
//! ```
//!
//! Without settings it starts three throwaway servers, which are gone afterwards. It runs on servers of yours if you
//! name all three, each by the URL of a login that may create databases and roles; what it creates there has names that
//! begin with `two_planes_`, and is dropped at the end.
//!
//! | variable | server |
//! |---|---|
//! | `BIPLANE_EXAMPLE_CONTROL_URL` | the control plane, and beside it the databases of the older systems |
//! | `BIPLANE_EXAMPLE_DATA_1_URL`, `BIPLANE_EXAMPLE_DATA_2_URL` | the data plane |
//!
//! To read: this file tells the story; `two_planes/import.rs` is what you would write for systems of your own.
#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

#[path = "two_planes/import.rs"]
mod import;
#[path = "two_planes/older.rs"]
mod older;
#[path = "two_planes/proof.rs"]
mod proof;
#[path = "two_planes/servers.rs"]
mod servers;

use std::{error::Error as StdError, process::ExitCode, time::Duration};

use biplane::{
    Biplane,
    keyring::{KeyMaterial, KeyState, Keyring, KeyringError, LegacyKey},
    plane::{ControlDb, ControlOptions, RoleName, TenantExecutor},
    repository::{ControlSchema, Grants, PgTenantAdmin, PgTenants},
    secret::Credential,
    tenant::{Role, Tenant},
};
use secrecy::ExposeSecret;

use import::{Importer, RowError, because};
use older::OlderSystems;
use proof::Proofs;
use servers::{Servers, new_password};

/// The example needs no errors of its own.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn StdError + Send + Sync>>;

/// A row that was written through a tenant's handle.
pub(crate) struct Written {
    pub(crate) tenant: Tenant,
    pub(crate) text: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(proofs) => {
            println!("\nProved:\n{proofs}");
            ExitCode::from(u8::from(!proofs.hold()))
        }
        Err(error) => {
            println!("\nThe example came to an end: {}", because(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<Proofs> {
    let servers = Servers::find().await?;
    println!("{servers}");
    let proofs = story(&servers).await;
    // Whatever happened, nothing is left behind on servers that outlive this program.
    servers.clean_up().await?;
    proofs
}

async fn story(servers: &Servers) -> Result<Proofs> {
    println!("\n1. The older systems, as they were: a CRM with encrypted values, cities with plain URLs");
    let older = OlderSystems::set_up(servers).await?;
    println!("   {older}");

    println!("\n2. The control plane: a database for biplane, a role that routes, a role that administers");
    let control = install_control(servers).await?;

    println!("\n3. The import: open the old values, take the URLs apart, seal the logins anew");
    // A service reads its keys with `Keyring::from_env`; these ones live as long as this program.
    let keyring = Keyring::builder()
        .key(KeyMaterial::generate()?, KeyState::Primary)
        .build()?;
    let importer = Importer {
        admin: PgTenantAdmin::new(control.handle(&control.admin)?),
        keyring: keyring.clone(),
        legacy_key: LegacyKey::from_hex(older.key.expose_secret())?,
        servers,
    };
    let tenants = import(&importer, servers, &older).await?;

    println!("\n4. Routing, with read-only grants, and a row through every handle");
    let router = control.handle(&control.router)?;
    // Tables of the data plane must not be readable in the control plane: code that forgot to change planes would go on
    // using them, on rows that nobody else sees.
    let biplane = Biplane::postgres(PgTenants::new(router.clone()), keyring)
        .refuse_misplaced(&router, ["note"])
        .build()
        .await?;
    let written = write_to_each(&biplane, tenants).await?;

    println!("\n5. Looking at the databases themselves, as their owner");
    let mut proofs = Proofs::default();
    proofs.every_name_leads_to_its_tenant(&biplane, &written).await?;
    proofs
        .rows_are_in_their_own_database_alone(servers, &older, &control.database, &written)
        .await?;
    proofs
        .data_sources_are_as_they_were(&importer, servers, &older, &written)
        .await?;
    proofs
        .control_plane_holds_nothing_readable(servers, &older, &control.database)
        .await?;
    proofs.router_can_only_read(&router).await?;
    biplane.close(Duration::from_secs(5)).await;
    Ok(proofs)
}

/// The new control plane.
struct Control {
    server: biplane::tenant::Server,
    database: String,
    router: Credential,
    admin: Credential,
}

impl Control {
    /// A handle on the control plane with this login. Nothing connects before its first use.
    fn handle(&self, login: &Credential) -> Result<ControlDb> {
        let options = ControlOptions::new(self.server.clone(), login.clone());
        Ok(ControlDb::connect(options)?)
    }
}

async fn install_control(servers: &Servers) -> Result<Control> {
    let database = servers.name("control");
    servers.control.create_database(&database).await?;
    let router = servers
        .control
        .create_role(&servers.name("router"), &new_password())
        .await?;
    let admin = servers
        .control
        .create_role(&servers.name("admin"), &new_password())
        .await?;

    // The same SQL can be printed for a DBA: `ControlSchema::install_sql(&grants)`.
    let grants = Grants::none()
        .router(RoleName::parse(router.username())?)
        .admin(RoleName::parse(admin.username())?);
    let mut owner = servers.control.connect(&database).await?;
    ControlSchema::install_on(&mut owner, &grants).await?;
    for line in ControlSchema::install_sql(&grants).lines() {
        if line.starts_with("grant") && line.contains(router.username()) {
            println!("   {line}");
        }
    }
    Ok(Control {
        server: servers.control.server(&database),
        database,
        router,
        admin,
    })
}

async fn import(importer: &Importer<'_>, servers: &Servers, older: &OlderSystems) -> Result<Vec<Tenant>> {
    let mut tenants = Vec::new();

    let mut crm = servers.control.connect(&older.crm).await?;
    for row in import::crm_rows(&mut crm).await? {
        let declared = row.declared_encoding()?;
        let outcome = match importer.crm(&row, declared).await {
            Err(error) => {
                println!("   REFUSED  {}", because(&error));
                // What the error says is what to do: this row's values are in another encoding than it declares.
                match error.cause() {
                    Some(KeyringError::LegacyEncoding { found, .. }) => importer.crm(&row, *found).await,
                    _ => continue,
                }
            }
            imported => imported,
        };
        tenants.push(report(outcome)?);
    }

    let mut cities = servers.control.connect(&older.cities).await?;
    for row in import::city_rows(&mut cities).await? {
        tenants.push(report(importer.city(&row).await)?);
    }
    Ok(tenants)
}

fn report(outcome: std::result::Result<Tenant, RowError>) -> Result<Tenant> {
    let tenant = outcome?;
    println!("   imported {}", tenant.slug);
    Ok(tenant)
}

async fn write_to_each(biplane: &Biplane, tenants: Vec<Tenant>) -> Result<Vec<Written>> {
    let mut written = Vec::new();
    for tenant in tenants {
        let db = biplane.route(&tenant.slug).await?;
        let text = format!("a note of {}, {}", tenant.slug, uuid::Uuid::new_v4());
        let mut tx = db.begin().await?;
        add_note(&mut tx, &text).await?;
        tx.commit().await?;

        // The restricted role is the default. Where the older system had a second login, it is there by name.
        let mut logins = logged_in_as(&db).await?;
        if tenant.settings["system"] == "crm" {
            logins = format!(
                "{logins}, for service {}",
                logged_in_as(&db.with_role(Role::Service)).await?
            );
        }
        println!("   {:<12} written as {logins}", tenant.slug);
        written.push(Written { tenant, text });
    }
    Ok(written)
}

/// Business code: it says that it works on a tenant's database, and a handle on the control plane would not compile.
async fn add_note(db: impl TenantExecutor<'_>, text: &str) -> sqlx::Result<()> {
    sqlx::query("insert into note (text) values ($1)")
        .bind(text)
        .execute(db)
        .await
        .map(drop)
}

async fn logged_in_as(db: impl TenantExecutor<'_>) -> sqlx::Result<String> {
    sqlx::query_scalar("select current_user::text")
        .fetch_one(db)
        .await
}
