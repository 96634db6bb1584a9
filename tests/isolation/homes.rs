//! Databases with a fence, and tenants who live there.

use std::sync::atomic::{AtomicU32, Ordering};

use biplane::{
    Biplane,
    error::{Error, ErrorKind},
    plane::{DataSchema, Fence, Residence, RoleName, RowPolicy, TenantDb, TenantExecutor},
    pool::PoolOptions,
    repository::{NewSource, TenantAdmin},
    tenant::{DataSourceId, DatabaseId, Isolation, Location, PoolSettings, Role, Server, Slug, TenantId},
    testing::postgres::{Cluster, PgBouncer, PoolMode},
};
use secrecy::SecretString;

use crate::{
    data_plane::{World, options, shared, through},
    poolers::Profile,
};

/// A database with a fence, a login that is nobody's owner, and the table `note` for tenants that share it by row.
pub(crate) struct Home {
    pub(crate) database: String,
    pub(crate) id: DatabaseId,
    pub(crate) source: DataSourceId,
    pub(crate) login: String,
}

/// A tenant and where it lives.
#[derive(Clone, Debug)]
pub(crate) struct Resident {
    pub(crate) id: TenantId,
    pub(crate) slug: Slug,
    pub(crate) name: String,
    pub(crate) isolation: Isolation,
    /// The role of its transactions.
    pub(crate) role: String,
    pub(crate) database: String,
}

pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{what}{}-{}",
        NEXT.fetch_add(1, Ordering::Relaxed),
        std::process::id()
    )
}

pub(crate) async fn world() -> World<'static> {
    World::new(shared().await)
}

/// What a tenant's code may call, in each schema: it leaves in the session what no look at the statement shows.
const HIDES: &str = "
    create function hide(secret text) returns void language plpgsql as $$
    begin
        perform set_config('my.own', secret, false), set_config('work_mem', '9MB', false);
        perform set_config('timezone', 'Asia/Tokyo', false), set_config('application_name', secret, false);
        perform pg_advisory_lock(4711);
        execute 'create temporary table if not exists loot (secret text)';
        execute format('insert into loot values (%L)', secret);
        execute 'declare mine cursor with hold for select 1';
        execute 'listen somewhere';
        perform nextval('counter');
    end $$;
    create function prepare_mine() returns void language plpgsql as $$
    begin
        execute 'prepare mine as select ''of a''';
    end $$;
    create sequence counter";

impl Home {
    pub(crate) async fn new(world: &World<'_>) -> Self {
        Self::reached_by(world, |server| server).await
    }

    /// The same, reached in another way.
    pub(crate) async fn reached_by(world: &World<'_>, way: impl FnOnce(Server) -> Server) -> Self {
        let name = unique("home");
        let database = name.replace('-', "_");
        let login = format!("{database}_app");
        let cluster = world.cluster;
        cluster.create_database(&database).await.unwrap();
        let password = SecretString::from("app");
        let credential = cluster.create_role(&login, &password, &[]).await.unwrap();
        let id = DatabaseId::new();
        let readers = [RoleName::parse(&login).unwrap()];
        let mut owner = cluster.connect(&database).await.unwrap();
        DataSchema::install(&mut owner, id, &readers).await.unwrap();
        let policy = RowPolicy::new("public", "note", "tenant_id").sql();
        let tables = format!(
            "create table note (
                id bigint generated always as identity primary key, tenant_id uuid not null, owner text not null,
                text text not null);
            {policy}
            {HIDES};
            revoke create on schema public from public;
            grant select, insert, update, delete on note to {login};
            grant usage on all sequences in schema public to {login};
            alter database {database} set client_encoding = 'LATIN1';
            alter database {database} set datestyle = 'SQL, DMY';
            alter database {database} set timezone = 'Asia/Tokyo'"
        );
        cluster.sql(&database, &tables).await.unwrap();
        let mut source = NewSource::new(name.as_str(), Location::Server(way(cluster.server(&database))));
        source.database_id = Some(id);
        source.pool = PoolSettings::new(0, 10).unwrap();
        let source = world.control.create_source(&world.by, source).await.unwrap();
        world.credentials.set(source.id, Role::App, credential);
        Self {
            database,
            id,
            source: source.id,
            login,
        }
    }

    pub(crate) async fn resident(&self, world: &World<'_>, isolation: Isolation) -> Resident {
        match isolation {
            Isolation::Schema => self.in_schema(world, Own::Nothing).await,
            isolation => self.by_itself(world, isolation).await,
        }
    }

    async fn by_itself(&self, world: &World<'_>, isolation: Isolation) -> Resident {
        let name = unique("tenant");
        let (id, slug) = world.tenant_at(&name, self.source, isolation).await;
        let resident = Resident {
            id,
            slug,
            name,
            isolation,
            role: self.login.clone(),
            database: self.database.clone(),
        };
        if isolation == Isolation::Database {
            let all = format!(
                "alter table note no force row level security; alter table note disable row level security;
                 alter table note alter column tenant_id drop default;
                 alter table note alter column tenant_id set default '{id}'; grant all on note to {}",
                self.login
            );
            world.cluster.sql(&self.database, &all).await.unwrap();
        }
        self.settle(world, &resident, |residence| residence).await;
        resident
    }

    /// A tenant with a schema of its own, whose tables and types have the names that others' have, and not always the form:
    /// every second schema is half-migrated.
    pub(crate) async fn in_schema(&self, world: &World<'_>, own: Own) -> Resident {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = unique("tenant");
        let (id, slug) = world.tenant_at(&name, self.source, Isolation::Schema).await;
        let schema = name.replace('-', "_");
        let role = match own {
            Own::Role => format!("{schema}_own"),
            Own::Nothing => self.login.clone(),
        };
        let migrated = match NEXT.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => "added int not null default 7, text text not null",
            _ => "text text not null",
        };
        let make_role = match own {
            Own::Role => format!("create role {role}; grant {role} to {};", self.login),
            Own::Nothing => String::new(),
        };
        let sql = format!(
            "{make_role}
            create schema {schema};
            grant usage on schema {schema} to {role};
            set local search_path = {schema};
            create type mood as enum ('of {name}', 'other');
            create table note (
                id bigint generated always as identity primary key, owner text not null, mood mood not null default
                'of {name}', {migrated});
            {HIDES};
            grant select, insert, update, delete on note to {role};
            grant usage on all sequences in schema {schema} to {role}"
        );
        world.cluster.sql(&self.database, &sql).await.unwrap();
        let resident = Resident {
            id,
            slug,
            name,
            isolation: Isolation::Schema,
            role: role.clone(),
            database: self.database.clone(),
        };
        let at_home = |residence: Residence| match own {
            Own::Role => residence.schema(schema).role(RoleName::parse(&role).unwrap()),
            Own::Nothing => residence.schema(schema),
        };
        self.settle(world, &resident, at_home).await;
        resident
    }

    async fn settle(
        &self,
        world: &World<'_>,
        resident: &Resident,
        at_home: impl FnOnce(Residence) -> Residence,
    ) {
        let epoch = world.record(resident.id).await.placement.epoch;
        let residence = at_home(Residence::new(resident.id, epoch, resident.isolation));
        let mut owner = world.cluster.connect(&self.database).await.unwrap();
        Fence::new(&mut owner).place(&residence).await.unwrap();
    }
}

/// What a tenant in a schema has beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    Nothing,
    /// A role that its transactions take on.
    Role,
}

/// Changes the residence of a tenant.
pub(crate) async fn residence(cluster: &Cluster, resident: &Resident, change: &str) {
    let sql = format!(
        "update biplane.residence set {change} where tenant_id = '{}'",
        resident.id
    );
    cluster.sql(&resident.database, &sql).await.unwrap();
}

/// Lets the epoch of a tenant rise where it is, in the control plane and then in its database, and says so to no router.
pub(crate) async fn raise_epoch(world: &World<'_>, home: &Home, resident: &Resident) {
    let version = world.record(resident.id).await.version;
    world
        .control
        .place(&world.by, resident.id, version, home.source, resident.isolation)
        .await
        .unwrap();
    residence(world.cluster, resident, "epoch = epoch + 1").await;
}

/// A router that hears of nothing by itself.
pub(crate) fn unaware(world: &World<'_>, pool: PoolOptions) -> Biplane {
    Biplane::postgres(world.control.clone(), world.credentials.clone())
        .without_changes()
        .pool(pool)
        .build()
        .unwrap()
}

pub(crate) async fn handle(biplane: &Biplane, resident: &Resident) -> TenantDb {
    biplane.route(&resident.slug).await.unwrap()
}

/// A home, a resident in this mode and its handle, through a pool of one connection.
pub(crate) async fn one(isolation: Isolation) -> (World<'static>, Home, Resident, Biplane, TenantDb) {
    let world = world().await;
    let home = Home::new(&world).await;
    let resident = home.resident(&world, isolation).await;
    let biplane = unaware(&world, options(1));
    let db = handle(&biplane, &resident).await;
    (world, home, resident, biplane, db)
}

/// A resident of a home of its own, who gets there directly or through a PgBouncer.
pub(crate) struct Seat {
    pub(crate) world: World<'static>,
    pub(crate) home: Home,
    pub(crate) resident: Resident,
    pub(crate) biplane: Biplane,
    pub(crate) db: TenantDb,
    /// Whether its statements run by themselves, in sessions of its own.
    pub(crate) alone: bool,
    _bouncer: Option<PgBouncer>,
}

impl Seat {
    /// With a pool of so many connections.
    pub(crate) async fn new(way: Option<Profile>, isolation: Isolation, connections: u32) -> Self {
        let world = world().await;
        let bouncer = match way {
            Some(profile) => Some(profile.start(world.cluster, connections).await),
            None => None,
        };
        let home = Home::reached_by(&world, |server| match &bouncer {
            Some(bouncer) => through(server, bouncer.pooler(), bouncer.endpoint()),
            None => server,
        })
        .await;
        let resident = home.resident(&world, isolation).await;
        let biplane = unaware(&world, options(connections));
        let db = handle(&biplane, &resident).await;
        let lent = way.is_some_and(|profile| profile.mode == PoolMode::Transaction);
        Self {
            world,
            home,
            resident,
            biplane,
            db,
            alone: isolation == Isolation::Database && !lent,
            _bouncer: bouncer,
        }
    }
}

pub(crate) const MODES: [Isolation; 3] = [Isolation::Database, Isolation::Schema, Isolation::Row];

pub(crate) fn kind(error: &sqlx::Error) -> ErrorKind {
    Error::of(error)
        .unwrap_or_else(|| panic!("not one of ours: {error:?}"))
        .kind()
}

pub(crate) fn code(error: &sqlx::Error) -> String {
    let error = error.as_database_error();
    let error = error.unwrap_or_else(|| panic!("not the database's"));
    error.code().unwrap_or_default().into_owned()
}

/// Adds a note, in the same words in each mode.
pub(crate) async fn add<'c>(db: impl TenantExecutor<'c>, resident: &Resident, text: &str) {
    add_by(db, &resident.name, text).await.unwrap();
}

pub(crate) async fn add_by<'c>(db: impl TenantExecutor<'c>, owner: &str, text: &str) -> sqlx::Result<()> {
    sqlx::query("insert into note (owner, text) values ($1, $2)")
        .bind(owner)
        .bind(text)
        .execute(db)
        .await
        .map(drop)
}

pub(crate) async fn count<'c>(db: impl TenantExecutor<'c>) -> i64 {
    sqlx::query_scalar("select count(*) from note")
        .fetch_one(db)
        .await
        .unwrap()
}
