//! What a [`TenantRepository`] must do.

use std::{collections::HashSet, sync::Arc};

use super::{
    ReadBackend,
    support::{at_most, domain, expect_kind, find_one, seeded, slug},
};
use crate::{
    error::ErrorKind,
    repository::{Found, PageItem, TenantRepository},
    tenant::{Tenant, TenantId, TenantName, TenantRecord, TenantRef, TenantStatus, Version},
};

/// A tenant is found by its id, its slug and each of its domains, with everything that was stored of it and of its data
/// source.
pub async fn finds_by_id_slug_and_domain(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    for stored in &examples {
        for name in names_of(&stored.tenant) {
            let found = find_one(&*tenants, name.as_ref())
                .await
                .expect("the record is readable");
            let found = found.unwrap_or_else(|| panic!("{name} names a tenant"));
            assert_same(&found.record, stored);
        }
    }
}

/// Names that nobody has are `None`, never an error.
pub async fn unknown_names_are_none(backend: &dyn ReadBackend) {
    let (tenants, _) = seeded(backend).await;
    let (slug, domain) = (slug("nobody"), domain("nobody.example"));
    for name in [
        TenantRef::Id(TenantId::new()),
        TenantRef::Slug(&slug),
        TenantRef::Domain(&domain),
    ] {
        assert_eq!(find_one(&*tenants, name).await.expect("it can be told"), None);
    }
}

/// A slug is looked up among slugs alone and a domain among domains, whole.
pub async fn names_are_matched_whole_and_by_kind(backend: &dyn ReadBackend) {
    let (tenants, _) = seeded(backend).await;
    let part = slug("tenant");
    let pattern = slug("a1");
    let parent = domain("b1.example");
    for name in [
        TenantRef::Slug(&part),
        TenantRef::Slug(&pattern),
        TenantRef::Domain(&parent),
    ] {
        assert_eq!(find_one(&*tenants, name).await.expect("it can be told"), None);
    }
}

/// The answer has one outcome for each name, in the order of the names: known and unknown ones mixed, each kind of name
/// mixed, and a name that occurs twice answered twice.
pub async fn outcomes_are_in_the_order_of_the_names(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let mut asked: Vec<(TenantName, Option<TenantId>)> = Vec::new();
    for (n, record) in examples.iter().enumerate().rev() {
        for name in names_of(&record.tenant) {
            asked.push((name.clone(), Some(record.tenant.id)));
            asked.push((TenantName::Slug(slug(&format!("nobody-{n}"))), None));
            asked.push((name, Some(record.tenant.id)));
        }
        asked.push((TenantName::Id(TenantId::new()), None));
    }
    let names: Vec<TenantRef<'_>> = asked.iter().map(|(name, _)| name.as_ref()).collect();
    let found = tenants.find(&names).await.expect("the control plane answers");
    let got: Vec<Option<TenantId>> = found.iter().map(id_of).collect();
    let expected: Vec<Option<TenantId>> = asked.iter().map(|(_, id)| *id).collect();
    assert_eq!(got, expected);
}

/// Asking for nothing is answered with nothing.
pub async fn no_names_no_outcomes(backend: &dyn ReadBackend) {
    let (tenants, _) = seeded(backend).await;
    let found = tenants.find(&[]).await.expect("the control plane answers");
    assert!(found.is_empty());
}

/// Hundreds of names are answered in one call.
pub async fn many_names_in_one_call(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let known: Vec<TenantRef<'_>> = examples
        .iter()
        .map(|record| TenantRef::Slug(&record.tenant.slug))
        .collect();
    let names: Vec<TenantRef<'_>> = known.iter().copied().cycle().take(1_000).collect();
    let found = tenants.find(&names).await.expect("the control plane answers");
    let ids = examples.iter().map(|record| Some(record.tenant.id)).cycle();
    assert!(found.iter().map(id_of).eq(ids.take(1_000)));
}

/// A record that cannot be understood is `MalformedRecord` of its own names alone; the others of the call are found, and
/// it is never reported as unknown.
pub async fn one_malformed_record_is_its_own_error(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let broken = &examples[2].tenant;
    assert!(!broken.domains.is_empty(), "the example has domains");
    backend.spoil(broken.id).await;
    let names: Vec<TenantName> = examples
        .iter()
        .flat_map(|record| names_of(&record.tenant))
        .collect();
    let refs: Vec<TenantRef<'_>> = names.iter().map(TenantName::as_ref).collect();
    let found = tenants.find(&refs).await.expect("the call itself succeeds");
    assert_eq!(found.len(), names.len());
    let of_broken: HashSet<TenantName> = names_of(broken).into_iter().collect();
    for (name, found) in names.iter().zip(found) {
        if of_broken.contains(name) {
            expect_kind(found, ErrorKind::MalformedRecord);
        } else {
            assert!(id_of(&found).is_some(), "{name} is still found");
        }
    }
}

/// A slug or a domain comes with the version of that name; an id has none.
pub async fn names_have_versions_and_ids_have_none(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    for name in examples.iter().flat_map(|record| names_of(&record.tenant)) {
        let found = find_one(&*tenants, name.as_ref())
            .await
            .expect("the record is readable")
            .unwrap_or_else(|| panic!("{name} names a tenant"));
        match name {
            TenantName::Id(_) => assert_eq!(found.name_version, None),
            _ => assert!(found.name_version >= Some(Version::FIRST), "{name} has a version"),
        }
    }
}

/// A deleted tenant is found by its id and by its slug, which stays reserved, and says that it is deleted.
pub async fn deleted_tenants_are_found_as_deleted(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let deleted = examples
        .iter()
        .map(|record| &record.tenant)
        .find(|tenant| tenant.status == TenantStatus::Deleted)
        .expect("one example is deleted");
    for name in [TenantRef::Id(deleted.id), TenantRef::Slug(&deleted.slug)] {
        let found = find_one(&*tenants, name).await.expect("the record is readable");
        let found = found.unwrap_or_else(|| panic!("{name} names a tombstone"));
        assert_eq!(found.record.tenant.status, TenantStatus::Deleted);
    }
}

/// The tenants of one call share one copy of their data source, so that a thousand of them do not hold a thousand.
pub async fn one_call_shares_data_sources(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let names: Vec<TenantRef<'_>> = examples[..3]
        .iter()
        .map(|record| TenantRef::Id(record.tenant.id))
        .collect();
    let found = tenants.find(&names).await.expect("the control plane answers");
    let sources: Vec<_> = found
        .into_iter()
        .map(|found| {
            let found = found.expect("the record is readable").expect("it exists");
            Arc::clone(&found.record.source)
        })
        .collect();
    assert!(sources.iter().all(|source| Arc::ptr_eq(source, &sources[0])));
}

/// Pages of every size give each tenant once, in order of id, deleted ones included, and only the last page has no next.
pub async fn list_pages_have_no_gaps_and_no_repeats(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let mut ids: Vec<TenantId> = examples.iter().map(|record| record.tenant.id).collect();
    ids.sort_unstable();
    for size in 1..=ids.len() as u32 + 1 {
        assert_eq!(list_all(&*tenants, size).await, ids, "pages of {size}");
    }
}

/// A list has the same records as lookups.
pub async fn list_has_whole_records(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let page = tenants
        .list(None, at_most(100))
        .await
        .expect("the control plane answers");
    assert_eq!(page.items.len(), examples.len());
    for stored in &examples {
        let item = item_of(&page.items, stored.tenant.id);
        assert_same(item.record.as_ref().expect("the record is readable"), stored);
    }
}

/// A list may begin after any id, also one that no tenant has.
pub async fn list_begins_after_any_id(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let mut ids: Vec<TenantId> = examples.iter().map(|record| record.tenant.id).collect();
    ids.sort_unstable();
    let between = TenantId::from_uuid(uuid::Uuid::from_u128(ids[2].as_uuid().as_u128() + 1));
    let expected: Vec<TenantId> = ids.iter().copied().filter(|id| *id > between).collect();
    let page = tenants
        .list(Some(between), at_most(100))
        .await
        .expect("the control plane answers");
    let got: Vec<TenantId> = page.items.iter().map(|item| item.id).collect();
    assert_eq!(got, expected);
    let last = ids[ids.len() - 1];
    let page = tenants
        .list(Some(last), at_most(1))
        .await
        .expect("the control plane answers");
    assert!(page.items.is_empty() && page.next.is_none());
}

/// A record that cannot be understood is an item of its page and hides no other.
pub async fn list_shows_a_malformed_record_in_its_place(backend: &dyn ReadBackend) {
    let (tenants, examples) = seeded(backend).await;
    let broken = examples[1].tenant.id;
    backend.spoil(broken).await;
    let mut ids: Vec<TenantId> = examples.iter().map(|record| record.tenant.id).collect();
    ids.sort_unstable();
    assert_eq!(list_all(&*tenants, 2).await, ids);
    let page = tenants
        .list(None, at_most(100))
        .await
        .expect("the control plane answers");
    for item in page.items {
        if item.id == broken {
            expect_kind(item.record, ErrorKind::MalformedRecord);
        } else {
            let record = item.record.expect("the others are readable");
            assert_eq!(record.tenant.id, item.id);
        }
    }
}

async fn list_all(tenants: &dyn TenantRepository, size: u32) -> Vec<TenantId> {
    let mut ids = Vec::new();
    let mut after = None;
    loop {
        let page = tenants
            .list(after, at_most(size))
            .await
            .expect("the control plane answers");
        assert!(
            page.items.len() <= size as usize,
            "a page is not larger than asked"
        );
        ids.extend(page.items.iter().map(|item| item.id));
        match page.next {
            None => return ids,
            next => {
                assert!(!page.items.is_empty(), "a page with a next one is not empty");
                after = next;
            }
        }
        assert!(ids.len() <= 1_000, "the list ends");
    }
}

fn item_of(items: &[PageItem], id: TenantId) -> &PageItem {
    items
        .iter()
        .find(|item| item.id == id)
        .expect("the tenant is listed")
}

fn names_of(tenant: &Tenant) -> Vec<TenantName> {
    let mut names = vec![TenantName::Id(tenant.id), TenantName::Slug(tenant.slug)];
    names.extend(tenant.domains.iter().cloned().map(TenantName::Domain));
    names
}

fn id_of(found: &Found) -> Option<TenantId> {
    let found = found.as_ref().expect("the record is readable").as_ref()?;
    Some(found.record.tenant.id)
}

/// Everything but the versions, which are the backend's own.
#[track_caller]
fn assert_same(found: &TenantRecord, stored: &TenantRecord) {
    let mut tenant = found.tenant.clone();
    assert!(tenant.version >= Version::FIRST);
    tenant.version = stored.tenant.version;
    assert_eq!(tenant, stored.tenant);
    let mut source = (*found.source).clone();
    source.version = stored.source.version;
    source.credentials.clone_from(&stored.source.credentials);
    assert_eq!(source, *stored.source);
}
