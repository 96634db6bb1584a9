//! What is to be true in the end, of the rows that are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    path::Path,
};

use biplane::{repository::TenantAdmin, tenant::TenantId};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::world::{Place, TENANTS, World};

/// A row as it lies there.
struct Note {
    owner: Uuid,
    epoch: i64,
    born: String,
}

/// What a process was told is committed.
pub(crate) struct Told {
    pub(crate) tenant: String,
    pub(crate) way: String,
    id: Uuid,
}

/// Everything that the processes have written into their journals.
pub(crate) fn journals(directory: &Path) -> Vec<Told> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        all.extend(journal(&entry.unwrap().path()));
    }
    all
}

pub(crate) fn journal(file: &Path) -> Vec<Told> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last one may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Told {
                tenant: words[0].to_owned(),
                way: words[1].to_owned(),
                id: words[2].parse().unwrap(),
            }
        })
        .collect()
}

impl World {
    /// Holds the rows of all tenants against what movers and writers have seen.
    pub(crate) async fn judge(&mut self) {
        let told = journals(self.directory());
        for (name, _) in TENANTS {
            let id = self.control.tenant(name).await.unwrap().tenant.id;
            let home = self.control.place(name).await;
            let mut all: BTreeMap<Uuid, Note> = BTreeMap::new();
            for place in Place::all(name) {
                all.extend(self.notes(name, id, place).await);
            }
            let at_home = self.notes(name, id, home).await;
            let told = told.iter().filter(|told| told.tenant == name);
            let lost: Vec<Uuid> = told
                .map(|told| told.id)
                .filter(|id| !at_home.contains_key(id))
                .collect();
            assert!(
                lost.is_empty(),
                "{name} has lost {} rows that were committed: {lost:?}",
                lost.len()
            );
            self.judge_drains(name, id, &all, &at_home).await;
            self.judge_births(name, id, &all).await;
        }
    }

    /// After a drain, no row of that epoch or an older one comes or goes.
    async fn judge_drains(
        &mut self,
        name: &str,
        id: TenantId,
        all: &BTreeMap<Uuid, Note>,
        at_home: &BTreeMap<Uuid, Note>,
    ) {
        let drains: Vec<(i64, String, Vec<Uuid>)> =
            sqlx::query_as("select epoch, place, rows from drained where tenant_id = $1 order by epoch")
                .bind(*id.as_uuid())
                .fetch_all(&mut self.ledger)
                .await
                .unwrap();
        for (epoch, place, rows) in drains {
            let then: BTreeSet<Uuid> = rows.into_iter().collect();
            let old = all.iter().filter(|(_, note)| note.epoch <= epoch);
            let now: BTreeSet<Uuid> = old.map(|(id, _)| *id).collect();
            let late: Vec<_> = now.difference(&then).collect();
            assert!(
                late.is_empty(),
                "rows of {name} came after epoch {epoch} was drained in {place}: {late:?}"
            );
            let gone: Vec<_> = then.iter().filter(|id| !at_home.contains_key(id)).collect();
            assert!(
                gone.is_empty(),
                "rows of {name} were there when epoch {epoch} was drained in {place}, and were lost: {gone:?}"
            );
        }
    }

    /// Each row was entered where the control plane had the tenant at the row's epoch, by this tenant.
    async fn judge_births(&self, name: &str, id: TenantId, all: &BTreeMap<Uuid, Note>) {
        let history = self.history(id).await;
        for (row, note) in all {
            assert_eq!(note.owner, *id.as_uuid(), "{row} is somebody else's");
            let home = history.get(&note.epoch);
            assert_eq!(
                home,
                Some(&note.born),
                "{row} of {name} was entered at epoch {} in {}",
                note.epoch,
                note.born
            );
        }
    }

    async fn notes(&self, name: &str, id: TenantId, place: Place) -> BTreeMap<Uuid, Note> {
        let sql = format!(
            "select id, owner, epoch, born from {} where tenant_id = $1",
            place.table(name)
        );
        let rows: Vec<(Uuid, Uuid, i64, String)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(*id.as_uuid())
            .fetch_all(&mut self.owner(place).await)
            .await
            .unwrap();
        rows.into_iter()
            .map(|(id, owner, epoch, born)| (id, Note { owner, epoch, born }))
            .collect()
    }

    /// Where the tenant was at each epoch, as the audit has it.
    async fn history(&self, id: TenantId) -> BTreeMap<i64, String> {
        let limit = NonZeroU32::MAX;
        let mut sources = BTreeMap::new();
        for name in crate::world::sources() {
            let source = self.control.admin.source(&name).await.unwrap().unwrap();
            sources.insert(source.id.to_string(), name);
        }
        let audit = self.control.admin.audit(Some(id), limit).await.unwrap();
        let (mut source, mut isolation) = (String::new(), String::new());
        let mut history = BTreeMap::new();
        for entry in audit.iter().rev() {
            let after = |fact: &str| entry.changed.get(fact).and_then(|change| change.get("after"));
            if let Some(now) = after("data_source_id") {
                source.clone_from(&sources[now.as_str().unwrap()]);
            }
            if let Some(now) = after("isolation") {
                isolation = now.as_str().unwrap().to_owned();
            }
            if let Some(epoch) = after("epoch") {
                history.insert(epoch.as_i64().unwrap(), format!("{source} {isolation}"));
            }
        }
        history
    }
}
