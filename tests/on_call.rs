//! What whoever is on call sees in the control plane: the views, with grants that show no sealed text, and the runbook,
//! every statement of which is run here.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;
#[path = "on_call/runbook.rs"]
mod runbook;

use std::{path::Path, process::Command, time::Duration};

use biplane::{
    error::ErrorKind,
    keyring::{KeyMaterial, KeyState, Keyring, KeyringFile},
    plane::RoleName,
    repository::{
        Actor, Beat, ControlSchema, CredentialPlace, CredentialSlot, Instances, KeyReport, NewSource,
        NewTenant, TenantAdmin, TenantRepository, open_credential,
    },
    secret::Credential,
    tenant::{
        DatabaseId, Domain, Endpoint, InstanceId, Isolation, Location, Role, SealedText, Seq, Server, Slug,
        Tenant, TenantStatus,
    },
    testing::conformance::Backend as _,
};
use control::{Postgres, WHO, by_hand, cluster, grants, owner, postgres, run, text};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection, PgConnection};

pub(crate) const ON_CALL: &str = "biplane_on_call";

/// A text of the form of a sealed one, which opens nothing, under the key of this id.
pub(crate) fn sealed(key: &str, mark: char) -> SealedText {
    SealedText::new(format!("bp1.{key}.{}", mark.to_string().repeat(96)))
}

pub(crate) fn by() -> Actor {
    Actor::new("ann", "INC-7")
}

/// A control plane, and whoever is on call.
pub(crate) async fn on_call() -> (Postgres, PgConnection) {
    let control = postgres().await;
    static ROLE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    ROLE.get_or_init(|| async { control::create_role(cluster().await, ON_CALL).await })
        .await;
    let grants = grants().on_call(RoleName::parse(ON_CALL).unwrap());
    let mut owner = owner(&control.database).await;
    ControlSchema::install_on(&mut owner, &grants).await.unwrap();
    let on_call = session(&control.database, ON_CALL).await;
    (control, on_call)
}

/// A session that has the rights of a role, and never more.
pub(crate) async fn session(database: &str, role: &str) -> PgConnection {
    let mut session = owner(database).await;
    run(&mut session, format!("set session authorization {role}"))
        .await
        .unwrap();
    session
}

pub(crate) fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

/// A tenant in status active, alone on a server.
pub(crate) async fn place(control: &Postgres, name: &str, host: &str, fenced: bool) -> Tenant {
    let admin = control.pg_admin();
    let server = Server::new(Endpoint::new(host, 5432), format!("{name}_data"));
    let mut source = NewSource::new(name, Location::Server(server));
    source.database_id = fenced.then(DatabaseId::new);
    let source = admin.create_source(&by(), source).await.unwrap();
    let tenant = admin
        .create(&by(), NewTenant::new(slug(name), source.id))
        .await
        .unwrap();
    admin
        .set_status(&by(), tenant.id, tenant.version, TenantStatus::Active)
        .await
        .unwrap()
}

#[tokio::test]
async fn each_name_of_a_tenant_tells_where_it_leads() {
    let (control, mut on_call) = on_call().await;
    let admin = control.pg_admin();
    let tenant = place(&control, "acme", "db1.example", true).await;
    let source = tenant.placement.source;
    for (role, slot, key, mark) in [
        (Role::App, CredentialSlot::Current, "00000000000000aa", 'a'),
        (Role::App, CredentialSlot::Next, "00000000000000bb", 'b'),
        (Role::Service, CredentialSlot::Current, "00000000000000aa", 'c'),
    ] {
        admin
            .set_credential(&by(), source, role, slot, None, sealed(key, mark))
            .await
            .unwrap();
    }
    let domain = Domain::parse("notes.acme.example").unwrap();
    let tenant = admin
        .add_domain(&by(), tenant.id, tenant.version, domain)
        .await
        .unwrap();
    for (kind, name, version) in [
        ("id", tenant.id.to_string(), ""),
        ("slug", "acme".to_owned(), "1"),
        ("domain", "notes.acme.example".to_owned(), "1"),
    ] {
        let row = text(
            &mut on_call,
            &format!(
                "select concat_ws(' | ', kind, name_version, changed_hands, tenant_id, slug, status, tenant_version, \
                 isolation, epoch, data_source, location, cluster, endpoints, database, tls_mode, pooler) \
                 from biplane_control.route_of where name = '{name}'"
            ),
        )
        .await;
        let version = if version.is_empty() {
            String::new()
        } else {
            format!("{version} | ")
        };
        assert_eq!(
            row,
            format!(
                "{kind} | {version}f | {} | acme | active | 3 | database | 1 | acme | server | db1.example:5432 | \
                 {{db1.example:5432}} | acme_data | prefer | direct",
                tenant.id
            )
        );
    }
    let credentials = "select credentials from biplane_control.route_of where name = 'acme'";
    assert_eq!(
        text(&mut on_call, credentials).await,
        "{\"app current v1 key 00000000000000aa\",\"app next v2 key 00000000000000bb\",\
         \"service current v1 key 00000000000000aa\"}"
    );
    let database_id = "select database_id is not null from biplane_control.route_of where name = 'acme'";
    assert_eq!(text(&mut on_call, database_id).await, "true");
}

#[tokio::test]
async fn a_name_that_changed_hands_says_so_and_a_free_one_leads_nowhere() {
    let (control, mut on_call) = on_call().await;
    let admin = control.pg_admin();
    let acme = place(&control, "acme", "db1.example", true).await;
    let other = place(&control, "other", "db2.example", true).await;
    let acme = admin
        .rename(&by(), acme.id, acme.version, slug("acme-2"))
        .await
        .unwrap();
    let free = "select concat_ws(' ', kind, name_version, changed_hands, coalesce(tenant_id::text, 'nobody'), endpoints)
        from biplane_control.route_of where name = 'acme'";
    assert_eq!(text(&mut on_call, free).await, "slug 2 t nobody {}");
    admin
        .rename(&by(), other.id, other.version, slug("acme"))
        .await
        .unwrap();
    let taken = "select concat_ws(' ', name_version, changed_hands, tenant_id, status)
        from biplane_control.route_of where name = 'acme'";
    assert_eq!(
        text(&mut on_call, taken).await,
        format!("3 t {} active", other.id)
    );
    let changed =
        "select string_agg(name, ' ' order by name) from biplane_control.route_of where changed_hands";
    assert_eq!(text(&mut on_call, changed).await, "acme other");
    admin
        .set_status(&by(), acme.id, acme.version, TenantStatus::Archived)
        .await
        .unwrap();
    let deleted = admin.delete(&by(), acme.id, acme.version.next()).await.unwrap();
    let reserved = "select concat_ws(' ', slug, status, changed_hands) from biplane_control.route_of where name = 'acme-2'";
    assert_eq!(text(&mut on_call, reserved).await, "acme-2 deleted f");
    assert_eq!(deleted.status, TenantStatus::Deleted);
}

/// Nothing but the data source that every installation has.
#[tokio::test]
async fn the_views_of_an_empty_control_plane_are_empty() {
    let (control, mut on_call) = on_call().await;
    for view in ["route_of", "instance_status", "unfenced", "credential_key"] {
        let rows = text(
            &mut on_call,
            &format!("select count(*) from biplane_control.{view}"),
        )
        .await;
        assert_eq!(rows, "0", "{view}");
    }
    // A process that has applied all there is, in a log that was pruned to nothing.
    control.pg_admin().prune_changes(Duration::ZERO).await.unwrap();
    let mut beat = Beat::new(InstanceId::new(), "notes");
    beat.applied = Seq::new(1);
    control.pg_tenants().beat(&beat).await.unwrap();
    let row =
        "select concat_ws(' ', service, state, applied_seq, log_seq, behind, behind_for, behind_pruned, keys,
        missing_primary) from biplane_control.instance_status";
    assert_eq!(text(&mut on_call, row).await, "notes alive 1 1 0 f {} {}");
}

#[tokio::test]
async fn a_process_that_lags_is_silent_or_lacks_the_primary_key_is_told() {
    let (control, mut on_call) = on_call().await;
    let tenants = control.pg_tenants();
    let keyring = || {
        let material = KeyMaterial::generate().unwrap();
        let id = material.id();
        (id, material)
    };
    let ((old, _), (new, _)) = (keyring(), keyring());
    let report = |id, state| KeyReport::new(id, state);
    let beat = async |service: &str, applied: u64, keys: Vec<KeyReport>| {
        let mut beat = Beat::new(InstanceId::new(), service);
        beat.applied = Seq::new(applied);
        beat.keys = keys;
        tenants.beat(&beat).await.unwrap();
    };
    place(&control, "acme", "db1.example", true).await;
    let head: u64 = text(&mut on_call, "select max(seq) from biplane_control.change")
        .await
        .parse()
        .unwrap();
    beat(
        "silent",
        head,
        vec![report(new, KeyState::Pending), report(old, KeyState::Primary)],
    )
    .await;
    control.pass(Duration::from_secs(120)).await;
    beat(
        "abreast",
        head,
        vec![report(new, KeyState::Primary), report(old, KeyState::DecryptOnly)],
    )
    .await;
    beat("behind", head - 2, vec![report(old, KeyState::Disabled)]).await;
    let rows = "select string_agg(concat_ws(' ', service, state, behind, behind_for is not null, keys,
        new_is_missing, old_is_missing), E'\\n' order by service) from (
            select *, missing_primary @> array[$new$] as new_is_missing, missing_primary @> array[$old$] as old_is_missing
            from biplane_control.instance_status) as rows"
        .replace("$new$", &format!("'{new}'"))
        .replace("$old$", &format!("'{old}'"));
    assert_eq!(
        text(&mut on_call, &rows).await,
        "abreast alive 0 f {\"primary\": 1, \"decrypt-only\": 1} f f\n\
         behind alive 2 t {\"disabled\": 1} t t\n\
         silent suspect 0 f {\"pending\": 1, \"primary\": 1} f f"
    );
    let silent = "select silent_for >= interval '2 minutes' from biplane_control.instance_status where service = 'silent'";
    assert_eq!(text(&mut on_call, silent).await, "true");
    control.pg_admin().prune_changes(Duration::ZERO).await.unwrap();
    let pruned = "select string_agg(service, ' ') from biplane_control.instance_status where behind_pruned";
    assert_eq!(text(&mut on_call, pruned).await, "behind");
}

#[tokio::test]
async fn data_sources_with_tenants_that_nothing_fences_are_counted() {
    let (control, mut on_call) = on_call().await;
    let admin = control.pg_admin();
    place(&control, "fenced", "db1.example", true).await;
    place(&control, "alone", "db2.example", false).await;
    let shared = NewSource::new("shared", Location::Memory);
    let shared = admin.create_source(&by(), shared).await.unwrap();
    admin
        .create_source(&by(), NewSource::new("empty", Location::Memory))
        .await
        .unwrap();
    for name in ["one", "two", "three"] {
        let mut tenant = NewTenant::new(slug(name), shared.id);
        tenant.isolation = Isolation::Row;
        let tenant = admin.create(&by(), tenant).await.unwrap();
        if name == "three" {
            admin.delete(&by(), tenant.id, tenant.version).await.unwrap();
        }
    }
    let rows = "select string_agg(concat_ws(' ', data_source, location, database, tenants), ', ' order by data_source)
        from biplane_control.unfenced";
    assert_eq!(
        text(&mut on_call, rows).await,
        "alone server alone_data 1, shared memory 2"
    );
    // What routers say when they start leaves out what no server holds.
    assert_eq!(control.pg_tenants().unfenced_sources().await.unwrap(), Some(1));
}

/// All that the role may do in the schema, as the catalogue says.
#[tokio::test]
async fn whoever_is_on_call_reads_everything_but_sealed_text_and_changes_nothing() {
    let (control, mut on_call) = on_call().await;
    let tenant = place(&control, "acme", "db1.example", true).await;
    let secret = sealed("00000000000000aa", 'q');
    control
        .pg_admin()
        .set_credential(
            &by(),
            tenant.placement.source,
            Role::App,
            CredentialSlot::Current,
            None,
            secret.clone(),
        )
        .await
        .unwrap();
    let mut owner = owner(&control.database).await;
    let held = text(
        &mut owner,
        &format!(
            "select string_agg(held, ' ' order by held) from (
                select class.relname || ':' || grants.privilege_type as held
                from pg_class as class, aclexplode(class.relacl) as grants
                where class.relnamespace = 'biplane_control'::regnamespace
                    and grants.grantee in (0, '{ON_CALL}'::regrole) and grants.privilege_type <> 'SELECT'
                union all
                select 'function ' || routine.proname from pg_proc as routine,
                    aclexplode(coalesce(routine.proacl, acldefault('f', routine.proowner))) as grants
                where routine.pronamespace = 'biplane_control'::regnamespace
                    and grants.grantee in (0, '{ON_CALL}'::regrole)) as all_of_them"
        ),
    )
    .await;
    assert_eq!(held, "", "it may read, and nothing else");
    let unreadable = "select string_agg(class.relname, ' ' order by class.relname) from pg_class as class
        where relnamespace = 'biplane_control'::regnamespace and relkind in ('r', 'v')
            and not has_table_privilege(class.oid, 'select')";
    assert_eq!(text(&mut on_call, unreadable).await, "credential");
    let columns = "select string_agg(attname, ' ' order by attnum) from pg_attribute
        where attrelid = 'biplane_control.credential'::regclass and attnum > 0
            and has_column_privilege(attrelid, attnum, 'select')";
    assert_eq!(
        text(&mut on_call, columns).await,
        "data_source_id role slot version"
    );
    for refused in [
        "select sealed from biplane_control.credential",
        "select * from biplane_control.record_opening(gen_random_uuid(), 'app', 'current')",
        "update biplane_control.tenant set status = 'suspended'",
        "select biplane_control.leave(gen_random_uuid())",
    ] {
        let code = by_hand(&mut on_call, refused).await.unwrap_err().0;
        assert_eq!(code, "42501", "{refused}");
    }
    // Whatever it can read, all of it.
    let readable = "select string_agg(format('select %L as place, to_jsonb(a)::text as held from biplane_control.%I as a',
            class.relname, class.relname), ' union all ')
        from pg_class as class where relnamespace = 'biplane_control'::regnamespace and relkind in ('r', 'v')
            and has_table_privilege(class.oid, 'select')";
    let readable = text(&mut on_call, readable).await;
    let all = text(
        &mut on_call,
        &format!("select string_agg(held, ' ') from ({readable}) as all_of_it"),
    )
    .await;
    assert!(
        all.contains("00000000000000aa") && all.contains("acme_data"),
        "{all}"
    );
    assert!(!all.contains("qqqq") && !all.contains(secret.as_str()));
}

/// A hundred thousand tenants, written without the triggers, which would take minutes.
#[tokio::test]
async fn looking_for_one_name_reads_no_table_from_end_to_end() {
    let (control, mut on_call) = on_call().await;
    let mut owner = owner(&control.database).await;
    run(
        &mut owner,
        "set session_replication_role = replica;
         insert into biplane_control.data_source (id, name, location)
            select md5('s' || n)::uuid, 's' || n, 'memory' from generate_series(1, 100000) as n;
         insert into biplane_control.tenant (id, slug, domains, data_source_id, status)
            select md5('t' || n)::uuid, 't' || n, array['t' || n || '.example'], md5('s' || n)::uuid, 'active'
            from generate_series(1, 100000) as n;
         insert into biplane_control.tenant_name (kind, name, tenant_id)
            select 'slug', slug, id from biplane_control.tenant
            union all select 'domain', domains[1], id from biplane_control.tenant;
         insert into biplane_control.credential (data_source_id, role, slot, sealed)
            select id, 'app', 'current', 'bp1.00000000000000aa.' || repeat('A', 96) from biplane_control.data_source;
         reset session_replication_role;
         analyze biplane_control.data_source; analyze biplane_control.tenant;
         analyze biplane_control.tenant_name; analyze biplane_control.credential",
    )
    .await
    .unwrap();
    let id = text(&mut on_call, "select md5('t77')::uuid").await;
    for (look, rows) in [
        ("name = 't77'".to_owned(), "1"),
        ("name = 't77.example'".to_owned(), "1"),
        (format!("name = '{id}'"), "1"),
        (format!("tenant_id = '{id}'"), "3"),
        ("name = 't77' and kind = 'slug'".to_owned(), "1"),
        (
            "tenant_id = (select tenant_id from biplane_control.route_of where name = 't77.example')"
                .to_owned(),
            "3",
        ),
    ] {
        let query = format!("select * from biplane_control.route_of where {look}");
        assert_eq!(
            text(&mut on_call, &format!("select count(*) from ({query}) as a")).await,
            rows
        );
        let plan = sqlx::query_scalar::<_, serde_json::Value>(sqlx::AssertSqlSafe(format!(
            "explain (format json) {query}"
        )))
        .fetch_one(&mut owner)
        .await
        .unwrap();
        assert!(!plan.to_string().contains("Seq Scan"), "{look}: {plan:#}");
    }
}

#[tokio::test]
async fn a_credential_is_opened_on_the_record_or_not_at_all() {
    let (control, mut on_call) = on_call().await;
    let admin = control.pg_admin();
    let tenant = place(&control, "acme", "db1.example", true).await;
    let keyring = |material| {
        Keyring::builder()
            .key(material, KeyState::Primary)
            .build()
            .unwrap()
    };
    let (ours, other) = (
        keyring(KeyMaterial::generate().unwrap()),
        keyring(KeyMaterial::generate().unwrap()),
    );
    let login = Credential::new("acme_app", SecretString::from("a-password-of-acme")).unwrap();
    let source = tenant.placement.source;
    let sealed = ours.seal_credential(source, Role::App, &login).unwrap();
    let current = CredentialSlot::Current;
    admin
        .set_credential(&by(), source, Role::App, current, None, sealed)
        .await
        .unwrap();
    let place = CredentialPlace::new(source, Role::App, current);
    let openings =
        "select count(*) from biplane_control.audit where changed ? 'credential.app.current.opened'";

    let opened = open_credential(&admin, &by(), place, &ours).await.unwrap();
    assert_eq!(opened.username(), "acme_app");
    assert_eq!(opened.password().unwrap().expose_secret(), "a-password-of-acme");
    assert_eq!(text(&mut on_call, openings).await, "1");

    // Keys that do not open it: the attempt is on the record as well, and the error names the key that is wanted.
    let refused = open_credential(&admin, &by(), place, &other).await.unwrap_err();
    let key = Some(ours.primary());
    assert_eq!(refused.kind(), ErrorKind::CredentialUnreadable { key });
    assert!(
        refused.to_string().contains(&ours.primary().to_string()),
        "{refused}"
    );
    assert_eq!(text(&mut on_call, openings).await, "2");

    // What cannot be committed: no entry, and no credential.
    let mut owner = owner(&control.database).await;
    run(
        &mut owner,
        "create function public.full() returns trigger language plpgsql as
            $f$ begin raise exception using errcode = '53100', message = 'no room'; end $f$;
         create constraint trigger zz_full after insert on biplane_control.audit
            deferrable initially deferred for each row execute function public.full()",
    )
    .await
    .unwrap();
    let refused = open_credential(&admin, &by(), place, &ours).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ControlPlaneUnavailable);
    assert_eq!(text(&mut on_call, openings).await, "2");
}

/// A role that commits without waiting for the disk still has its openings there when it is given the credential.
#[tokio::test]
async fn an_opening_waits_for_the_disk_whatever_the_session_says() {
    let (control, _) = on_call().await;
    let tenant = place(&control, "acme", "db1.example", true).await;
    let mut admin = session(&control.database, control::ADMIN).await;
    let source = tenant.placement.source;
    control
        .pg_admin()
        .set_credential(
            &by(),
            source,
            Role::App,
            CredentialSlot::Current,
            None,
            sealed("00000000000000aa", 'a'),
        )
        .await
        .unwrap();
    run(&mut admin, format!("set synchronous_commit = off; begin; {WHO}"))
        .await
        .unwrap();
    let opening = format!(
        "select sealed is not null from biplane_control.record_opening('{source}', 'app', 'current')"
    );
    assert_eq!(text(&mut admin, &opening).await, "true");
    assert_eq!(
        text(&mut admin, "current_setting('synchronous_commit')").await,
        "on"
    );
    run(&mut admin, "commit").await.unwrap();
    assert_eq!(
        text(&mut admin, "current_setting('synchronous_commit')").await,
        "off"
    );
    admin.close().await.unwrap();
}

/// As somebody would run it at night, from the keys in a file.
#[tokio::test]
async fn the_program_prints_one_login_and_nothing_else_and_says_by_its_exit_code_what_is_wrong() {
    let (control, mut on_call) = on_call().await;
    let tenant = place(&control, "acme", "db1.example", true).await;
    let directory = tempfile::tempdir().unwrap();
    let keys = |name: &str| {
        let (path, material) = (directory.path().join(name), KeyMaterial::generate().unwrap());
        KeyringFile::create(&path, &KeyringFile::new(material)).unwrap();
        path
    };
    let (ours, other) = (keys("ours.json"), keys("other.json"));
    let keyring = KeyringFile::load(&ours).unwrap().into_keyring().unwrap();
    let login = Credential::new("acme_app", SecretString::from("a-password-of-acme")).unwrap();
    let source = tenant.placement.source;
    let sealed = keyring.seal_credential(source, Role::App, &login).unwrap();
    let slot = CredentialSlot::Current;
    let admin = control.pg_admin();
    admin
        .set_credential(&by(), source, Role::App, slot, None, sealed)
        .await
        .unwrap();

    let endpoint = cluster().await.endpoint();
    let who = control::login(control::ADMIN);
    let password = who.password().unwrap().expose_secret().to_owned();
    let url = format!(
        "postgres://{}:{password}@{endpoint}/{}",
        who.username(),
        control.database
    );
    let program = |keys: &Path, arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args([
                "run",
                "--quiet",
                "--all-features",
                "--example",
                "open_credential",
                "--manifest-path",
            ])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .arg("--")
            .args(arguments)
            .env("BIPLANE_CONTROL_URL", &url)
            .env("BIPLANE_KEYRING", keys)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let who = ["--by", "ann", "--reason", "INC-7"];
    let asked = |rest: &[&'static str]| [&who[..], rest].concat();
    let opened = program(&ours, &asked(&["acme", "app"]));
    let printed = "acme_app\na-password-of-acme\n".to_owned();
    assert_eq!(opened, (Some(0), printed, String::new()));
    let entry = "select concat_ws(' ', actor, reason, session_role) from biplane_control.audit order by id desc limit 1";
    assert_eq!(
        text(&mut on_call, entry).await,
        format!("ann INC-7 {}", control::ADMIN)
    );

    for (keys, arguments, code, said) in [
        (&ours, vec!["acme", "app"], 2, "say who you are with --by"),
        (
            &ours,
            vec!["--by", "ann", "acme", "app"],
            2,
            "say why with --reason",
        ),
        (&ours, asked(&["acme"]), 2, "name a data source and a role"),
        (&ours, asked(&["acme", "owner"]), 2, "there is no such role"),
        (&ours, asked(&["nobody", "app"]), 3, "data source"),
        (
            &ours,
            asked(&["acme", "app", "next"]),
            3,
            "the slot next of data source acme is empty",
        ),
        (&other, asked(&["acme", "app"]), 4, "key"),
    ] {
        let (got, printed, complaint) = program(keys, &arguments);
        assert_eq!((got, &*printed), (Some(code), ""), "{arguments:?}: {complaint}");
        assert!(complaint.contains(said), "{arguments:?}: {complaint}");
        assert!(!complaint.contains("a-password"), "{complaint}");
    }
    let tried = "select count(*) from biplane_control.audit where changed ? 'credential.app.current.opened'";
    assert_eq!(
        text(&mut on_call, tried).await,
        "2",
        "one that opened, and one whose keys did not"
    );
}
