//! What a database knows of its tenants, held against what the control plane knows.

use std::collections::BTreeMap;

use super::{Fence, Residence, ResidenceState, drain::DrainOptions, number, residence::Known};
use crate::{
    error::{Error, ErrorKind},
    plane::DataSchema,
    tenant::{DatabaseId, Epoch, Isolation, TenantId},
};

/// What the control plane knows of a tenant that is placed on a data source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recorded {
    /// Who.
    pub tenant: TenantId,
    /// The epoch of its placement.
    pub epoch: Epoch,
    /// The isolation of its placement.
    pub isolation: Isolation,
}

impl Recorded {
    /// A tenant of this data source.
    #[must_use]
    pub const fn new(tenant: TenantId, epoch: Epoch, isolation: Isolation) -> Self {
        Self {
            tenant,
            epoch,
            isolation,
        }
    }
}

/// Whether a reconciliation writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReconcileMode {
    /// Says what it would do.
    DryRun,
    /// Does it.
    Repair,
}

/// What a reconciliation found of one tenant, if it is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Finding {
    /// The two agree; the residence was restored, or written for another database. It is confirmed, and open if it was
    /// restored.
    Confirmed,
    /// The control plane has the tenant elsewhere, or nowhere. If it is open it is fenced and drained; a restored one stays
    /// closed as it is, and sessions that entered before [`DataSchema::stamp`] are not ended.
    Stranger,
    /// The two have another epoch. The rows may be older or newer than the control plane: the residence is fenced, and
    /// somebody decides.
    Epoch {
        /// The database's.
        here: Epoch,
        /// The control plane's.
        recorded: Epoch,
    },
    /// The two have another isolation. It is fenced, and somebody decides.
    Isolation {
        /// The database's.
        here: Isolation,
        /// The control plane's.
        recorded: Isolation,
    },
    /// The control plane has the tenant here, and the database does not know it. Nothing is done: its rows may be missing
    /// too. [`Fence::place`] it once they are here.
    Missing,
    /// The two agree, but the role of its transactions is not here, or not fit ([`Fence::place`]): roles are a server's, and
    /// come with no dump. Nothing is done: mend the role and run it again.
    Role,
    /// A mover has fenced it, at the recorded epoch. It stays so.
    Fenced,
}

/// What a reconciliation found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reconcile {
    /// How many tenants are as they should be.
    pub agree: usize,
    /// The others, by id.
    pub findings: BTreeMap<TenantId, Finding>,
}

impl Fence<'_> {
    /// Compares what the database knows with the control plane's records, which are all tenants that are placed on this
    /// data source, and repairs what can be repaired without a decision. Only ever closes what the control plane does not
    /// have, and opens what was restored and agrees. Run again after a failure, it goes on.
    ///
    /// The records must be newer than the last move: read them after movers were stopped.
    ///
    /// # Errors
    /// [`WrongDatabase`](ErrorKind::WrongDatabase) when the database was not stamped as this one, before anything is
    /// changed. What [`Fence::fence`] returns, for a stranger that cannot be drained.
    ///
    /// # Cancel safety
    /// Each tenant is dealt with whole or not at all.
    pub async fn reconcile(
        &mut self,
        database: DatabaseId,
        records: &[Recorded],
        mode: ReconcileMode,
        drain: &DrainOptions,
    ) -> Result<Reconcile, Error> {
        if DataSchema::read(self.connection).await? != Some(database) {
            return Err(
                Error::new(ErrorKind::WrongDatabase).detail("stamp it first, if it is meant to be this one")
            );
        }
        let known = self.known().await?;
        let mut report = Reconcile {
            agree: 0,
            findings: BTreeMap::new(),
        };
        let mut recorded: BTreeMap<TenantId, &Recorded> =
            records.iter().map(|record| (record.tenant, record)).collect();
        for known in &known {
            let residence = &known.residence;
            let record = recorded.remove(&residence.tenant);
            match judge(known, database, record) {
                None => report.agree += 1,
                Some(finding) => {
                    if mode == ReconcileMode::Repair || cfg!(biplane_mutant = "dry_reconciles_write") {
                        self.repair(residence, finding, drain).await?;
                    }
                    report.findings.insert(residence.tenant, finding);
                }
            }
        }
        let missing = recorded.into_keys().map(|tenant| (tenant, Finding::Missing));
        report.findings.extend(missing);
        Ok(report)
    }

    async fn repair(
        &mut self,
        residence: &Residence,
        finding: Finding,
        drain: &DrainOptions,
    ) -> Result<(), Error> {
        let (tenant, epoch) = (residence.tenant, residence.epoch);
        match finding {
            Finding::Confirmed => self.confirm(residence).await,
            Finding::Stranger | Finding::Epoch { .. } | Finding::Isolation { .. }
                if residence.state == ResidenceState::Open =>
            {
                self.fence(tenant, epoch, drain).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn confirm(&mut self, residence: &Residence) -> Result<(), Error> {
        let change = sqlx::query("select biplane.confirm_v1($1, $2, $3)::text")
            .bind(*residence.tenant.as_uuid())
            .bind(number(residence.epoch))
            .bind(residence.isolation.as_str());
        self.commit_query(change).await.map(drop)
    }
}

fn judge(known: &Known, database: DatabaseId, record: Option<&Recorded>) -> Option<Finding> {
    let residence = &known.residence;
    let Some(record) = record else {
        return Some(Finding::Stranger);
    };
    if residence.epoch != record.epoch && !cfg!(biplane_mutant = "any_restored_epoch_will_do") {
        return Some(Finding::Epoch {
            here: residence.epoch,
            recorded: record.epoch,
        });
    }
    if residence.isolation != record.isolation {
        return Some(Finding::Isolation {
            here: residence.isolation,
            recorded: record.isolation,
        });
    }
    if !known.role_fits && !cfg!(biplane_mutant = "unfit_roles_are_confirmed") {
        return Some(Finding::Role);
    }
    match residence.state {
        _ if known.written_for != database => Some(Finding::Confirmed),
        ResidenceState::Restored => Some(Finding::Confirmed),
        ResidenceState::Fenced => Some(Finding::Fenced),
        ResidenceState::Open => None,
    }
}
