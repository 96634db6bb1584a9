//! A control plane with a table of sealed settings beside it, and a data plane with a login for each tenant.

use std::time::Duration;

use biplane::{
    keyring::{Context, KeyMaterial, Keyring},
    plane::{ControlDb, ControlOptions, RoleName},
    repository::{
        Actor, ControlSchema, CredentialSlot, Grants, NewSource, NewTenant, PgTenantAdmin, PgTenants,
        TenantAdmin,
    },
    secret::Credential,
    tenant::{Location, Role, Slug, TenantStatus},
    testing::postgres::Cluster,
};
use secrecy::SecretString;
use uuid::Uuid;

use super::Result;

/// The service's own table, in the control plane's database.
pub(crate) const SETTINGS: &str = "setting";

/// What its values are sealed for: this purpose, the id of the row, and this field.
pub(crate) const PURPOSE: &str = "setting";
pub(crate) const FIELD: &str = "smtp.password";

const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

/// Several pages of the re-seal job.
const ROWS: usize = 1_200;

/// The server with both planes.
pub(crate) struct Planes {
    /// The owner of everything, as whom the operator works.
    pub(crate) operator: ControlDb,
    /// What services log in as: it reads the control plane, and reads and writes the settings.
    pub(crate) router: ControlDb,
    pub(crate) slugs: Vec<Slug>,
    /// A value as it was before the rotation.
    pub(crate) from_backup: Backup,
    _cluster: Cluster,
}

pub(crate) struct Backup {
    pub(crate) owner: Uuid,
    pub(crate) sealed: String,
}

impl Planes {
    pub(crate) async fn set_up(keyring: Keyring) -> Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.create_database("control").await?;
        let login = login("router")?;
        let password = login.password().cloned().unwrap_or_default();
        cluster.create_role("router", &password, &[]).await?;
        let operator = connect(&cluster, cluster.superuser())?;
        let grants = Grants::none().router(RoleName::parse("router")?);
        ControlSchema::install(&operator, &grants).await?;
        let router = connect(&cluster, login)?;

        let from_backup = fill_settings(&cluster, &operator, &keyring).await?;
        let slugs = create_tenants(&cluster, &PgTenantAdmin::new(operator.clone()), &keyring).await?;
        Ok(Self {
            operator,
            router,
            slugs,
            from_backup,
            _cluster: cluster,
        })
    }

    /// Who lives, and which keys they have.
    pub(crate) fn instances(&self) -> PgTenants {
        PgTenants::new(self.operator.clone())
    }

    pub(crate) fn admin(&self) -> PgTenantAdmin {
        PgTenantAdmin::new(self.operator.clone())
    }
}

fn connect(cluster: &Cluster, login: Credential) -> Result<ControlDb> {
    let options = ControlOptions::new(cluster.server("control"), login);
    Ok(ControlDb::connect(options)?)
}

/// A login with a password that nobody has to know.
fn login(user: &str) -> Result<Credential> {
    let password: SecretString = KeyMaterial::generate()?.to_hex();
    Ok(Credential::new(user, password)?)
}

async fn fill_settings(cluster: &Cluster, operator: &ControlDb, keyring: &Keyring) -> Result<Backup> {
    let table = format!(
        "create table {SETTINGS} (id uuid primary key, smtp_password text not null);
         grant select, update on {SETTINGS} to router"
    );
    cluster.sql("control", &table).await?;
    let mut rows = Vec::with_capacity(ROWS);
    for n in 0..ROWS {
        let id = Uuid::now_v7();
        let owner = id.to_string();
        let context = Context::new(PURPOSE, &owner, FIELD)?;
        let sealed = keyring.seal(&context, format!("password {n}").as_bytes())?;
        rows.push((id, sealed.to_text().as_str().to_owned()));
    }
    let (owner, sealed) = rows[0].clone();
    let (ids, values): (Vec<Uuid>, Vec<String>) = rows.into_iter().unzip();
    sqlx::query("insert into public.setting select * from unnest($1::uuid[], $2::text[])")
        .bind(ids)
        .bind(values)
        .execute(operator)
        .await?;
    Ok(Backup { owner, sealed })
}

async fn create_tenants(cluster: &Cluster, admin: &PgTenantAdmin, keyring: &Keyring) -> Result<Vec<Slug>> {
    let by = Actor::new("rotate_keys", "setting up");
    let mut slugs = Vec::new();
    for name in TENANTS {
        let login = login(name)?;
        let password = login.password().cloned().unwrap_or_default();
        cluster.create_role(name, &password, &[]).await?;
        cluster.create_database(name).await?;
        let place = Location::Server(cluster.server(name));
        let source = admin.create_source(&by, NewSource::new(name, place)).await?;
        let sealed = keyring.seal_credential(source.id, Role::App, &login)?;
        admin
            .set_credential(&by, source.id, Role::App, CredentialSlot::Current, None, sealed)
            .await?;
        let slug = Slug::parse(name)?;
        let tenant = admin.create(&by, NewTenant::new(slug, source.id)).await?;
        admin
            .set_status(&by, tenant.id, tenant.version, TenantStatus::Active)
            .await?;
        slugs.push(slug);
    }
    Ok(slugs)
}

/// How long anything here may take before it counts as failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
