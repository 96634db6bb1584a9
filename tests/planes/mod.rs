//! Both planes on a real server: a control plane, and a database for each tenant.
#![allow(
    dead_code,
    reason = "each test binary uses a part, and what is unused in one is used in another"
)]

use std::{
    error::Error as StdError,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use biplane::{
    Biplane,
    connector::postgres::PgConnectorOptions,
    error::{Error, ErrorKind},
    keyring::{KeyMaterial, KeyState, Keyring},
    plane::{DataSchema, RoleName},
    repository::{
        Actor, CredentialSlot, Found, MemoryControl, NewSource, NewTenant, Page, TenantAdmin,
        TenantRepository,
    },
    router::{Builder, CacheOptions},
    secret::Credential,
    tenant::{
        DataSource, DataSourceId, DatabaseId, Location, Role, Slug, Tenant, TenantId, TenantRef, TenantStatus,
    },
};
use secrecy::SecretString;

use crate::control::{Postgres, cluster, damage, owner, postgres, run};

/// In every password of these tests, and in no error.
pub(crate) const CANARY: &str = "canary";

/// A control plane of either make, over tenants' databases on the cluster of this binary.
#[derive(Debug)]
pub(crate) struct Planes {
    pub(crate) admin: Arc<dyn TenantAdmin>,
    pub(crate) tenants: Shared,
    pub(crate) keyring: Keyring,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Postgres(Postgres),
    Memory(MemoryControl),
}

/// A tenant with a database of its own.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) tenant: Tenant,
    pub(crate) source: DataSourceId,
    pub(crate) database: String,
    pub(crate) database_id: DatabaseId,
    pub(crate) login: Credential,
}

pub(crate) fn keyring() -> Keyring {
    let key = KeyMaterial::generate().unwrap();
    Keyring::builder().key(key, KeyState::Primary).build().unwrap()
}

pub(crate) fn by() -> Actor {
    Actor::new("test", "a test asked for it")
}

pub(crate) fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Planes {
    /// A control plane whose readers have the grants of a router, and whose writers have those of an admin.
    pub(crate) async fn postgres() -> Self {
        let control = postgres().await;
        Self {
            admin: Arc::new(control.pg_admin()),
            tenants: Shared(Arc::new(control.pg_tenants())),
            keyring: keyring(),
            backend: Backend::Postgres(control),
        }
    }

    pub(crate) async fn memory() -> Self {
        let control = MemoryControl::new();
        Self {
            admin: Arc::new(control.clone()),
            tenants: Shared(Arc::new(control.clone())),
            keyring: keyring(),
            backend: Backend::Memory(control),
        }
    }

    pub(crate) fn builder(&self) -> Builder<PgConnectorOptions> {
        self.builder_with(self.keyring.clone())
    }

    pub(crate) fn builder_with(&self, keyring: Keyring) -> Builder<PgConnectorOptions> {
        // A busy machine may keep an answer waiting for longer than a service would.
        let patient = CacheOptions::default().load_timeout(Duration::from_secs(60));
        Biplane::postgres(self.tenants.clone(), keyring).cache(patient)
    }

    pub(crate) fn biplane(&self) -> Biplane {
        self.builder().build().unwrap()
    }

    /// A tenant that is open, in a new database with a table `note` and a login of its own.
    pub(crate) async fn add(&self, name: &str) -> Home {
        let home = self.add_without_login(name).await;
        self.seal(&home, Role::App, &home.login).await;
        home
    }

    pub(crate) async fn add_without_login(&self, name: &str) -> Home {
        let (database, user) = (format!("data_{}", next()), format!("user_{}", next()));
        let cluster = cluster().await;
        cluster.create_database(&database).await.unwrap();
        let password = SecretString::from(format!("{CANARY}-password-of-{name}"));
        let login = cluster.create_role(&user, &password, &[]).await.unwrap();
        let database_id = DatabaseId::new();
        let mut owner = owner(&database).await;
        let grants = format!(
            "create table note (id bigint generated always as identity primary key, text text not null);
             grant select, insert on note to {user}"
        );
        run(&mut owner, grants).await.unwrap();
        DataSchema::install(&mut owner, database_id, &[RoleName::parse(&user).unwrap()])
            .await
            .unwrap();

        let mut source = NewSource::new(name, Location::Server(cluster.server(&database)));
        source.database_id = Some(database_id);
        let (tenant, source) = self.place(name, source).await;
        let residence = format!(
            "insert into biplane.residence (tenant_id, epoch, state, isolation, database_id)
             values ('{}', {}, 'open', 'database', '{database_id}')",
            tenant.id, tenant.placement.epoch
        );
        run(&mut owner, residence).await.unwrap();
        Home {
            tenant,
            source,
            database,
            database_id,
            login,
        }
    }

    /// A tenant that is open, on this data source.
    pub(crate) async fn place(&self, name: &str, source: NewSource) -> (Tenant, DataSourceId) {
        let source = self.admin.create_source(&by(), source).await.unwrap().id;
        let tenant = NewTenant::new(slug(name), source);
        let tenant = self.admin.create(&by(), tenant).await.unwrap();
        let open = TenantStatus::Active;
        let tenant = self
            .admin
            .set_status(&by(), tenant.id, tenant.version, open)
            .await;
        (tenant.unwrap(), source)
    }

    /// Stores a login as the current one of a role.
    pub(crate) async fn seal(&self, home: &Home, role: Role, login: &Credential) {
        let sealed = self.keyring.seal_credential(home.source, role, login).unwrap();
        self.admin
            .set_credential(&by(), home.source, role, CredentialSlot::Current, None, sealed)
            .await
            .unwrap();
    }

    pub(crate) async fn source(&self, home: &Home) -> DataSource {
        let found = self.admin.source(home.tenant.slug.as_str()).await.unwrap();
        found.unwrap()
    }

    /// Makes the record of a tenant impossible to understand.
    pub(crate) async fn spoil(&self, home: &Home) {
        match &self.backend {
            Backend::Memory(control) => control.corrupt(home.tenant.id).unwrap(),
            Backend::Postgres(control) => {
                let change = format!(
                    "update biplane_control.tenant set status = '{CANARY}' where id = '{}'",
                    home.tenant.id
                );
                damage(
                    &mut owner(&control.database).await,
                    "tenant",
                    "tenant_status",
                    &change,
                )
                .await;
            }
        }
    }

    /// The control plane in memory.
    pub(crate) fn memory_control(&self) -> &MemoryControl {
        match &self.backend {
            Backend::Memory(control) => control,
            Backend::Postgres(_) => panic!("this control plane is on Postgres"),
        }
    }

    /// The control plane on Postgres.
    pub(crate) fn control(&self) -> &Postgres {
        match &self.backend {
            Backend::Postgres(control) => control,
            Backend::Memory(_) => panic!("this control plane is in memory"),
        }
    }
}

/// A repository whose type is not known.
#[derive(Clone, Debug)]
pub(crate) struct Shared(pub(crate) Arc<dyn TenantRepository>);

#[async_trait]
impl TenantRepository for Shared {
    async fn find(&self, names: &[TenantRef<'_>]) -> Result<Vec<Found>, Error> {
        self.0.find(names).await
    }

    async fn list(&self, after: Option<TenantId>, limit: NonZeroU32) -> Result<Page, Error> {
        self.0.list(after, limit).await
    }

    async fn find_source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        self.0.find_source(name).await
    }
}

/// Holds an error to its kind, to a text that says what to do, and to silence about secrets.
#[track_caller]
pub(crate) fn judge(error: &Error, kind: ErrorKind, advice: &str) {
    says_nothing_secret(error);
    let said = chain(error);
    assert_eq!(error.kind(), kind, "{said}");
    assert!(
        said.contains(advice),
        "expected advice like {advice:?} in: {said}"
    );
}

/// The same for an error that an executor returned.
#[track_caller]
pub(crate) fn judge_sqlx<T: std::fmt::Debug>(outcome: sqlx::Result<T>, kind: ErrorKind, advice: &str) {
    let error = outcome.unwrap_err();
    says_nothing_secret(&error);
    let Some(ours) = Error::of(&error) else {
        panic!("not an error of ours: {error:?}");
    };
    judge(ours, kind, advice);
    // What a caller does who returns our type from a function that uses sqlx.
    assert_eq!(Error::from(error).kind(), kind);
}

/// Looks through everything that an error prints, itself and its causes.
#[track_caller]
pub(crate) fn says_nothing_secret(error: &(dyn StdError + 'static)) {
    let mut next = Some(error);
    while let Some(error) = next {
        for said in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
            for secret in [
                CANARY,
                "a-password",
                "://",
                "bp1.",
                "select ",
                "insert ",
                "update ",
            ] {
                assert!(!said.contains(secret), "{secret:?} is in: {said}");
            }
        }
        next = error.source();
    }
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        said = format!("{said}: {error}");
        next = error.source();
    }
    said
}
