//! What the change log tells, applied to what is known.
//!
//! The order matters, and all of it is under the one lock: first the changes, then, once there are no more of them, the
//! news that nothing else has changed. A route that the log says nothing of is as it was when the log was asked, not when
//! it answered; and only if it was read after the feed had its position, or every change since its reading was seen.

use std::sync::Arc;

use super::{Desk, Known, StartWorker, holding::News, start};
use crate::{
    connector::{Route, Standing},
    repository::{Change, ChangeHead, ChangeKind, Subject},
    tenant::{TenantId, TenantName},
};

/// Changes as they were read.
pub(in crate::router) struct Page<'a> {
    pub(in crate::router) changes: &'a [Change],
    /// Where the log stood.
    pub(in crate::router) head: ChangeHead,
    /// Whether they are all there were when the log was asked.
    pub(in crate::router) is_last: bool,
    /// When the log was asked.
    pub(in crate::router) asked_at: u64,
}

/// What is left to do after changes were applied.
#[derive(Debug, Default)]
pub(in crate::router) struct Followed {
    /// For the tenants that are read anew at once.
    pub(in crate::router) workers: Vec<StartWorker>,
    /// Tenants of which changes may have been missed, or that could not be read since they changed.
    pub(in crate::router) unsure: Vec<TenantId>,
    /// How many tenants are held.
    pub(in crate::router) held: usize,
}

impl<H: Clone + Send + Sync + 'static> Known<H> {
    /// The feed has its position, and every change after it will be seen. Of what was read before, one may have been
    /// missed.
    pub(in crate::router) fn begin_to_follow(&self, head: &ChangeHead, now: u64) {
        let mut desk = self.desk();
        desk.brake.begin(head, now);
        desk.brake.begin_sample();
        desk.flights.doubt_all();
        desk.pacing.answered();
        if !cfg!(biplane_mutant = "first_look_confirms") {
            self.routes.for_each(|route| route.doubt());
        }
    }

    /// Changes were pruned before they were seen. All routes are served on as their age allows, and looked at again.
    pub(in crate::router) fn missed_changes(&self) {
        let mut desk = self.desk();
        desk.brake.begin_sample();
        desk.flights.doubt_all();
        desk.flights.names_moved();
        self.hear_of_sources();
        self.routes.for_each(|route| route.doubt());
        self.unknown.invalidate_all();
    }

    /// Another life of the control plane has begun: as after missed changes, and versions may have fallen. What was read
    /// in the old life is not published in the new one, where it would be too new for ever.
    pub(in crate::router) fn other_life(&self) {
        let mut desk = self.desk();
        desk.flights.other_life();
        desk.brake.other_life();
        // Whoever it was about is doubted with all others.
        desk.news = News::default();
        self.hear_of_sources();
        desk.pacing.answered();
        let table = self.table.upgrade();
        self.routes.for_each(|route| {
            route.doubt_versions();
            if let Some(table) = &table {
                table.forget_name_versions(route);
            }
        });
        self.unknown.invalidate_all();
    }

    /// Takes in a page of changes, and applies all that were taken in if it was the last: routes that changed are read anew
    /// at once, or held; all others are confirmed.
    pub(in crate::router) fn follow(&self, page: &Page<'_>, max_workers: usize) -> Followed {
        let mut desk = self.desk();
        let mut followed = Followed::default();
        if self.is_closed() {
            return followed;
        }
        desk.pacing.answered();
        desk.brake.hear(&page.head, page.asked_at);
        for change in page.changes {
            note(&mut desk, change);
        }
        if page.changes.iter().any(moves_names) && !cfg!(biplane_mutant = "unknown_survives_a_create") {
            desk.flights.names_moved();
            self.unknown.invalidate_all();
        }
        if page.is_last || cfg!(biplane_mutant = "brake_weighs_page_by_page") {
            followed.workers = self.act(&mut desk, page.asked_at, max_workers);
        }
        if page.is_last || cfg!(biplane_mutant = "pages_are_confirmed_one_by_one") {
            let fresh_until = self.ages.fresh_until(page.asked_at);
            self.routes.for_each(|route| {
                if route.standing() == Standing::Sure || cfg!(biplane_mutant = "changed_routes_are_confirmed")
                {
                    route.confirm(page.asked_at, fresh_until);
                } else if !desk.brake.is_held(route.tenant().id) {
                    followed.unsure.push(route.tenant().id);
                }
            });
        }
        followed.held = desk.brake.held_tenants();
        followed
    }

    /// Applies what was taken in, because no last page comes.
    pub(in crate::router) fn follow_no_further(&self, now: u64, max_workers: usize) -> Vec<StartWorker> {
        let mut desk = self.desk();
        if self.is_closed() {
            return Vec::new();
        }
        self.act(&mut desk, now, max_workers)
    }

    /// Reads those of these tenants anew that are still unsure.
    pub(in crate::router) fn reload(&self, tenants: &[TenantId], max_workers: usize) -> Vec<StartWorker> {
        let mut desk = self.desk();
        if self.is_closed() {
            return Vec::new();
        }
        let Desk { flights, brake, .. } = &mut *desk;
        let unsure = |tenant: &&TenantId| {
            let unsure = |route: Arc<Route>| route.standing() != Standing::Sure;
            self.route(**tenant).is_some_and(unsure) && !brake.is_held(**tenant)
        };
        let join = |tenant: &TenantId| start(flights.join(&TenantName::Id(*tenant), max_workers)).1;
        tenants.iter().filter(unsure).filter_map(join).collect()
    }

    /// The tenant by its id, and by each name that leads to this route.
    pub(super) fn names_of(&self, route: &Arc<Route>) -> Vec<TenantName> {
        let mut names = vec![TenantName::Id(route.tenant().id)];
        if let Some(table) = self.table.upgrade() {
            names.extend(table.names_of(route));
        }
        names
    }
}

fn note<H: Clone>(desk: &mut Desk<H>, change: &Change) {
    desk.news.note(change);
    if cfg!(biplane_mutant = "changes_do_not_overtake_loads") {
        return;
    }
    match change.subject {
        Subject::Tenant(tenant) => desk.flights.changed(tenant),
        Subject::Source(source) => desk.flights.source_changed(source),
        Subject::Routing => {}
    }
}

/// Whether a name that leads nowhere may lead somewhere now, or one to another tenant.
fn moves_names(change: &Change) -> bool {
    let of_tenant = matches!(change.subject, Subject::Tenant(_));
    of_tenant
        && matches!(
            change.kind,
            ChangeKind::Created | ChangeKind::Names | ChangeKind::Deleted | ChangeKind::Other
        )
}
