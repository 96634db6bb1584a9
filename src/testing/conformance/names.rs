//! How names are given, taken and change hands.

use super::{
    Backend,
    support::{World, by, domain, expect_kind, find_one, new_tenant, owner_of, slug, tenant_of},
};
use crate::{
    error::ErrorKind,
    tenant::{TenantRef, TenantStatus},
};

/// After a rename the new slug leads to the tenant and the old one to nobody.
pub async fn rename_moves_the_tenant(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let renamed = world
        .admin
        .rename(&by(), acme.id, acme.version, slug("acme-corp"))
        .await
        .expect("a free slug is accepted");
    assert_eq!(renamed.slug, slug("acme-corp"));
    assert_eq!(
        tenant_of(&*world.tenants, TenantRef::Slug(&slug("acme-corp"))).await,
        renamed
    );
    let old = find_one(&*world.tenants, TenantRef::Slug(&slug("acme"))).await;
    assert_eq!(old.expect("it can be told"), None);
}

/// A slug that a rename set free can be given to another tenant, and its name then has a higher version, so that a route
/// cached under the old owner is recognised.
pub async fn a_released_slug_has_a_higher_version_for_its_next_owner(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let first = world.tenant("acme", east).await;
    let name = slug("acme");
    let (_, before) = owner_of(&*world.tenants, TenantRef::Slug(&name))
        .await
        .expect("it is found");
    world
        .admin
        .rename(&by(), first.id, first.version, slug("acme-old"))
        .await
        .expect("a free slug is accepted");
    let second = world.tenant("acme", east).await;
    let (owner, after) = owner_of(&*world.tenants, TenantRef::Slug(&name))
        .await
        .expect("it is found");
    assert_eq!(owner, second.id);
    assert!(after > before, "{after} after {before}");
}

/// The version of a name stays while other things about its tenant change.
pub async fn a_name_keeps_its_version_while_it_keeps_its_owner(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let name = slug("acme");
    let before = owner_of(&*world.tenants, TenantRef::Slug(&name)).await;
    world.bring(acme, TenantStatus::Suspended).await;
    assert_eq!(owner_of(&*world.tenants, TenantRef::Slug(&name)).await, before);
}

/// A slug that another tenant has is refused, to a new tenant and to a renamed one, and nothing of the attempt remains.
pub async fn a_taken_slug_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let other = world.tenant("other", east).await;
    let mut thief = new_tenant("acme", east);
    thief.domains = vec![domain("thief.example")];
    let thief_id = thief.id;
    expect_kind(world.admin.create(&by(), thief).await, ErrorKind::AlreadyExists);
    let left = find_one(&*world.tenants, TenantRef::Id(thief_id)).await;
    assert_eq!(left.expect("it can be told"), None);
    let left = find_one(&*world.tenants, TenantRef::Domain(&domain("thief.example"))).await;
    assert_eq!(left.expect("it can be told"), None);
    let renamed = world
        .admin
        .rename(&by(), other.id, other.version, slug("acme"))
        .await;
    expect_kind(renamed, ErrorKind::AlreadyExists);
    assert_eq!(world.read(other.id).await, other);
    assert_eq!(world.read(acme.id).await, acme);
}

/// The id of a tenant cannot be given again, not even after its deletion.
pub async fn a_taken_id_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant_in("acme", east, TenantStatus::Deleted).await;
    let mut again = new_tenant("again", east);
    again.id = acme.id;
    expect_kind(world.admin.create(&by(), again).await, ErrorKind::AlreadyExists);
    let name = find_one(&*world.tenants, TenantRef::Slug(&slug("again"))).await;
    assert_eq!(name.expect("it can be told"), None);
}

/// The slug of a deleted tenant stays reserved.
pub async fn the_slug_of_a_deleted_tenant_stays_reserved(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant_in("acme", east, TenantStatus::Archived).await;
    let acme = world
        .admin
        .delete(&by(), acme.id, acme.version)
        .await
        .expect("an archived tenant can be deleted");
    assert_eq!(acme.status, TenantStatus::Deleted);
    let again = world.admin.create(&by(), new_tenant("acme", east)).await;
    expect_kind(again, ErrorKind::AlreadyExists);
    let other = world.tenant("other", east).await;
    let renamed = world
        .admin
        .rename(&by(), other.id, other.version, slug("acme"))
        .await;
    expect_kind(renamed, ErrorKind::AlreadyExists);
    assert_eq!(
        tenant_of(&*world.tenants, TenantRef::Slug(&slug("acme"))).await,
        acme
    );
}

/// Domains are added and removed one by one, are sorted in the record, and lead to the tenant while it has them.
pub async fn domains_come_and_go(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut acme = world.tenant("acme", east).await;
    for name in ["shop.example", "app.example", "web.example"] {
        acme = world
            .admin
            .add_domain(&by(), acme.id, acme.version, domain(name))
            .await
            .expect("a free domain is accepted");
    }
    assert_eq!(
        acme.domains,
        ["app.example", "shop.example", "web.example"].map(domain)
    );
    assert_eq!(world.read(acme.id).await, acme);
    let acme = world
        .admin
        .remove_domain(&by(), acme.id, acme.version, &domain("shop.example"))
        .await
        .expect("its own domain can be taken from it");
    assert_eq!(acme.domains, ["app.example", "web.example"].map(domain));
    let gone = find_one(&*world.tenants, TenantRef::Domain(&domain("shop.example"))).await;
    assert_eq!(gone.expect("it can be told"), None);
    assert_eq!(
        tenant_of(&*world.tenants, TenantRef::Domain(&domain("web.example"))).await,
        acme
    );
}

/// A domain that another tenant has is refused, to a new tenant and to an existing one.
pub async fn a_taken_domain_is_refused(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let acme = world.tenant("acme", east).await;
    let acme = world
        .admin
        .add_domain(&by(), acme.id, acme.version, domain("shop.example"))
        .await
        .expect("a free domain is accepted");
    let other = world.tenant("other", east).await;
    let added = world
        .admin
        .add_domain(&by(), other.id, other.version, domain("shop.example"))
        .await;
    expect_kind(added, ErrorKind::AlreadyExists);
    let mut new = new_tenant("third", east);
    new.domains = vec![domain("free.example"), domain("shop.example")];
    expect_kind(world.admin.create(&by(), new).await, ErrorKind::AlreadyExists);
    for name in ["free.example", "shop.example"] {
        let name = domain(name);
        let owner = owner_of(&*world.tenants, TenantRef::Domain(&name)).await;
        let expected = (name.as_str() == "shop.example").then_some(acme.id);
        assert_eq!(owner.map(|(owner, _)| owner), expected, "{name}");
    }
}

/// A domain that one tenant gave up can go to another, and its name then has a higher version.
pub async fn a_domain_that_changes_hands_has_a_higher_version(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let shop = domain("shop.example");
    let mut new = new_tenant("acme", east);
    new.domains = vec![shop.clone()];
    let acme = world
        .admin
        .create(&by(), new)
        .await
        .expect("a new tenant is accepted");
    let (_, before) = owner_of(&*world.tenants, TenantRef::Domain(&shop))
        .await
        .expect("it is found");
    world
        .admin
        .remove_domain(&by(), acme.id, acme.version, &shop)
        .await
        .expect("its own domain can be taken from it");
    let other = world.tenant("other", east).await;
    world
        .admin
        .add_domain(&by(), other.id, other.version, shop.clone())
        .await
        .expect("a free domain is accepted");
    let (owner, after) = owner_of(&*world.tenants, TenantRef::Domain(&shop))
        .await
        .expect("it is found");
    assert_eq!(owner, other.id);
    assert!(after > before, "{after} after {before}");
}

/// Taking a domain from a tenant that does not have it is refused, also when another tenant has it.
pub async fn only_its_own_domain_is_taken_from_a_tenant(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let mut new = new_tenant("acme", east);
    new.domains = vec![domain("shop.example")];
    let acme = world
        .admin
        .create(&by(), new)
        .await
        .expect("a new tenant is accepted");
    let other = world.tenant("other", east).await;
    for name in ["shop.example", "nobody.example"] {
        let removed = world
            .admin
            .remove_domain(&by(), other.id, other.version, &domain(name))
            .await;
        expect_kind(removed, ErrorKind::InvalidInput);
    }
    assert_eq!(world.read(acme.id).await.domains, [domain("shop.example")]);
}

/// Deletion frees the domains.
pub async fn deletion_frees_the_domains(backend: &dyn Backend) {
    let world = World::of(backend);
    let east = world.source("east").await;
    let shop = domain("shop.example");
    let mut new = new_tenant("acme", east);
    new.domains = vec![shop.clone()];
    let acme = world
        .admin
        .create(&by(), new)
        .await
        .expect("a new tenant is accepted");
    let acme = world
        .admin
        .delete(&by(), acme.id, acme.version)
        .await
        .expect("a tenant that is being provisioned can be deleted");
    assert!(acme.domains.is_empty());
    let gone = find_one(&*world.tenants, TenantRef::Domain(&shop)).await;
    assert_eq!(gone.expect("it can be told"), None);
    let mut next = new_tenant("next", east);
    next.domains = vec![shop.clone()];
    let next = world.admin.create(&by(), next).await.expect("the domain is free");
    assert_eq!(
        tenant_of(&*world.tenants, TenantRef::Domain(&shop)).await.id,
        next.id
    );
}
