//! Runs the page `manual::runbook`: every block of SQL, in the order of the page and with the rights that it says it
//! needs, on a control plane that has had the bad day.

use std::collections::BTreeMap;

use biplane::{
    repository::{Beat, CredentialSlot, Instances, TenantAdmin},
    tenant::{Domain, InstanceId, Role, TenantStatus},
};
use serde_json::Value;
use sqlx::{Column as _, PgConnection, Row as _, postgres::PgRow};

use super::{Postgres, by, on_call, place, sealed, session, slug};
use crate::control::{ADMIN, by_hand, owner, run, text};

const PAGE: &str = include_str!("../../src/manual/runbook.md");

/// A fenced block: the words after the fence, and the text.
fn blocks() -> Vec<(Vec<&'static str>, &'static str)> {
    let mut pieces = PAGE.split("```");
    pieces.next();
    let mut blocks = Vec::new();
    while let (Some(block), Some(_)) = (pieces.next(), pieces.next()) {
        let (tags, text) = block.split_once('\n').unwrap();
        blocks.push((tags.split_whitespace().collect(), text));
    }
    blocks
}

/// The tenants, names, processes and mistakes that the page speaks of.
async fn bad_day(control: &Postgres) {
    let admin = control.pg_admin();
    let acme = place(control, "acme", "db1.example", true).await;
    let source = acme.placement.source;
    for (role, mark) in [(Role::App, 'a'), (Role::Service, 'b')] {
        let text = sealed("00000000000000aa", mark);
        admin
            .set_credential(&by(), source, role, CredentialSlot::Current, None, text)
            .await
            .unwrap();
    }
    let domain = Domain::parse("notes.acme.example").unwrap();
    admin
        .add_domain(&by(), acme.id, acme.version, domain)
        .await
        .unwrap();
    let other = place(control, "old-name", "db2.example", false).await;
    admin
        .rename(&by(), other.id, other.version, slug("new-name"))
        .await
        .unwrap();
    let initech = place(control, "initech", "db3.example", true).await;
    let suspended = TenantStatus::Suspended;
    admin
        .set_status(&by(), initech.id, initech.version, suspended)
        .await
        .unwrap();
    // Behind a pooler, and checked by a certificate of its own.
    let pooled = "update biplane_control.data_source set pooler = 'transaction', max_prepared_statements = 7, region = 'eu',
        tls_mode = 'verify-full', tls_ca_pem = 'PEM', tls_ca_file = null where name = 'acme'";
    by_hand(&mut owner(&control.database).await, pooled)
        .await
        .unwrap();
    let bulk = place(control, "bulk", "db4.example", true).await;
    let job = biplane::repository::Actor::new("nightly-job", "a typo");
    admin
        .set_status(&job, bulk.id, bulk.version, suspended)
        .await
        .unwrap();
    let beat = Beat::new(
        InstanceId::from_uuid("00000000-0000-0000-0000-0000000000d1".parse().unwrap()),
        "notes",
    );
    control.pg_tenants().beat(&beat).await.unwrap();
    let alive = Beat::new(InstanceId::new(), "web");
    control.pg_tenants().beat(&alive).await.unwrap();
    let place = biplane::repository::CredentialPlace::new(source, Role::App, CredentialSlot::Current);
    biplane::repository::CredentialStore::record_opening(&admin, &by(), place)
        .await
        .unwrap();
    // It was moved away and not back.
    let elsewhere = biplane::repository::NewSource::new("elsewhere", biplane::tenant::Location::Memory);
    let elsewhere = admin.create_source(&by(), elsewhere).await.unwrap();
    by_hand(
        &mut owner(&control.database).await,
        &format!(
            "update biplane_control.tenant set data_source_id = '{}' where slug = 'new-name'",
            elsewhere.id
        ),
    )
    .await
    .unwrap();
}

/// The file says of the only data source in it what the control plane says.
async fn is_served_as_it_is(session: &mut PgConnection, file: &str) {
    let file: Value = serde_json::from_str(file).unwrap();
    let kept = text(
        session,
        "select row_to_json(source)::text from biplane_control.data_source as source where name = 'acme'",
    )
    .await;
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let said = &file["sources"][0];
    for (field, column) in [
        ("name", "name"),
        ("id", "id"),
        ("cluster", "cluster"),
        ("region", "region"),
        ("endpoints", "endpoints"),
        ("database", "database"),
        ("tls", "tls_mode"),
        ("ca_file", "tls_ca_file"),
        ("ca_pem", "tls_ca_pem"),
        ("pooler", "pooler"),
        ("max_prepared_statements", "max_prepared_statements"),
        ("database_id", "database_id"),
    ] {
        assert_eq!(said[field], kept[column], "{field}");
    }
    assert_eq!(kept["pooler"], "transaction", "the page's own example has one");
}

/// The columns of what a block gives, and how many rows.
async fn answer(session: &mut PgConnection, sql: &'static str) -> (Vec<String>, Vec<PgRow>) {
    let rows = sqlx::raw_sql(sql).fetch_all(session).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error}: {sql}"));
    let columns = rows.first().map_or_else(Vec::new, |row| {
        row.columns()
            .iter()
            .map(|column| column.name().to_owned())
            .collect()
    });
    (columns, rows)
}

#[tokio::test]
async fn every_statement_of_the_runbook_works_and_gives_what_the_page_says() {
    let (control, on_call) = on_call().await;
    bad_day(&control).await;
    let mut sessions = BTreeMap::from([
        ("", on_call),
        ("admin", session(&control.database, ADMIN).await),
        ("owner", owner(&control.database).await),
    ]);
    // The moved tenant of the page is acme: its section is run on one that was moved.
    run(
        sessions.get_mut("owner").unwrap(),
        "begin; set local biplane.actor = 'bob'; set local biplane.reason = 'a slip of the hand';
         insert into biplane_control.data_source (id, name, location)
            values ('00000000-0000-0000-0000-0000000000e1', 'wrong', 'memory'); commit",
    )
    .await
    .unwrap();
    let mut run_blocks = 0;
    let mut blocks = blocks().into_iter().peekable();
    while let Some((tags, sql)) = blocks.next() {
        match tags[..] {
            ["sql", ref who @ ..] => {
                if sql.contains("was_on") {
                    let moved = "update biplane_control.tenant
                        set data_source_id = '00000000-0000-0000-0000-0000000000e1' where slug = 'acme'";
                    by_hand(sessions.get_mut("owner").unwrap(), moved).await.unwrap();
                }
                let who = who.first().copied().unwrap_or_default();
                let session = sessions
                    .get_mut(who)
                    .expect("the page says on call, admin or owner");
                let (columns, rows) = answer(session, sql).await;
                run_blocks += 1;
                if let Some((_, shape)) = blocks.next_if(|(tags, _)| tags == &["text"]) {
                    let shape: Vec<&str> = shape.trim().split('|').map(str::trim).collect();
                    assert!(!rows.is_empty(), "the page's own example finds nothing: {sql}");
                    assert_eq!(columns, shape, "{sql}");
                }
                if sql.contains("jsonb_pretty") {
                    let file: String = rows[0].get(0);
                    let overrides = biplane::router::Overrides::parse(&file).unwrap();
                    assert_eq!(overrides.tenants().count(), 1, "{file}");
                    is_served_as_it_is(session, &file).await;
                }
            }
            _ => panic!("a block of the page is neither SQL nor the shape of its answer: {tags:?}"),
        }
    }
    assert!(run_blocks >= 20, "{run_blocks}");

    // And what the page sets out to change has changed.
    let owner = sessions.get_mut("owner").unwrap();
    let state = text(
        owner,
        "select string_agg(concat_ws(' ', slug, status, data_source, endpoints), ', ' order by slug)
         from biplane_control.route_of where kind = 'slug' and slug in ('acme', 'initech', 'bulk')",
    )
    .await;
    assert_eq!(
        state,
        "acme active acme {db2.example:5432}, bulk active bulk {db4.example:5432}, \
         initech active initech {db3.example:5432}"
    );
    let left = "select string_agg(service, ' ') from biplane_control.instance_status";
    assert_eq!(text(owner, left).await, "web");
}

/// The tables of the page name every view that there is for it.
#[tokio::test]
async fn the_runbook_names_every_view() {
    let (control, _) = on_call().await;
    let views = "select string_agg(viewname, ' ' order by viewname) from pg_views where schemaname = 'biplane_control'";
    let views = text(&mut owner(&control.database).await, views).await;
    assert_eq!(views, "credential_key instance_status route_of unfenced");
    for view in views.split(' ') {
        assert!(PAGE.contains(&format!("| `{view}` |")), "{view}");
    }
}
