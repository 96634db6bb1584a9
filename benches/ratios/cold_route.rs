//! What sealed credentials cost a cold route: a process that has nothing asks for a tenant, gets its record, opens the
//! login, connects, and reads a first row.

use std::time::{Duration, Instant};

use biplane::{
    Biplane,
    keyring::{KeyMaterial, KeyState, Keyring},
    repository::{
        Actor, CredentialSlot, CredentialSource, MemoryControl, MemoryCredentials, NewSource, NewTenant,
        TenantAdmin,
    },
    tenant::{Location, Role, Slug, TenantStatus},
    testing::postgres::Cluster,
};
use tokio::runtime::Runtime;

use crate::measure::{Claim, Goal, on_one_thread, ratio};

pub(crate) const CLAIMS: &[fn() -> Claim] = &[sealed_against_plain];

fn sealed_against_plain() -> Claim {
    Claim::new("cold_route_sealed/plain", Goal::RatioAtMost(1.05), || {
        let runtime = on_one_thread();
        let bench = runtime.block_on(Bench::start()).expect("a server starts");
        ratio(
            || bench.cold(&runtime, bench.keyring.clone()),
            || bench.cold(&runtime, bench.plain.clone()),
        )
    })
}

struct Bench {
    control: MemoryControl,
    keyring: Keyring,
    plain: MemoryCredentials,
    slug: Slug,
    _cluster: Cluster,
}

impl Bench {
    async fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let cluster = Cluster::start().await?;
        let keyring = Keyring::builder()
            .key(KeyMaterial::generate()?, KeyState::Primary)
            .build()?;
        let (control, plain) = (MemoryControl::new(), MemoryCredentials::new());
        let by = Actor::new("bench", "measuring");
        let new = NewSource::new("acme", Location::Server(cluster.server("postgres")));
        let source = control.create_source(&by, new).await?;
        let login = cluster.superuser();
        let sealed = keyring.seal_credential(source.id, Role::App, &login)?;
        let slot = CredentialSlot::Current;
        control
            .set_credential(&by, source.id, Role::App, slot, None, sealed)
            .await?;
        plain.set(source.id, Role::App, login);
        let slug = Slug::parse("acme")?;
        let tenant = control.create(&by, NewTenant::new(slug, source.id)).await?;
        control
            .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
            .await?;
        Ok(Self {
            control,
            keyring,
            plain,
            slug,
            _cluster: cluster,
        })
    }

    fn cold(&self, runtime: &Runtime, credentials: impl CredentialSource) -> Duration {
        runtime.block_on(async {
            let biplane = Biplane::postgres(self.control.clone(), credentials)
                .build()
                .expect("the settings are valid");
            let begun = Instant::now();
            let db = biplane.route(&self.slug).await.expect("the tenant is there");
            let one: i32 = sqlx::query_scalar("select 1")
                .fetch_one(&db)
                .await
                .expect("the server is there");
            let took = begun.elapsed();
            assert_eq!(one, 1);
            biplane.close(Duration::from_secs(10)).await;
            took
        })
    }
}
