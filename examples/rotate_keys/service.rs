//! A service: what it needs for its keys to be rotated while it works is in [`Service::start`].

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use biplane::{
    Biplane,
    keyring::{Context, KeySource, LiveKeyring},
    plane::ControlDb,
    presence::Heartbeat,
    repository::PgTenants,
    tenant::Slug,
};
use secrecy::ExposeSecret;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    Result,
    setup::{DEADLINE, FIELD, PURPOSE, Planes},
};

pub(crate) struct Service {
    name: &'static str,
    /// The keyring file of this host.
    file: PathBuf,
    keys: LiveKeyring,
    heartbeat: Heartbeat,
    serving: JoinHandle<Result>,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    over: AtomicBool,
    requests: AtomicU64,
    settings: AtomicU64,
}

/// What a service did.
pub(crate) struct Record {
    name: &'static str,
    requests: u64,
    written: u64,
}

impl Service {
    /// Begins to serve with a copy of the keyring file.
    pub(crate) async fn start(
        name: &'static str,
        directory: &Path,
        keyring: &Path,
        planes: &Planes,
    ) -> Result<Self> {
        let file = directory.join(format!("{name}.json"));
        std::fs::copy(keyring, &file)?;
        let keys = LiveKeyring::load(KeySource::file(&file)).await?;

        let tenants = PgTenants::new(planes.router.clone());
        let biplane = Biplane::postgres(tenants.clone(), keys.clone()).build()?;
        let heartbeat = Heartbeat::builder(tenants, name).keyring(keys.clone()).start()?;
        heartbeat.beat_now().await?;

        let served = Arc::new(Served::default());
        let requests = Requests {
            biplane,
            keys: keys.clone(),
            settings: planes.router.clone(),
            slugs: planes.slugs.clone(),
            served: Arc::clone(&served),
        };
        Ok(Self {
            name,
            file,
            keys,
            heartbeat,
            serving: tokio::spawn(requests.serve()),
            served,
        })
    }

    /// Brings a keyring file to this host. In earnest the service finds it by itself, by `LiveKeyring::keep_fresh`, and
    /// its heartbeat tells; here nobody waits for the next minute.
    pub(crate) async fn deliver(&self, keyring: &Path) -> Result {
        let before = self.served.requests.load(Ordering::Relaxed);
        std::fs::copy(keyring, &self.file)?;
        self.keys.refresh().await?;
        self.heartbeat.beat_now().await?;
        // Requests are served with the new keys before the rotation goes on.
        biplane::testing::wait::until("some requests are served", DEADLINE, async || {
            self.serving.is_finished() || self.served.requests.load(Ordering::Relaxed) > before + 10
        })
        .await?;
        Ok(())
    }

    /// Stops it, and fails if any request has failed.
    pub(crate) async fn stop(self) -> Result<Record> {
        self.served.over.store(true, Ordering::Relaxed);
        self.serving.await??;
        self.heartbeat.close(DEADLINE).await?;
        Ok(Record {
            name: self.name,
            requests: self.served.requests.load(Ordering::Relaxed),
            written: self.served.settings.load(Ordering::Relaxed),
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            requests,
            written,
        } = self;
        write!(
            f,
            "{name}: {requests} requests, {written} settings written, none failed"
        )
    }
}

/// The requests of a service, one after the other.
struct Requests {
    biplane: Biplane,
    keys: LiveKeyring,
    settings: ControlDb,
    slugs: Vec<Slug>,
    served: Arc<Served>,
}

impl Requests {
    async fn serve(self) -> Result {
        for slug in self.slugs.iter().cycle() {
            if self.served.over.load(Ordering::Relaxed) {
                break;
            }
            let db = self.biplane.route(slug).await?;
            let _: i32 = sqlx::query_scalar("select 1").fetch_one(&db).await?;
            self.change_a_setting().await?;
            self.served.requests.fetch_add(1, Ordering::Relaxed);
        }
        self.biplane.close(DEADLINE).await;
        Ok(())
    }

    /// Opens a value, and stores it sealed again, as a user does who changes a setting.
    async fn change_a_setting(&self) -> Result {
        let mut tx = self.settings.begin().await?;
        let row: Option<(Uuid, String)> = sqlx::query_as(
            "select id, smtp_password from public.setting order by random() limit 1 for update skip locked",
        )
        .fetch_optional(&mut tx)
        .await?;
        if let Some((id, sealed)) = row {
            // One snapshot of the keys for the whole of it.
            let keyring = self.keys.current();
            let owner = id.to_string();
            let context = Context::new(PURPOSE, &owner, FIELD)?;
            let password = keyring.open_text(&context, &sealed)?;
            let sealed = keyring.seal(&context, password.expose_secret())?.to_text();
            sqlx::query("update public.setting set smtp_password = $2 where id = $1")
                .bind(id)
                .bind(sealed.as_str())
                .execute(&mut tx)
                .await?;
            self.served.settings.fetch_add(1, Ordering::Relaxed);
        }
        tx.commit().await?;
        Ok(())
    }
}
