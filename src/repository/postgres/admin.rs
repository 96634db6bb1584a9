//! Writing tenants and data sources.

use std::{num::NonZeroU32, time::Duration};

use async_trait::async_trait;
use serde_json::Value;
use sqlx::{FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    failure::{failed, not_read, rows_hidden},
    tenants::{moment, read_source, read_tenant},
};
use crate::{
    error::{Error, ErrorKind},
    plane::{ControlDb, ControlPlane, IsolationLevel, Tx, TxOptions},
    repository::{
        Actor, AuditEntry, CredentialSlot, NewSource, NewTenant, SourceChange, Subject, TenantAdmin,
        facts::source_facts,
        rules::{self, Edit},
    },
    tenant::{
        CredentialVersion, DataSource, DataSourceId, Domain, Isolation, Placement, Role, SealedText, Slug,
        Tenant, TenantId, TenantStatus, Version,
    },
};

/// And whether row-level security would make records look as if they did not exist.
const WHO: &str = concat!(
    "select set_config('biplane.actor', $1, true), set_config('biplane.reason', $2, true), ",
    include_str!("sql/hidden.sql"),
    "as hidden"
);
const HIDDEN: &str = concat!("select ", include_str!("sql/hidden.sql"));
const SOURCE: &str = concat!(include_str!("sql/source.sql"), "where source.name = $1");
const SOURCE_BY_ID: &str = concat!(include_str!("sql/source.sql"), "where source.id = $1");
const INSERT_SOURCE: &str = "
    insert into biplane_control.data_source (id, name, location, cluster, region, endpoints, database, tls_mode,
        tls_ca_pem, tls_ca_file, pooler, max_prepared_statements, pool_min, pool_max, database_id)
    select $1, name, location, cluster, region, endpoints, database, tls_mode,
        tls_ca_pem, tls_ca_file, pooler, max_prepared_statements, pool_min, pool_max, database_id
    from jsonb_populate_record(null::biplane_control.data_source, $2)";
const UPDATE_SOURCE: &str = "
    update biplane_control.data_source as source
    set location = facts.location, cluster = facts.cluster, region = facts.region, endpoints = facts.endpoints,
        database = facts.database, tls_mode = facts.tls_mode, tls_ca_pem = facts.tls_ca_pem,
        tls_ca_file = facts.tls_ca_file, pooler = facts.pooler,
        max_prepared_statements = facts.max_prepared_statements,
        pool_min = facts.pool_min, pool_max = facts.pool_max, database_id = facts.database_id
    from jsonb_populate_record(null::biplane_control.data_source, $2) as facts
    where source.id = $1
    returning source.version";
/// `excluded` has the version that the trigger counted out.
const SET_CREDENTIAL: &str = "
    insert into biplane_control.credential (data_source_id, role, slot, sealed) values ($1, $2, $3, $4)
    on conflict (data_source_id, role, slot)
    do update set sealed = excluded.sealed, version = excluded.version
    returning version";
const PROMOTE: &str = "select biplane_control.promote_credential($1, $2, $3, $4)";
const DISCARD: &str = "
    update biplane_control.credential
    set sealed = null
    where data_source_id = $1 and role = $2 and slot = 'next' and version = $3 and sealed is not null";
const INSERT_TENANT: &str = "
    insert into biplane_control.tenant (id, slug, domains, data_source_id, isolation, settings)
    values ($1, $2, $3, $4, $5, $6)
    returning to_jsonb(tenant)::text";
const UPDATE_TENANT: &str = "
    update biplane_control.tenant
    set slug = $2, domains = $3, data_source_id = $4, isolation = $5, settings = $6, status = $7, epoch = $8
    where id = $1
    returning to_jsonb(tenant)::text";
const AUDIT: &str = "
    select (extract(epoch from at) * 1000000)::bigint as at, actor, reason, tenant_id, data_source_id, changed
    from biplane_control.audit
    where tenant_id = $1 or $1 is null
    order by id desc
    limit $2";

/// Writes the schema [`biplane_control`](super::ControlSchema), with the grants of an admin.
///
/// The rules are checked here first, for errors that say which one was broken, and again by the constraints and triggers
/// of the schema, which nobody can go around. Changes of one tenant or data source wait for each other; at their commit
/// all changes wait for each other for a moment, which is what makes the change log complete.
#[derive(Clone, Debug)]
pub struct PgTenantAdmin {
    pub(super) control: ControlDb,
}

impl PgTenantAdmin {
    /// Writes through this handle. Nothing connects before the first call.
    #[must_use]
    pub const fn new(control: ControlDb) -> Self {
        Self { control }
    }

    /// Removes the changes that are older than `keep` from the change log and says how many. Readers that had not yet
    /// seen them are told and look at every tenant again, so keep what the longest outage of a process may last.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable),
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege).
    ///
    /// # Cancel safety
    /// A cancelled call has removed all of them or none.
    pub async fn prune_changes(&self, keep: Duration) -> Result<u64, Error> {
        // Nothing is older than a thousand years, and Postgres has no room for every `Duration`.
        const LONGEST: Duration = Duration::from_secs(1_000 * 365 * 86_400);
        let removed: i64 =
            sqlx::query_scalar("select biplane_control.prune_changes(make_interval(secs => $1))")
                .bind(keep.min(LONGEST).as_secs_f64())
                .fetch_one(&self.control)
                .await
                .map_err(failed)?;
        Ok(removed.unsigned_abs())
    }

    /// A transaction that says who and why.
    pub(super) async fn begin(&self, by: &Actor) -> Result<Tx<ControlPlane>, Error> {
        let options = TxOptions::new().isolation(IsolationLevel::ReadCommitted);
        let mut tx = self.control.begin_with(options).await.map_err(failed)?;
        let said = sqlx::query(WHO)
            .bind(&*by.name)
            .bind(&*by.reason)
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        if said.try_get("hidden").map_err(failed)? {
            return Err(rows_hidden());
        }
        Ok(tx)
    }

    /// Changes how all routers take changes.
    async fn switch(&self, by: &Actor, sql: &'static str) -> Result<(), Error> {
        rules::actor(by)?;
        let mut tx = self.begin(by).await?;
        sqlx::query(sql).execute(&mut tx).await.map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn edit(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        edit: Edit<'_>,
    ) -> Result<Tenant, Error> {
        rules::actor(by)?;
        rules::edit(edit)?;
        let mut tx = self.begin(by).await?;
        let row: Option<String> = sqlx::query_scalar(
            "select to_jsonb(tenant)::text from biplane_control.tenant where id = $1 for no key update",
        )
        .bind(id.as_uuid())
        .fetch_optional(&mut tx)
        .await
        .map_err(failed)?;
        let before = read_tenant(&row.ok_or(ErrorKind::UnknownTenant)?)?;
        let after = rules::edited(&before, expected, edit)?;
        if after == before {
            return Ok(after);
        }
        let written = sqlx::query_scalar(UPDATE_TENANT)
            .bind(id.as_uuid())
            .bind(after.slug.as_str())
            .bind(texts(&after.domains))
            .bind(after.placement.source.as_uuid())
            .bind(after.placement.isolation.as_str())
            .bind(&after.settings)
            .bind(after.status.as_str())
            .bind(i64::try_from(after.placement.epoch.value()).unwrap_or(i64::MAX))
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        finish(tx, written, read_tenant).await
    }
}

#[async_trait]
impl TenantAdmin for PgTenantAdmin {
    async fn create_source(&self, by: &Actor, source: NewSource) -> Result<DataSource, Error> {
        rules::actor(by)?;
        rules::new_source(&source)?;
        let mut created = DataSource::new(source.id, source.name, source.location);
        created.pool = source.pool;
        created.database_id = source.database_id;
        let mut tx = self.begin(by).await?;
        sqlx::query(INSERT_SOURCE)
            .bind(created.id.as_uuid())
            .bind(Value::Object(source_facts(&created)))
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(created)
    }

    async fn source(&self, name: &str) -> Result<Option<DataSource>, Error> {
        if name.contains('\0') {
            return Ok(None);
        }
        let row: Option<String> = sqlx::query_scalar(SOURCE)
            .bind(name)
            .fetch_optional(&self.control)
            .await
            .map_err(not_read)?;
        match row {
            Some(row) => read_source(&row).map(Some),
            None if sqlx::query_scalar(HIDDEN)
                .fetch_one(&self.control)
                .await
                .map_err(not_read)? =>
            {
                Err(rows_hidden())
            }
            None => Ok(None),
        }
    }

    async fn update_source(
        &self,
        by: &Actor,
        id: DataSourceId,
        expected: Version,
        change: SourceChange,
    ) -> Result<DataSource, Error> {
        rules::actor(by)?;
        rules::source_change(&change)?;
        let mut tx = self.begin(by).await?;
        let before = lock_source(&mut tx, id).await?;
        if before.version != expected {
            return Err(ErrorKind::VersionConflict.into());
        }
        let mut after = change.applied_to(&before);
        if after == before {
            return Ok(after);
        }
        let version: i64 = sqlx::query_scalar(UPDATE_SOURCE)
            .bind(id.as_uuid())
            .bind(Value::Object(source_facts(&after)))
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        after.version = Version::new(version.unsigned_abs());
        Ok(after)
    }

    async fn set_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        slot: CredentialSlot,
        expected: Option<CredentialVersion>,
        sealed: SealedText,
    ) -> Result<CredentialVersion, Error> {
        rules::actor(by)?;
        rules::sealed(&sealed)?;
        let mut tx = self.begin(by).await?;
        let known = lock_source(&mut tx, source).await?;
        let stored = slot.of(known.credentials.get(&role));
        if stored.map(|stored| stored.version) != expected {
            return Err(ErrorKind::VersionConflict.into());
        }
        let version: i64 = sqlx::query_scalar(SET_CREDENTIAL)
            .bind(source.as_uuid())
            .bind(role.as_str())
            .bind(slot.as_str())
            .bind(sealed.as_str())
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(CredentialVersion::new(version.unsigned_abs()))
    }

    async fn promote_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        current: CredentialVersion,
        next: CredentialVersion,
    ) -> Result<CredentialVersion, Error> {
        rules::actor(by)?;
        let mut tx = self.begin(by).await?;
        lock_source(&mut tx, source).await?;
        let promoted: Option<i64> = sqlx::query_scalar(PROMOTE)
            .bind(source.as_uuid())
            .bind(role.as_str())
            .bind(stored_version(current))
            .bind(stored_version(next))
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        let promoted = promoted.ok_or(ErrorKind::VersionConflict)?;
        tx.commit().await.map_err(failed)?;
        Ok(CredentialVersion::new(promoted.unsigned_abs()))
    }

    async fn discard_credential(
        &self,
        by: &Actor,
        source: DataSourceId,
        role: Role,
        next: CredentialVersion,
    ) -> Result<(), Error> {
        rules::actor(by)?;
        let mut tx = self.begin(by).await?;
        lock_source(&mut tx, source).await?;
        let discarded = sqlx::query(DISCARD)
            .bind(source.as_uuid())
            .bind(role.as_str())
            .bind(stored_version(next))
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        if discarded.rows_affected() == 0 {
            return Err(ErrorKind::VersionConflict.into());
        }
        tx.commit().await.map_err(failed)
    }

    async fn create(&self, by: &Actor, tenant: NewTenant) -> Result<Tenant, Error> {
        rules::actor(by)?;
        rules::new_tenant(&tenant)?;
        let placement = Placement::new(tenant.source, tenant.isolation);
        let mut tx = self.begin(by).await?;
        let written = sqlx::query_scalar(INSERT_TENANT)
            .bind(tenant.id.as_uuid())
            .bind(tenant.slug.as_str())
            .bind(texts(&tenant.domains))
            .bind(placement.source.as_uuid())
            .bind(placement.isolation.as_str())
            .bind(&tenant.settings)
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        finish(tx, written, read_tenant).await
    }

    async fn rename(&self, by: &Actor, id: TenantId, expected: Version, slug: Slug) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Rename(slug)).await
    }

    async fn set_status(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        status: TenantStatus,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Status(status)).await
    }

    async fn place(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        source: DataSourceId,
        isolation: Isolation,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Place(source, isolation)).await
    }

    async fn set_settings(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        settings: Value,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Settings(&settings)).await
    }

    async fn add_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: Domain,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::AddDomain(&domain)).await
    }

    async fn remove_domain(
        &self,
        by: &Actor,
        id: TenantId,
        expected: Version,
        domain: &Domain,
    ) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::RemoveDomain(domain)).await
    }

    async fn delete(&self, by: &Actor, id: TenantId, expected: Version) -> Result<Tenant, Error> {
        self.edit(by, id, expected, Edit::Status(TenantStatus::Deleted))
            .await
    }

    async fn release_brake(&self, by: &Actor) -> Result<(), Error> {
        self.switch(by, "select biplane_control.release_brake()").await
    }

    async fn freeze(&self, by: &Actor) -> Result<(), Error> {
        self.switch(by, "select biplane_control.freeze()").await
    }

    async fn thaw(&self, by: &Actor) -> Result<(), Error> {
        self.switch(by, "select biplane_control.thaw()").await
    }

    async fn audit(&self, tenant: Option<TenantId>, limit: NonZeroU32) -> Result<Vec<AuditEntry>, Error> {
        let rows: Vec<AuditRow> = sqlx::query_as(AUDIT)
            .bind(tenant.map(|id| *id.as_uuid()))
            .bind(i64::from(limit.get()))
            .fetch_all(&self.control)
            .await
            .map_err(not_read)?;
        rows.into_iter().map(AuditRow::entry).collect()
    }
}

struct AuditRow {
    at: i64,
    actor: String,
    reason: String,
    tenant_id: Option<Uuid>,
    data_source_id: Option<Uuid>,
    changed: Value,
}

impl FromRow<'_, PgRow> for AuditRow {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            at: row.try_get("at")?,
            actor: row.try_get("actor")?,
            reason: row.try_get("reason")?,
            tenant_id: row.try_get("tenant_id")?,
            data_source_id: row.try_get("data_source_id")?,
            changed: row.try_get("changed")?,
        })
    }
}

impl AuditRow {
    fn entry(self) -> Result<AuditEntry, Error> {
        let subject = match (self.tenant_id, self.data_source_id) {
            (Some(tenant), _) => Subject::Tenant(TenantId::from_uuid(tenant)),
            (None, Some(source)) => Subject::Source(DataSourceId::from_uuid(source)),
            (None, None) => Subject::Routing,
        };
        let by = Actor::new(self.actor, self.reason);
        Ok(AuditEntry::new(moment(self.at), by, subject, self.changed))
    }
}

/// Keeps others from changing a data source and its credentials until the transaction ends, and reads them. Two
/// statements, because one that waited for the lock would still see the credentials of before it waited.
async fn lock_source(tx: &mut Tx<ControlPlane>, id: DataSourceId) -> Result<DataSource, Error> {
    sqlx::query("select from biplane_control.data_source where id = $1 for no key update")
        .bind(id.as_uuid())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?
        .ok_or(ErrorKind::UnknownDataSource)?;
    let row: String = sqlx::query_scalar(SOURCE_BY_ID)
        .bind(id.as_uuid())
        .fetch_one(tx)
        .await
        .map_err(failed)?;
    read_source(&row)
}

/// Reads what was written and commits it.
async fn finish<T>(
    tx: Tx<ControlPlane>,
    written: String,
    read: impl FnOnce(&str) -> Result<T, Error>,
) -> Result<T, Error> {
    let written = read(&written)?;
    tx.commit().await.map_err(failed)?;
    Ok(written)
}

/// A version that Postgres has no room for is one that nothing there has.
fn stored_version(version: CredentialVersion) -> i64 {
    i64::try_from(version.value()).unwrap_or(i64::MAX)
}

fn texts(domains: &[Domain]) -> Vec<String> {
    domains.iter().map(|domain| domain.as_str().to_owned()).collect()
}
