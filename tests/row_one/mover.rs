//! A process that moves tenants, the way the page of the fence has it, and can be stopped and killed before each step.

use std::{collections::BTreeMap, env, time::Duration};

use biplane::{
    error::{Error, ErrorKind},
    plane::{DrainOptions, Fence, Residence, ResidenceState},
    repository::TenantAdmin,
    tenant::{Epoch, TenantId, TenantRecord},
};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::{
    process::{Process, say, told},
    world::{Control, LIMIT, MOVER, NAME, Place, World, connect_directly, ledger, sources},
};

/// What a move is made of, in this order. It can be interrupted before each.
pub(crate) const STEPS: [&str; 6] = ["fence", "copy", "receive", "publish", "open", "leave"];

/// The mover's process as the test sees it.
pub(crate) struct Mover(pub(crate) Process);

/// How a move ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    Done,
    /// It has come to the step before which it was to wait.
    Halted,
    /// What the error says of those in the way.
    Undrained(String),
    /// It could not go on, for another reason.
    Failed(String),
}

impl Mover {
    pub(crate) fn start(world: &World) -> Self {
        let main = "mover::a_process_that_moves";
        Self(Process::start(main, &world.variables("mover", 0)))
    }

    /// Moves a tenant, and what a mover before has left undone first. Waits before the step `halt`, if there is one.
    pub(crate) async fn move_to(&mut self, tenant: &str, to: Place, patience: Duration, halt: &str) -> Moved {
        self.begin(tenant, to, patience, halt).await;
        self.outcome(halt).await
    }

    /// Only does what a mover before has left undone.
    pub(crate) async fn settle(&mut self, tenant: &str, halt: &str) -> Moved {
        let millis = LIMIT.as_millis();
        self.0.tell(&format!("settle {tenant} {millis} {halt}")).await;
        self.outcome(halt).await
    }

    pub(crate) async fn begin(&mut self, tenant: &str, to: Place, patience: Duration, halt: &str) {
        let (millis, source, isolation) = (patience.as_millis(), to.source(), to.isolation);
        let command = format!("move {tenant} {millis} {halt} {source} {isolation}");
        self.0.tell(&command).await;
    }

    /// Goes on after it has halted.
    pub(crate) async fn go_on(&mut self) -> Moved {
        self.0.tell("go on").await;
        self.outcome("").await
    }

    /// Waits until it is about to do this step.
    pub(crate) async fn until(&mut self, step: &str) {
        while self.0.hear().await != format!("at {step}") {}
    }

    async fn outcome(&mut self, halt: &str) -> Moved {
        loop {
            let said = self.0.hear().await;
            match said.split_once(' ') {
                None => return Moved::Done,
                Some(("at", step)) if step == halt => return Moved::Halted,
                Some(("at", _)) => {}
                Some(("undrained", detail)) => return Moved::Undrained(detail.to_owned()),
                Some((_, error)) => return Moved::Failed(error.to_owned()),
            }
        }
    }
}

#[tokio::test]
#[ignore = "started by the tests of this binary, as a process of its own"]
async fn a_process_that_moves() {
    let mut work = Work {
        control: Control::from_env(),
        ledger: ledger().await.unwrap(),
        homes: BTreeMap::new(),
        tenant: String::new(),
        patience: LIMIT,
        halt: String::new(),
        told: told(),
    };
    while let Some(command) = work.told.recv().await {
        let words: Vec<&str> = command.split(' ').collect();
        let [what, tenant, patience, halt, to @ ..] = &words[..] else {
            panic!("not a command: {command}");
        };
        (work.tenant, work.halt) = ((*tenant).to_owned(), (*halt).to_owned());
        work.patience = Duration::from_millis(patience.parse().unwrap());
        let target = (*what == "move").then(|| Place::parse(to[0], to[1]));
        match work.work(target).await {
            Ok(()) => say("done"),
            Err(error) if error.kind() == ErrorKind::Undrained => say(format!("undrained {error}")),
            Err(error) => say(format!("failed {error:?}").replace('\n', " ")),
        }
    }
}

struct Work {
    control: Control,
    ledger: PgConnection,
    /// A session in each database, by the name of its data source.
    homes: BTreeMap<String, PgConnection>,
    tenant: String,
    patience: Duration,
    halt: String,
    told: UnboundedReceiver<String>,
}

impl Work {
    async fn work(&mut self, to: Option<Place>) -> Result<(), Error> {
        let id = self.control.tenant(&self.tenant).await?.tenant.id;
        // Before anything is read that a mover before this one could change.
        for name in sources() {
            if !self.homes.contains_key(&name) {
                let session = connect_directly(&name, MOVER, &env::var(NAME).unwrap()).await?;
                self.homes.insert(name.clone(), session);
            }
            self.fence(&name).take_over(id, LIMIT).await?;
        }
        let record = self.control.tenant(&self.tenant).await?;
        if !self.is_settled(&record).await? {
            // Whatever was left undone, it is one move: to where the control plane has the tenant.
            let here = place(&record);
            self.go(&record, here, to.is_none()).await?;
        }
        match to {
            Some(to) => {
                let record = self.control.tenant(&self.tenant).await?;
                self.go(&record, to, true).await
            }
            None => Ok(()),
        }
    }

    /// Whether the tenant is open where the control plane has it, at that epoch, and nowhere else at all.
    async fn is_settled(&mut self, record: &TenantRecord) -> Result<bool, Error> {
        let mut found = Vec::new();
        for name in sources() {
            let residence = self.residence(&name, record.tenant.id).await?;
            found.extend(residence.map(|residence| (name, residence.epoch, residence.state)));
        }
        let settled = (
            record.source.name.to_string(),
            record.tenant.placement.epoch,
            ResidenceState::Open,
        );
        Ok(found == [settled])
    }

    /// One move. The epoch rises, also if the place stays the same.
    async fn go(&mut self, record: &TenantRecord, to: Place, announced: bool) -> Result<(), Error> {
        let (id, from) = (record.tenant.id, place(record));
        let (source, target) = (from.source(), to.source());
        let next = record.tenant.placement.epoch.next();
        // What was left in other databases was never open, or is not any more.
        for name in sources().filter(|name| *name != source) {
            if let Some(left) = self.residence(&name, id).await? {
                self.fence(&name).leave(id, left.epoch).await?;
            }
        }
        let epoch = self.residence(&source, id).await?.unwrap().epoch;
        let too_early = match cfg!(biplane_mutant = "positions_are_read_before_the_drain") {
            true => Some(self.rows(from, id).await?),
            false => None,
        };

        self.at("fence", announced).await;
        let options = DrainOptions::default()
            .deadline(self.patience)
            .grace(Duration::from_millis(50));
        self.fence(&source).fence(id, epoch, &options).await?;
        self.drained(id, epoch, from).await?;

        self.at("copy", announced).await;
        if from.table(&self.tenant) != to.table(&self.tenant) || source != target {
            let rows = match too_early {
                Some(rows) => rows,
                None => self.rows(from, id).await?,
            };
            let sql = format!(
                "insert into {0} select * from json_populate_recordset(null::{0}, $1::json) on conflict (id) do nothing",
                to.table(&self.tenant)
            );
            let home = self.homes.get_mut(&target).unwrap();
            sqlx::query(AssertSqlSafe(sql)).bind(rows).execute(home).await?;
        }

        self.at("receive", announced).await;
        let residence = to.residence(id, &self.tenant, next);
        if source != target {
            let closed = residence.clone().fenced();
            self.fence(&target).place(&closed).await?;
        }

        self.at("publish", announced).await;
        let Control { admin, by, .. } = &self.control;
        let new = admin.source(&target).await?.unwrap().id;
        let published = admin.place(by, id, record.tenant.version, new, to.isolation);
        assert_eq!(published.await?.placement.epoch, next);

        self.at("open", announced).await;
        match source == target {
            true => self.fence(&target).place(&residence).await?,
            false => self.fence(&target).unfence(id, next).await?,
        }

        self.at("leave", announced).await;
        if source != target {
            self.fence(&source).leave(id, epoch).await?;
        }
        Ok(())
    }

    fn fence(&mut self, source: &str) -> Fence<'_> {
        Fence::new(self.homes.get_mut(source).unwrap())
    }

    async fn residence(&mut self, source: &str, id: TenantId) -> Result<Option<Residence>, Error> {
        let all = self.fence(source).residences().await?;
        Ok(all.into_iter().find(|residence| residence.tenant == id))
    }

    /// All rows of the tenant in a place, which stay there: what comes after the drain is to be seen.
    async fn rows(&mut self, from: Place, id: TenantId) -> Result<String, Error> {
        let sql = format!(
            "select coalesce(json_agg(note), '[]')::text from {} as note where tenant_id = $1",
            from.table(&self.tenant)
        );
        let home = self.homes.get_mut(&from.source()).unwrap();
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).bind(*id.as_uuid());
        Ok(rows.fetch_one(home).await?)
    }

    /// Writes down which rows there are at the moment at which the drain has returned.
    async fn drained(&mut self, id: TenantId, epoch: Epoch, place: Place) -> Result<(), Error> {
        let sql = format!(
            "select coalesce(array_agg(id), '{{}}') from {} where tenant_id = $1",
            place.table(&self.tenant)
        );
        let home = self.homes.get_mut(&place.source()).unwrap();
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).bind(*id.as_uuid());
        let rows: Vec<Uuid> = rows.fetch_one(home).await?;
        sqlx::query("insert into drained (tenant_id, epoch, place, rows) values ($1, $2, $3, $4)")
            .bind(*id.as_uuid())
            .bind(epoch.value().cast_signed())
            .bind(place.to_string())
            .bind(rows)
            .execute(&mut self.ledger)
            .await?;
        Ok(())
    }

    /// Says what comes next, and waits if it is told to.
    async fn at(&mut self, step: &str, announced: bool) {
        if !announced {
            return;
        }
        say(format!("at {step}"));
        if self.halt == step && self.told.recv().await.is_none() {
            std::process::exit(0);
        }
    }
}

fn place(record: &TenantRecord) -> Place {
    let isolation = record.tenant.placement.isolation;
    Place::parse(&record.source.name, isolation.as_str())
}
