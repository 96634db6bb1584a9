//! What a file takes from the control plane, when that changes.

use std::time::Duration;

use biplane::{
    Biplane,
    repository::{ChangeSource, CredentialSlot, NewSource, SourceChange, TenantAdmin},
    tenant::{Location, Role},
    testing::{
        faulty::{Fault, FaultyRepository},
        wait,
    },
};
use serde_json::json;

use crate::{
    Desk, PATIENCE,
    control::cluster,
    copy_of, database_of, file, often,
    planes::{Planes, by},
};

/// How a change of a data source comes to be known.
#[derive(Clone, Copy, Debug)]
enum Heard {
    /// The log tells of it.
    Told,
    /// The log was pruned before it was read.
    Missed,
    /// The control plane was restored.
    Restored,
    /// The log tells of it while routing is frozen.
    Frozen,
}

#[tokio::test]
async fn a_source_that_has_changed_is_looked_up_again() {
    leads_to_the_new_place(Heard::Told).await;
}

#[tokio::test]
async fn so_is_one_whose_change_was_missed() {
    leads_to_the_new_place(Heard::Missed).await;
}

#[tokio::test]
async fn so_is_one_of_a_control_plane_that_was_restored() {
    leads_to_the_new_place(Heard::Restored).await;
}

#[tokio::test]
async fn frozen_routing_stays_where_it_is_until_the_thaw() {
    leads_to_the_new_place(Heard::Frozen).await;
}

async fn leads_to_the_new_place(heard: Heard) {
    let planes = Planes::memory().await;
    let acme = planes.add("acme").await;
    let (old, new) = (
        copy_of(&acme, "old", acme.database_id).await,
        copy_of(&acme, "new", acme.database_id).await,
    );
    let control = planes.memory_control();
    let cluster = cluster().await;
    let standby = NewSource::new("standby", Location::Server(cluster.server(&old)));
    let standby = control.create_source(&by(), standby).await.unwrap();
    let sealed = planes
        .keyring
        .seal_credential(standby.id, Role::App, &acme.login)
        .unwrap();
    control
        .set_credential(
            &by(),
            standby.id,
            Role::App,
            CredentialSlot::Current,
            None,
            sealed,
        )
        .await
        .unwrap();

    let desk = Desk::new();
    let tenants = json!([{ "tenant": acme.tenant.id, "source": "standby" }]);
    desk.put(file(json!([]), tenants), 0o644);
    let log = FaultyRepository::new(control.clone());
    let biplane = planes
        .builder()
        .changes(ChangeSource::polled(log.clone()))
        .feed(often())
        .overrides(desk.path())
        .build()
        .unwrap();
    wait::until("the feed has its position", PATIENCE, async || {
        biplane.stats().feed.applied.is_some()
    })
    .await
    .unwrap();
    assert_eq!(led_to(&biplane, &acme.tenant.slug).await, old);

    log.set(Fault::Unreachable);
    if let Heard::Frozen = heard {
        biplane.freeze().await;
    }
    let moved = SourceChange::default().location(Location::Server(cluster.server(&new)));
    let standby = control.source("standby").await.unwrap().unwrap();
    control
        .update_source(&by(), standby.id, standby.version, moved)
        .await
        .unwrap();
    match heard {
        Heard::Told | Heard::Frozen => {}
        Heard::Missed => assert_ne!(control.prune_changes(Duration::ZERO), 0),
        Heard::Restored => _ = control.renew_incarnation(),
    }
    log.set(Fault::None);
    if let Heard::Frozen = heard {
        wait::until("the feed has read the change", PATIENCE, async || {
            biplane.stats().brake.held_tenants > 0
        })
        .await
        .unwrap();
        assert_eq!(led_to(&biplane, &acme.tenant.slug).await, old);
        biplane.thaw().await;
    }
    wait::until("the tenant is led to the new place", PATIENCE, async || {
        led_to(&biplane, &acme.tenant.slug).await == new
    })
    .await
    .unwrap();
}

async fn led_to(biplane: &Biplane, slug: &biplane::tenant::Slug) -> String {
    database_of(&biplane.route(slug).await.unwrap()).await
}
