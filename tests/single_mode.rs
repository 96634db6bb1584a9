//! One program on one database or on two, by settings alone; and a wrong plane fails in both.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use std::{collections::HashMap, time::Duration};

use biplane::{
    Biplane,
    keyring::{KeyMaterial, KeyState, Keyring},
    plane::{ControlDb, ControlExecutor, ControlOptions, DataSchema, RoleName, TenantDb, TenantExecutor},
    repository::{Actor, ControlSchema, Grants, NewTenant, PgTenantAdmin, TenantAdmin},
    router::CacheOptions,
    settings::{Mode, Settings},
    tenant::{DataSourceId, DatabaseId, Slug, Tenant, TenantStatus},
};
use control::{cluster, create_role, database, login, owner, run};
use secrecy::ExposeSecret;
use tokio::sync::OnceCell;

const CONTROL_ROLE: &str = "planes_control";
const DATA_ROLE: &str = "planes_data";

/// Databases with the schemas of their planes, and the variables that lead there.
struct Deployment {
    control: String,
    data: String,
    variables: HashMap<&'static str, String>,
}

/// What the program holds while it runs.
struct Running {
    control: ControlDb,
    biplane: Biplane,
    tenant: Tenant,
    db: TenantDb,
}

async fn roles() {
    static ROLES: OnceCell<()> = OnceCell::const_new();
    ROLES
        .get_or_init(|| async {
            for role in [CONTROL_ROLE, DATA_ROLE] {
                create_role(cluster().await, role).await;
            }
        })
        .await;
}

/// `schema` is where the business tables are.
async fn deployment(mode: Mode, schema: &str) -> Deployment {
    roles().await;
    let control = database().await;
    let data = match mode {
        Mode::Single => control.clone(),
        _ => database().await,
    };
    let grants = Grants::none().admin(RoleName::parse(CONTROL_ROLE).unwrap());
    ControlSchema::install_on(&mut owner(&control).await, &grants)
        .await
        .unwrap();
    let mut owner = owner(&data).await;
    let reader = RoleName::parse(DATA_ROLE).unwrap();
    DataSchema::install(&mut owner, DatabaseId::new(), &[reader])
        .await
        .unwrap();
    let business = format!(
        "create schema if not exists {schema}; grant usage on schema {schema} to {DATA_ROLE};
         create table {schema}.note (text text not null);
         grant select, insert on {schema}.note to {DATA_ROLE}"
    );
    run(&mut owner, business).await.unwrap();
    let cluster = cluster().await;
    let url = |database: &str, role| cluster.url(database, &login(role)).expose_secret().to_owned();
    let variables = HashMap::from([
        ("BIPLANE_MODE", mode.to_string()),
        ("BIPLANE_CONTROL_URL", url(&control, CONTROL_ROLE)),
        ("BIPLANE_DATA_URL", url(&data, DATA_ROLE)),
    ]);
    Deployment {
        control,
        data,
        variables,
    }
}

/// The program. It does not know how many databases there are.
async fn start(settings: &Settings) -> Running {
    let control = ControlDb::connect(ControlOptions::from_settings(settings)).unwrap();
    let key = KeyMaterial::generate().unwrap();
    let keyring = Keyring::builder().key(key, KeyState::Primary).build().unwrap();
    // A busy machine may keep an answer waiting for longer than a service would.
    let patient = CacheOptions::default().load_timeout(Duration::from_secs(60));
    let biplane = Biplane::from_settings(settings, keyring)
        .unwrap()
        .cache(patient)
        .build()
        .unwrap();

    let admin = PgTenantAdmin::new(control.clone());
    let by = Actor::new("test", "first tenant");
    let new = NewTenant::new(Slug::parse("acme").unwrap(), DataSourceId::DEFAULT);
    let tenant = admin.create(&by, new).await.unwrap();
    let open = TenantStatus::Active;
    let tenant = admin
        .set_status(&by, tenant.id, tenant.version, open)
        .await
        .unwrap();

    let db = biplane.route(&tenant.slug).await.unwrap();
    Running {
        control,
        biplane,
        tenant,
        db,
    }
}

async fn run_program(variables: &HashMap<&'static str, String>) -> (Settings, Running) {
    let settings = Settings::from_lookup(|name| variables.get(name).cloned()).unwrap();
    let running = start(&settings).await;
    let mut tx = running.db.begin().await.unwrap();
    add_note(&mut tx, "buy anvils").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(notes(&running.db).await.unwrap(), ["buy anvils"]);
    assert_eq!(slugs(&running.control).await.unwrap(), ["acme"]);
    assert_eq!(running.db.tenant(), running.tenant.id);
    (settings, running)
}

async fn add_note(db: impl TenantExecutor<'_>, text: &str) -> sqlx::Result<()> {
    let insert = sqlx::query("insert into note (text) values ($1)").bind(text);
    insert.execute(db).await.map(drop)
}

async fn notes(db: impl TenantExecutor<'_>) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("select text from note").fetch_all(db).await
}

async fn slugs(db: impl ControlExecutor<'_>) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("select slug from tenant").fetch_all(db).await
}

/// The SQLSTATE with which a query is refused, or what it found.
async fn refusal<'c>(db: impl sqlx::Executor<'c, Database = sqlx::Postgres>, query: &'static str) -> String {
    match sqlx::query(query).fetch_all(db).await {
        Ok(rows) => format!("{} rows", rows.len()),
        Err(error) => match error.as_database_error().and_then(|error| error.code()) {
            Some(code) => code.into_owned(),
            None => error.to_string(),
        },
    }
}

/// Which notes a database holds, seen by its owner.
async fn notes_in(database: &str) -> Vec<String> {
    let all = "select text from public.note";
    sqlx::query_scalar(all)
        .fetch_all(&mut owner(database).await)
        .await
        .unwrap()
}

#[tokio::test]
async fn the_program_runs_on_one_database() {
    let deployment = deployment(Mode::Single, "public").await;
    let (settings, running) = run_program(&deployment.variables).await;
    assert_eq!(settings.mode(), Mode::Single);
    assert_eq!(deployment.control, deployment.data);
    assert_eq!(notes_in(&deployment.data).await, ["buy anvils"]);
    running.biplane.close(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_same_program_runs_on_two_databases() {
    let deployment = deployment(Mode::Split, "public").await;
    let (settings, _running) = run_program(&deployment.variables).await;
    assert_eq!(settings.mode(), Mode::Split);
    assert_eq!(notes_in(&deployment.data).await, ["buy anvils"]);
    let in_control = "select count(*) from pg_class where relname = 'note'";
    let tables: i64 = sqlx::query_scalar(in_control)
        .fetch_one(&mut owner(&deployment.control).await)
        .await
        .unwrap();
    assert_eq!(tables, 0);
}

#[tokio::test]
async fn the_variables_of_an_older_system_do_as_well() {
    for (mode, spelling) in [(Mode::Single, "false"), (Mode::Split, "true")] {
        let mut ours = deployment(mode, "public").await.variables;
        let variables = HashMap::from([
            ("SPLIT_DB_MODE", spelling.to_owned()),
            (
                "PRIMARY_DATABASE_URL",
                ours.remove("BIPLANE_CONTROL_URL").unwrap(),
            ),
            ("DATA_DATABASE_URL", ours.remove("BIPLANE_DATA_URL").unwrap()),
        ]);
        let (settings, _running) = run_program(&variables).await;
        assert_eq!(settings.mode(), mode);
    }
}

#[tokio::test]
async fn in_one_database_a_query_on_business_data_fails_in_the_control_plane() {
    let deployment = deployment(Mode::Single, "public").await;
    let (_, running) = run_program(&deployment.variables).await;
    assert_eq!(refusal(&running.control, "select * from note").await, "42P01");
    assert_eq!(
        refusal(&running.control, "select * from public.note").await,
        "42501"
    );
    assert_eq!(
        refusal(
            &running.control,
            "insert into public.note (text) values ('stray')"
        )
        .await,
        "42501"
    );
    assert_eq!(
        refusal(&running.control, "select biplane.database_v1()").await,
        "42501"
    );
    let mut tx = running.control.begin().await.unwrap();
    assert_eq!(refusal(&mut tx, "select * from note").await, "42P01");
}

#[tokio::test]
async fn in_one_database_a_query_on_tenants_fails_in_the_data_plane() {
    let deployment = deployment(Mode::Single, "public").await;
    let (_, running) = run_program(&deployment.variables).await;
    assert_eq!(refusal(&running.db, "select * from tenant").await, "42P01");
    assert_eq!(
        refusal(&running.db, "select * from biplane_control.tenant").await,
        "42501"
    );
    assert_eq!(
        refusal(&running.db, "select * from biplane_control.credential").await,
        "42501"
    );
    assert_eq!(
        refusal(&running.db, "update biplane_control.tenant set status = 'active'").await,
        "42501"
    );
    let mut tx = running.db.begin().await.unwrap();
    assert_eq!(refusal(&mut tx, "select * from tenant").await, "42P01");
}

#[tokio::test]
async fn in_two_databases_a_query_on_the_wrong_plane_finds_nothing_at_all() {
    let deployment = deployment(Mode::Split, "public").await;
    let (_, running) = run_program(&deployment.variables).await;
    for query in ["select * from note", "select * from public.note"] {
        assert_eq!(refusal(&running.control, query).await, "42P01");
    }
    for query in ["select * from tenant", "select * from biplane_control.tenant"] {
        assert_eq!(refusal(&running.db, query).await, "42P01");
    }
}

#[tokio::test]
async fn each_plane_has_its_own_role_and_search_path() {
    let deployment = deployment(Mode::Single, "public").await;
    let (_, running) = run_program(&deployment.variables).await;
    let session = "select array[current_user::text, current_setting('search_path')]";
    let control: Vec<String> = sqlx::query_scalar(session)
        .fetch_one(&running.control)
        .await
        .unwrap();
    let data: Vec<String> = sqlx::query_scalar(session).fetch_one(&running.db).await.unwrap();
    assert_eq!(control, [CONTROL_ROLE, "biplane_control, pg_temp"]);
    assert_eq!(data, [DATA_ROLE, "\"public\", pg_temp"]);
}

#[tokio::test]
async fn business_tables_may_have_a_schema_of_their_own() {
    let mut deployment = deployment(Mode::Single, "\"Shop-2\"").await;
    let url = deployment.variables.get_mut("BIPLANE_DATA_URL").unwrap();
    url.push_str("&schema=Shop-2");
    let (_, running) = run_program(&deployment.variables).await;
    assert_eq!(refusal(&running.db, "select * from public.note").await, "42P01");
    assert_eq!(refusal(&running.db, "select * from tenant").await, "42P01");
    assert_eq!(
        refusal(&running.control, "select * from \"Shop-2\".note").await,
        "42501"
    );
}

#[tokio::test]
async fn what_a_database_role_is_set_to_does_not_lead_into_the_other_plane() {
    let deployment = deployment(Mode::Single, "public").await;
    let set = format!(
        "alter role {DATA_ROLE} in database {0} set search_path = biplane_control;
         alter role {CONTROL_ROLE} in database {0} set search_path = public",
        deployment.data
    );
    run(&mut owner(&deployment.data).await, set).await.unwrap();
    let (_, running) = run_program(&deployment.variables).await;
    assert_eq!(refusal(&running.db, "select * from tenant").await, "42P01");
    assert_eq!(refusal(&running.control, "select * from note").await, "42P01");
}
