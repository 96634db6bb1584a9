//! Who lives, and which keys they have.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx::{FromRow, Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    PgTenantAdmin, PgTenants,
    failure::{failed, not_read, rows_hidden},
    rows::parse_instance_keys,
    tenants::moment,
};
use crate::{
    error::{Error, ErrorKind},
    plane::{ControlDb, IsolationLevel, TxOptions},
    repository::{Beat, Instance, Instances, KeyReport, rules},
    tenant::{InstanceId, Seq},
};

/// The moment is one for all, and the row that says whether others are hidden is there without any instance.
const INSTANCES: &str = "
    select pg_catalog.row_security_active('biplane_control.instance'::regclass)
            or pg_catalog.row_security_active('biplane_control.instance_key'::regclass) as hidden,
        instance.id, instance.service, instance.applied_seq,
        (extract(epoch from instance.started_at) * 1000000)::bigint as started_at,
        (extract(epoch from instance.seen_at) * 1000000)::bigint as seen_at,
        (extract(epoch from clock.now - instance.seen_at) * 1000000)::bigint as silent,
        (extract(epoch from instance.seen_at - instance.steady_since) * 1000000)::bigint as steady,
        (
            select pg_catalog.jsonb_agg(pg_catalog.to_jsonb(held) || pg_catalog.jsonb_build_object(
                'idle', (extract(epoch from clock.now - held.used_at) * 1000000)::bigint) order by held.key_id)::text
            from biplane_control.instance_key as held where held.instance_id = instance.id
        ) as keys
    from (select pg_catalog.clock_timestamp() as now) as clock
    left join biplane_control.instance on true
    order by instance.id";

#[async_trait]
impl Instances for PgTenants {
    async fn beat(&self, beat: &Beat) -> Result<(), Error> {
        rules::beat(beat)?;
        // Whatever the server's default is: two that beat at once are no conflict.
        let options = TxOptions::new().isolation(IsolationLevel::ReadCommitted);
        let mut tx = self.control.begin_with(options).await.map_err(failed)?;
        sqlx::query("select biplane_control.beat($1, $2, $3, $4)")
            .bind(beat.id.as_uuid())
            .bind(&*beat.service)
            .bind(counted(beat.applied.value()))
            .bind(Value::Array(beat.keys.iter().map(reported).collect()))
            .execute(&mut tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        leave(&self.control, instance).await
    }

    async fn instances(&self) -> Result<Vec<Instance>, Error> {
        let rows: Vec<Row> = sqlx::query_as(INSTANCES)
            .fetch_all(&self.control)
            .await
            .map_err(not_read)?;
        if rows.iter().any(|row| row.hidden) {
            return Err(rows_hidden());
        }
        rows.iter().filter_map(Row::instance).collect()
    }
}

impl PgTenantAdmin {
    /// Says that an instance is known to be dead, which then no longer stands in the way of promoting a key. One that
    /// lives after all is listed again with its next beat.
    ///
    /// # Errors
    /// [`ControlPlaneUnavailable`](ErrorKind::ControlPlaneUnavailable),
    /// [`MissingPrivilege`](ErrorKind::MissingPrivilege).
    ///
    /// # Cancel safety
    /// It has left or has not; say it again.
    pub async fn leave(&self, instance: InstanceId) -> Result<(), Error> {
        leave(&self.control, instance).await
    }
}

async fn leave(control: &ControlDb, instance: InstanceId) -> Result<(), Error> {
    let options = TxOptions::new().isolation(IsolationLevel::ReadCommitted);
    let mut tx = control.begin_with(options).await.map_err(failed)?;
    sqlx::query("select biplane_control.leave($1)")
        .bind(instance.as_uuid())
        .execute(&mut tx)
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)
}

struct Row {
    hidden: bool,
    id: Option<Uuid>,
    service: Option<String>,
    applied_seq: Option<i64>,
    started_at: Option<i64>,
    seen_at: Option<i64>,
    silent: Option<i64>,
    steady: Option<i64>,
    keys: Option<String>,
}

impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            hidden: row.try_get("hidden")?,
            id: row.try_get("id")?,
            service: row.try_get("service")?,
            applied_seq: row.try_get("applied_seq")?,
            started_at: row.try_get("started_at")?,
            seen_at: row.try_get("seen_at")?,
            silent: row.try_get("silent")?,
            steady: row.try_get("steady")?,
            keys: row.try_get("keys")?,
        })
    }
}

impl Row {
    /// `None` when there is no instance at all.
    fn instance(&self) -> Option<Result<Instance, Error>> {
        let id = InstanceId::from_uuid(self.id?);
        let moment = |column: Option<i64>| moment(column.unwrap_or_default());
        let service: Arc<str> = self.service.as_deref().unwrap_or_default().into();
        let mut instance = Instance::new(id, service, moment(self.started_at));
        instance.seen_at = moment(self.seen_at);
        instance.silent = stretch(self.silent);
        instance.steady = stretch(self.steady);
        instance.applied = Seq::new(
            self.applied_seq
                .and_then(|seq| u64::try_from(seq).ok())
                .unwrap_or_default(),
        );
        Some(match self.keys.as_deref().map_or(Ok(Vec::new()), parse_keys) {
            Ok(keys) => {
                instance.keys = keys;
                Ok(instance)
            }
            Err(error) => Err(error),
        })
    }
}

fn parse_keys(body: &str) -> Result<Vec<crate::repository::InstanceKey>, Error> {
    let rows = serde_json::from_str(body).map_err(|_| Error::new(ErrorKind::MalformedRecord))?;
    parse_instance_keys(&rows)
}

fn reported(key: &KeyReport) -> Value {
    json!({
        "id": key.id.to_string(),
        "state": key.state.as_str(),
        "opens": counted(key.opens),
        "seals": counted(key.seals),
        "refused": counted(key.refused),
    })
}

fn counted(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Nothing, when the server's clock was put back in between.
fn stretch(micros: Option<i64>) -> Duration {
    let micros = micros.and_then(|micros| u64::try_from(micros).ok());
    Duration::from_micros(micros.unwrap_or_default())
}
