//! Both planes in memory, no server: three tenants, sealed credentials, routing by slug, id and domain, and what is
//! refused.
//!
//! ```text
//! cargo run --example quickstart
//! ```
#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::{collections::BTreeMap, error::Error as StdError, hint::black_box, time::Instant};

use biplane::{
    Biplane,
    connector::memory::MemoryDb,
    error::ErrorKind,
    keyring::{KeyMaterial, KeyState, Keyring},
    repository::{
        Actor, CredentialSlot, CredentialSource, MemoryControl, NewSource, NewTenant, TenantAdmin,
        TenantRepository,
    },
    secret::Credential,
    tenant::{DataSource, Domain, Endpoint, Location, Role, Server, Slug, Tenant, TenantRef, TenantStatus},
};

/// What the application keeps for a tenant. On Postgres this would be tables.
#[derive(Clone, Debug, Default)]
struct Notes(BTreeMap<u32, String>);

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    // The control plane: who the tenants are, where their data is, and how to log in there, sealed.
    let control = MemoryControl::new();
    let keyring = Keyring::builder()
        .key(KeyMaterial::generate()?, KeyState::Primary)
        .build()?;
    let acme = add_tenant(&control, &keyring, "acme").await?;
    let globex = add_tenant(&control, &keyring, "globex").await?;
    let initech = add_tenant(&control, &keyring, "initech").await?;

    // The router: from a name to a handle on that tenant's data.
    let biplane = Biplane::memory(control.clone(), |_tenant| Notes::default()).build()?;

    one_route_for_all_names(&biplane, &acme).await?;
    nobody_sees_anothers_rows(&biplane, &acme, &globex).await?;
    unknown_and_suspended_are_refused(&biplane, &control, &initech).await?;
    credentials_are_sealed(&control, &keyring, &acme, &globex).await?;
    a_warm_lookup_is_fast(&biplane, &acme);

    biplane.close(std::time::Duration::from_secs(1)).await;
    println!("\nNext: cargo run --all-features --example two_planes, the same on real Postgres servers.");
    Ok(())
}

async fn add_tenant(
    control: &MemoryControl,
    keyring: &Keyring,
    name: &str,
) -> Result<Tenant, Box<dyn StdError>> {
    let by = Actor::new("quickstart", "first steps");

    // A data source: one database on one server. Its credential is sealed for it and for one role; nothing else opens it.
    let server = Server::new(Endpoint::new("db.example", 5432), name);
    let source = control
        .create_source(&by, NewSource::new(name, Location::Server(server)))
        .await?;
    let credential = Credential::new(&format!("{name}_app"), "correct horse battery staple".into())?;
    let sealed = keyring.seal_credential(source.id, Role::App, &credential)?;
    control
        .set_credential(&by, source.id, Role::App, CredentialSlot::Current, None, sealed)
        .await?;

    // A tenant on it, with a slug and a custom domain, opened for service.
    let mut tenant = NewTenant::new(Slug::parse(name)?, source.id);
    tenant.domains = vec![Domain::parse(&format!("notes.{name}.example"))?];
    let tenant = control.create(&by, tenant).await?;
    Ok(control
        .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
        .await?)
}

async fn one_route_for_all_names(
    biplane: &Biplane<MemoryDb<Notes>>,
    acme: &Tenant,
) -> Result<(), Box<dyn StdError>> {
    let by_slug = biplane.route(&Slug::parse("ACME")?).await?;
    let by_domain = biplane.route(&Domain::parse("Notes.Acme.Example:443")?).await?;
    let by_id = biplane.route(acme.id).await?;
    assert!(
        [&by_slug, &by_domain, &by_id]
            .iter()
            .all(|db| db.tenant() == acme.id)
    );
    println!("slug, domain and id lead to tenant {}", acme.id);
    Ok(())
}

async fn nobody_sees_anothers_rows(
    biplane: &Biplane<MemoryDb<Notes>>,
    acme: &Tenant,
    globex: &Tenant,
) -> Result<(), Box<dyn StdError>> {
    let ours = biplane.route(&acme.slug).await?;
    let theirs = biplane.route(&globex.slug).await?;
    ours.write(|notes| notes.0.insert(1, "buy anvils".into())).await?;
    assert_eq!(ours.read(|notes| notes.0.len()).await?, 1);
    assert_eq!(theirs.read(|notes| notes.0.len()).await?, 0);
    println!("a note of acme is seen by acme, and not by globex");
    Ok(())
}

async fn unknown_and_suspended_are_refused(
    biplane: &Biplane<MemoryDb<Notes>>,
    control: &MemoryControl,
    initech: &Tenant,
) -> Result<(), Box<dyn StdError>> {
    let unknown = biplane
        .route(&Slug::parse("hooli")?)
        .await
        .expect_err("nobody created it");
    assert_eq!(unknown.kind(), ErrorKind::UnknownTenant);
    println!("hooli: {unknown}");

    // A handle that was given out before the suspension notices it at its next use.
    let held = biplane.route(&initech.slug).await?;
    held.read(|_| ()).await?;
    let by = Actor::new("quickstart", "unpaid bill");
    control
        .set_status(&by, initech.id, initech.version, TenantStatus::Suspended)
        .await?;
    biplane.invalidate(initech.id).await;
    let suspended = held.read(|_| ()).await.expect_err("the tenant is suspended");
    assert_eq!(
        suspended.kind(),
        ErrorKind::Inactive {
            status: TenantStatus::Suspended
        }
    );
    println!("initech, through a handle from before: {suspended}");
    Ok(())
}

async fn credentials_are_sealed(
    control: &MemoryControl,
    keyring: &Keyring,
    acme: &Tenant,
    globex: &Tenant,
) -> Result<(), Box<dyn StdError>> {
    let ours = source_of(control, acme).await?;
    let theirs = source_of(control, globex).await?;
    let sealed = &ours.credentials[&Role::App].current.sealed;
    assert!(!sealed.as_str().contains("horse"));
    assert_eq!(
        keyring.login(&ours, Role::App).await?.credential.username(),
        "acme_app"
    );

    // The same value in another data source's record: a swapped row, and it does not open.
    let mut swapped = theirs;
    swapped.credentials.clone_from(&ours.credentials);
    let refused = keyring
        .login(&swapped, Role::App)
        .await
        .expect_err("sealed for another");
    assert!(matches!(refused.kind(), ErrorKind::CredentialUnreadable { .. }));
    println!("acme's credential opens for acme's database; moved to globex': {refused}");
    Ok(())
}

async fn source_of(control: &MemoryControl, tenant: &Tenant) -> Result<DataSource, Box<dyn StdError>> {
    let found = control.find(&[TenantRef::Id(tenant.id)]).await?.remove(0)?;
    Ok(DataSource::clone(
        &found.ok_or("the tenant was created above")?.record.source,
    ))
}

fn a_warm_lookup_is_fast(biplane: &Biplane<MemoryDb<Notes>>, acme: &Tenant) {
    const LOOKUPS: u32 = 1_000_000;
    let started = Instant::now();
    for _ in 0..LOOKUPS {
        assert!(black_box(biplane.cached(black_box(&acme.slug))).is_some());
    }
    let each = started.elapsed() / LOOKUPS;
    let build = if cfg!(debug_assertions) {
        "debug build; try --release"
    } else {
        "release build"
    };
    println!("a warm lookup takes {} ns ({build})", each.as_nanos());
}
