//! A warm lookup takes nothing from the heap.

use biplane::tenant::TenantName;
use futures_util::FutureExt;

use crate::support::{Steps, domain, world};

#[tokio::test]
async fn no_kind_of_name_allocates() {
    let world = world();
    let acme = world.control.tenant("acme").await;
    let names = [
        TenantName::Id(acme.id),
        TenantName::Slug(acme.slug),
        TenantName::Domain(domain("acme.example")),
    ];
    for name in &names {
        world.biplane.route(name).await.unwrap();
    }
    let look_up = || {
        for name in &names {
            world.biplane.cached(name).expect("it is warm");
            let routed = world.biplane.route(name).now_or_never();
            routed.expect("warm, it does not wait").expect("it is warm");
        }
    };
    // What a thread allocates once, on its first lookup, is not of the lookup.
    look_up();
    let counted = allocation_counter::measure(look_up);
    assert_eq!(counted.count_total, 0);
}
