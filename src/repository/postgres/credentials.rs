//! Reading sealed credentials, and replacing those that were sealed anew.

use std::num::NonZeroU32;

use async_trait::async_trait;
use sqlx::{FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    PgTenantAdmin,
    failure::{failed, not_read, rows_hidden},
};
use crate::{
    error::{Error, ErrorKind},
    repository::{
        Actor, CredentialPlace, CredentialSlot, CredentialStore, Reseal, ResealOutcome, SealedCredential,
        rules,
    },
    tenant::{CredentialVersion, DataSourceId, SealedText},
};

const PAGE: &str = "
    select pg_catalog.row_security_active('biplane_control.data_source'::regclass)
            or pg_catalog.row_security_active('biplane_control.credential'::regclass) as hidden,
        page.data_source_id, page.role, page.slot, page.version, page.sealed, page.name
    from (select 1) as always
    left join (
        select held.data_source_id, held.role, held.slot, held.version, held.sealed, source.name
        from biplane_control.credential as held
        join biplane_control.data_source as source on source.id = held.data_source_id
        where held.sealed is not null
            and (held.data_source_id, held.role, held.slot)
                > (coalesce($1, '00000000-0000-0000-0000-000000000000'::uuid), $2, $3)
        order by held.data_source_id, held.role, held.slot
        limit $4
    ) as page on true
    order by page.data_source_id, page.role, page.slot";

#[async_trait]
impl CredentialStore for PgTenantAdmin {
    async fn sealed_credentials(
        &self,
        after: Option<CredentialPlace>,
        limit: NonZeroU32,
    ) -> Result<Vec<SealedCredential>, Error> {
        let rows: Vec<Row> = sqlx::query_as(PAGE)
            .bind(after.map(|place| *place.source.as_uuid()))
            .bind(after.map_or("", |place| place.role.as_str()))
            .bind(after.map_or("", |place| place.slot.as_str()))
            .bind(i64::from(limit.get()))
            .fetch_all(&self.control)
            .await
            .map_err(not_read)?;
        if rows.iter().any(|row| row.hidden) {
            return Err(rows_hidden());
        }
        rows.into_iter().filter_map(Row::credential).collect()
    }

    async fn reseal_credentials(&self, by: &Actor, batch: &[Reseal]) -> Result<Vec<ResealOutcome>, Error> {
        rules::actor(by)?;
        rules::reseal(batch)?;
        let column = |of: fn(&Reseal) -> &str| batch.iter().map(of).collect::<Vec<_>>();
        let sources: Vec<Uuid> = batch.iter().map(|one| *one.place.source.as_uuid()).collect();
        let mut tx = self.begin(by).await?;
        let replaced: Vec<bool> =
            sqlx::query_scalar("select biplane_control.reseal_credentials($1, $2, $3, $4, $5)")
                .bind(sources)
                .bind(column(|one| one.place.role.as_str()))
                .bind(column(|one| one.place.slot.as_str()))
                .bind(column(|one| one.before.as_str()))
                .bind(column(|one| one.after.as_str()))
                .fetch_one(&mut tx)
                .await
                .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(replaced
            .into_iter()
            .map(|replaced| match replaced {
                true => ResealOutcome::Replaced,
                false => ResealOutcome::Changed,
            })
            .collect())
    }

    async fn record_opening(&self, by: &Actor, place: CredentialPlace) -> Result<SealedCredential, Error> {
        rules::actor(by)?;
        let mut tx = self.begin(by).await?;
        let told = sqlx::query("select * from biplane_control.record_opening($1, $2, $3)")
            .bind(place.source.as_uuid())
            .bind(place.role.as_str())
            .bind(place.slot.as_str())
            .fetch_one(&mut tx)
            .await
            .map_err(failed)?;
        let name: Option<String> = told.try_get("data_source").map_err(failed)?;
        let version: Option<i64> = told.try_get("version").map_err(failed)?;
        let sealed: Option<String> = told.try_get("sealed").map_err(failed)?;
        let name = name.ok_or(ErrorKind::UnknownDataSource)?;
        let (Some(version), Some(sealed)) = (version, sealed) else {
            return Err(rules::empty_slot(&name, place));
        };
        // Before anybody has it.
        if !cfg!(biplane_mutant = "openings_leave_no_trace") {
            tx.commit().await.map_err(failed)?;
        }
        let version = CredentialVersion::new(version.unsigned_abs());
        Ok(SealedCredential::new(
            place,
            name,
            version,
            SealedText::new(sealed),
        ))
    }
}

struct Row {
    hidden: bool,
    data_source_id: Option<Uuid>,
    role: Option<String>,
    slot: Option<String>,
    version: Option<i64>,
    sealed: Option<String>,
    name: Option<String>,
}

impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            hidden: row.try_get("hidden")?,
            data_source_id: row.try_get("data_source_id")?,
            role: row.try_get("role")?,
            slot: row.try_get("slot")?,
            version: row.try_get("version")?,
            sealed: row.try_get("sealed")?,
            name: row.try_get("name")?,
        })
    }
}

impl Row {
    /// `None` when there is nothing on the page.
    fn credential(self) -> Option<Result<SealedCredential, Error>> {
        let source = DataSourceId::from_uuid(self.data_source_id?);
        let malformed = |column: &'static str| {
            let name = self.name.as_deref().unwrap_or_default();
            Error::new(ErrorKind::MalformedRecord)
                .detail(format!("column {column} of a credential of data source {name}"))
        };
        let Ok(role) = self.role.as_deref().unwrap_or_default().parse() else {
            return Some(Err(malformed("role")));
        };
        let slot = match self.slot.as_deref() {
            Some("current") => CredentialSlot::Current,
            Some("next") => CredentialSlot::Next,
            _ => return Some(Err(malformed("slot"))),
        };
        let version = self.version.unwrap_or_default().unsigned_abs();
        Some(Ok(SealedCredential::new(
            CredentialPlace::new(source, role, slot),
            self.name.unwrap_or_default(),
            CredentialVersion::new(version),
            SealedText::new(self.sealed.unwrap_or_default()),
        )))
    }
}
