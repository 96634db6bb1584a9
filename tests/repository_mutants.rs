//! Deliberately wrong control planes, each of which the conformance suite must find. A suite that lets one through
//! promises something that it does not check.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;
#[path = "control/wrong.rs"]
mod wrong;

use std::future::Future;

use biplane::testing::conformance::{
    changes, concurrency, credentials, instances, names, push, reading, sources, writing,
};
use control::{Postgres, postgres_with};
use wrong::{How, Wrong};

/// The behaviour must fail on the control plane because of what it answers: not because it is stuck, and not because the
/// mutant's own SQL does not run.
async fn must_fail(behaviour: impl Future<Output = ()> + Send + 'static) {
    let outcome = tokio::spawn(biplane::testing::conformance::within_a_minute(behaviour)).await;
    let panic = outcome.expect_err("the suite lets this one through").into_panic();
    let said = panic.downcast_ref::<String>().map_or("", String::as_str);
    for other_reason in ["within a minute", "SQLSTATE", "kind: Database"] {
        assert!(!said.contains(other_reason), "{said}");
    }
}

macro_rules! found {
    ($($test:ident: $control:expr => $part:ident::$behaviour:ident;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                let control = $control.await;
                must_fail(async move { $part::$behaviour(&control).await }).await;
            }
        )+
    };
}

/// In memory, spoilt by a wrapper.
async fn wrong(how: How) -> Wrong {
    Wrong::new(how)
}

/// In Postgres, spoilt in its schema. Each piece must be there, so that a mutant cannot become a sound one unnoticed.
async fn tampered(pieces: &[(&str, &str)]) -> Postgres {
    postgres_with(|mut sql| {
        for (piece, replacement) in pieces {
            assert_eq!(sql.matches(piece).count(), 1, "{piece}");
            sql = sql.replace(piece, replacement);
        }
        sql
    })
    .await
}

const COMMIT_LOCK: &str = "perform 1 from biplane_control.meta for no key update;";
const DEFERRED: &str = "create constraint trigger audit_appends_change after insert on biplane_control.audit
    deferrable initially deferred for each row";
const IMMEDIATE: &str =
    "create trigger audit_appends_change after insert on biplane_control.audit for each row";
const NOTIFY: &str = "perform pg_notify('biplane_change', reached::text) where reached is not null;";
const PLACEMENT_LOCK: &str =
    "perform 1 from biplane_control.data_source where id = source for no key update;\n    if exists";

found! {
    a_malformed_record_that_counts_as_unknown:
        wrong(How::MalformedIsUnknown) => reading::one_malformed_record_is_its_own_error;
    a_malformed_record_that_fails_the_call:
        wrong(How::MalformedFailsTheCall) => reading::one_malformed_record_is_its_own_error;
    outcomes_that_come_as_found:
        wrong(How::HitsFirst) => reading::outcomes_are_in_the_order_of_the_names;
    names_that_are_answered_once:
        wrong(How::DuplicatesAnsweredOnce) => reading::outcomes_are_in_the_order_of_the_names;
    deleted_tenants_that_are_hidden:
        wrong(How::DeletedAreUnknown) => reading::deleted_tenants_are_found_as_deleted;
    names_without_versions:
        wrong(How::NamesHaveNoVersion) => reading::names_have_versions_and_ids_have_none;
    a_data_source_copied_for_each_tenant:
        wrong(How::SourcesNotShared) => reading::one_call_shares_data_sources;
    settings_that_get_lost:
        wrong(How::SettingsLost) => reading::finds_by_id_slug_and_domain;
    a_list_without_deleted_tenants:
        wrong(How::DeletedAreUnknown) => reading::list_pages_have_no_gaps_and_no_repeats;
    a_list_that_repeats_the_last_of_a_page:
        wrong(How::ListRepeats) => reading::list_begins_after_any_id;
    a_list_that_ends_with_the_first_full_page:
        wrong(How::ListEndsEarly) => reading::list_pages_have_no_gaps_and_no_repeats;
    a_list_that_goes_by_slug:
        wrong(How::ListBySlug) => reading::list_pages_have_no_gaps_and_no_repeats;
    a_list_without_the_malformed:
        wrong(How::ListHidesMalformed) => reading::list_shows_a_malformed_record_in_its_place;
    data_sources_that_are_never_read_again:
        wrong(How::SourcesCached) => sources::a_change_is_seen_through_the_tenants;
    a_record_of_two_moments:
        wrong(How::TornRecords) => concurrency::a_record_is_of_one_moment;
    versions_that_are_not_compared:
        wrong(How::VersionsIgnored) => writing::an_old_version_is_refused_by_every_write;
    versions_that_are_not_compared_among_rivals:
        wrong(How::VersionsIgnored) => concurrency::of_rival_writers_one_wins;
    a_slug_that_is_free_after_deletion:
        wrong(How::SlugFreedOnDelete) => names::the_slug_of_a_deleted_tenant_stays_reserved;
    a_forbidden_step_that_is_passed_over:
        wrong(How::ForbiddenIsSilent) => writing::status_follows_the_edges;
    an_actor_that_is_made_up:
        wrong(How::ActorMadeUp) => writing::a_write_without_actor_or_reason_is_refused;
    an_audit_without_the_actor:
        wrong(How::ActorMadeUp) => writing::the_audit_says_who_why_and_what;
    a_placement_where_it_was_that_keeps_the_epoch:
        wrong(How::PlacingInPlaceDoesNothing) => writing::placing_raises_the_epoch_by_one;
    pages_of_changes_that_begin_at_the_end:
        wrong(How::NewestChangesFirst) => changes::pages_give_every_change_in_order;
    freezing_that_nobody_hears_of:
        wrong(How::FreezingIsIgnored) => changes::freezing_is_said_until_it_is_thawed;
    releases_of_what_comes_after_them:
        wrong(How::ReleasesReachAhead) => changes::a_release_reaches_to_its_own_entry;
    a_log_that_is_silent_about_pruning:
        wrong(How::TruncationIsSilent) => changes::a_reader_that_fell_behind_is_told;
    pruning_that_takes_what_is_young:
        wrong(How::PruningTakesAll) => changes::history_is_pruned_by_age;
    an_entry_that_is_forgotten:
        wrong(How::SettingsAreNotLogged) => changes::each_change_is_logged_by_kind;
    a_reseal_that_counts_as_a_change:
        wrong(How::ResealsAreChanges) => credentials::a_resealed_credential_keeps_its_version;
    a_reseal_that_undoes_a_change:
        wrong(How::ResealsWinOverChanges) => credentials::a_reseal_leaves_what_was_changed_meanwhile;
    a_reseal_that_undoes_a_change_among_rivals:
        wrong(How::ResealsWinOverChanges) => concurrency::of_workers_that_reseal_one_replaces_each;
    outcomes_of_a_reseal_in_any_order:
        wrong(How::ResealsAnswerInAnyOrder) => credentials::a_reseal_leaves_what_was_changed_meanwhile;
    pages_of_credentials_that_skip_the_rest_of_a_source:
        wrong(How::PagesGoBySource) => credentials::pages_of_sealed_credentials_have_each_one_once;
    leaving_that_leaves_it_there:
        wrong(How::LeavingIsIgnored) => instances::who_leaves_is_gone;
    a_beat_that_keeps_old_keys:
        wrong(How::OldKeysStay) => instances::each_beat_replaces_the_one_before;
    keys_that_are_never_idle:
        wrong(How::KeysAreNeverIdle) => instances::a_key_is_idle_since_its_last_use;
    silence_that_is_not_counted:
        wrong(How::SilenceIsNotCounted) => instances::silence_ends_with_a_beat;

    a_push_that_tells_once:
        wrong(How::PushTellsOnce) => push::what_is_committed_is_told;
    a_push_that_tells_one_listener_alone:
        wrong(How::PushTellsTheFirstListenerAlone) => push::everybody_who_listens_is_told;
    a_push_that_tells_what_cannot_be_read_yet:
        wrong(How::PushTellsTooSoon) => push::a_position_that_is_told_can_be_read;
    a_push_that_forgets_the_last_commit:
        wrong(How::PushLagsBehind) => push::of_many_commits_the_last_is_told;
    a_push_that_tells_of_heartbeats:
        wrong(How::PushTellsBeats) => push::what_changes_no_route_is_not_told;

    a_plain_sequence_for_the_log:
        async { tampered(&[(DEFERRED, IMMEDIATE), (COMMIT_LOCK, "")]).await.with_slow_commits().await }
        => concurrency::a_reader_misses_nothing_while_many_write;
    positions_given_at_commit_without_the_lock:
        async { tampered(&[(COMMIT_LOCK, "")]).await.with_slow_commits().await }
        => concurrency::a_reader_misses_nothing_while_many_write;
    a_database_that_takes_a_second_tenant:
        tampered(&[("perform biplane_control.check_exclusive(", "perform pg_catalog.concat(")])
        => writing::a_database_is_one_tenants_alone;
    a_database_that_is_looked_at_without_waiting:
        tampered(&[
            (PLACEMENT_LOCK, "if exists"),
            ("perform biplane_control.record(new.id, null, kinds, changed);",
             "perform pg_sleep(0.05); perform biplane_control.record(new.id, null, kinds, changed);"),
        ])
        => concurrency::of_rivals_for_a_database_one_gets_it;
    a_name_whose_version_stays:
        tampered(&[("old.version + (new.tenant_id is distinct from old.tenant_id)::int", "old.version")])
        => names::a_released_slug_has_a_higher_version_for_its_next_owner;
    a_name_that_can_be_taken:
        tampered(&[
            (" where taken.tenant_id is null;", ";"),
            ("or (old.tenant_id is not null and new.tenant_id is not null and new.tenant_id <> old.tenant_id) then",
             "then"),
        ])
        => names::a_taken_domain_is_refused;
    a_name_that_is_never_released:
        tampered(&[("and name <> all (after) and tenant_id = tenant;", "and false;")])
        => names::deletion_frees_the_domains;
    credentials_that_count_by_slot:
        tampered(&[("where data_source_id = new.data_source_id and role = new.role;",
                    "where data_source_id = new.data_source_id and role = new.role and slot = new.slot;")])
        => credentials::versions_rise_across_the_slots;
    credentials_that_leave_their_source_as_it_was:
        tampered(&[("update biplane_control.data_source set version = version + 1 where id = new.data_source_id;", "")])
        => credentials::a_credential_raises_the_version_of_its_source;
    an_audit_with_the_sealed_value:
        tampered(&[("jsonb_build_object('before', before, 'after', after)));",
                    "jsonb_build_object('before', before, 'after', after, 'value', new.sealed)));")])
        => credentials::the_audit_has_versions_only;
    a_reseal_that_raises_the_version_of_the_credential:
        tampered(&[("perform set_config('biplane.resealing', 'on', true);", "")])
        => credentials::a_resealed_credential_keeps_its_version;
    a_reseal_that_ignores_what_was_changed:
        tampered(&[("and held.sealed = wanted.before", "")])
        => credentials::a_reseal_leaves_what_was_changed_meanwhile;
    a_reseal_that_ignores_what_is_being_changed:
        tampered(&[("and held.sealed = wanted.before", "")]) => concurrency::no_reseal_undoes_a_change;
    a_reseal_that_leaves_its_source_as_it_was:
        tampered(&[("set version = version + 1 where id = new.data_source_id;",
                    "set version = version + 1 where id = new.data_source_id and fact not like '%.key';")])
        => credentials::a_reseal_raises_the_version_of_the_source;
    a_reseal_that_is_audited_as_a_change:
        tampered(&[("fact := fact || '.key';", "")]) => credentials::a_reseal_is_audited_by_key_and_logged;
    leaving_that_leaves_the_row:
        tampered(&[("delete from biplane_control.instance as gone where gone.id = leave.id", "select leave.id")])
        => instances::who_leaves_is_gone;
    leaving_that_takes_the_others_along:
        tampered(&[("as gone where gone.id = leave.id", "as gone")]) => instances::who_leaves_is_gone;
    a_beat_that_keeps_the_rows_of_old_keys:
        tampered(&[("and held.key_id not in (select key ->> 'id' from jsonb_array_elements(beat.keys) as key);",
                    "and false;")])
        => instances::each_beat_replaces_the_one_before;
    a_use_that_does_not_end_idleness:
        tampered(&[("then held.used_at else excluded.used_at end", "then held.used_at else held.used_at end")])
        => instances::a_key_is_idle_since_its_last_use;
    idleness_that_every_beat_ends:
        tampered(&[("then held.used_at else excluded.used_at end", "then excluded.used_at else excluded.used_at end")])
        => instances::a_key_is_idle_since_its_last_use;
    silent_instances_that_stay_for_ever:
        tampered(&[("heard - interval '24 hours'", "heard - interval '24 days'")])
        => instances::who_is_silent_for_a_day_is_forgotten;
    silent_instances_that_are_forgotten_at_once:
        tampered(&[("heard - interval '24 hours'", "heard - interval '1 hour'")])
        => instances::who_is_silent_for_a_day_is_forgotten;
    gaps_that_nobody_notices:
        tampered(&[("<= interval '1 minute'", "<= interval '1 day'")])
        => instances::a_gap_between_beats_ends_the_steady_time;
    silence_that_counts_from_the_start:
        tampered(&[("set service = excluded.service, seen_at = excluded.seen_at,", "set service = excluded.service,")])
        => instances::silence_ends_with_a_beat;
    pruning_that_nobody_is_told_of:
        tampered(&[("set pruned_through = greatest(pruned_through, (select max(seq) from gone))",
                    "set pruned_through = pruned_through")])
        => changes::a_reader_that_fell_behind_is_told;
    commits_that_nobody_is_told_of:
        tampered(&[(NOTIFY, "")]) => push::what_is_committed_is_told;
    commits_of_which_the_one_before_is_told:
        tampered(&[(NOTIFY, "perform pg_notify('biplane_change', (reached - 1)::text) where reached is not null;")])
        => push::of_many_commits_the_last_is_told;
    positions_that_are_told_before_they_are_given:
        tampered(&[(NOTIFY, "perform pg_notify('biplane_change', (reached + 1)::text) where reached is not null;")])
        => push::a_position_that_is_told_can_be_read;
    heartbeats_that_are_told:
        tampered(&[("    delete from biplane_control.instance_key as held\n    where held.instance_id = beat.id",
                    "    perform pg_notify('biplane_change', '0');
    delete from biplane_control.instance_key as held\n    where held.instance_id = beat.id")])
        => push::what_changes_no_route_is_not_told;
    pruning_that_goes_by_nothing:
        tampered(&[("where at <= clock_timestamp() - keep", "")]) => changes::history_is_pruned_by_age;
    pruning_that_leaves_what_is_old:
        tampered(&[("where at <= clock_timestamp() - keep", "where at <= clock_timestamp() - keep * 9")])
        => changes::history_is_pruned_by_age;
    a_placement_that_is_not_logged:
        tampered(&[("case when changed ?| '{data_source_id,isolation,epoch}' then 'placement' end,", "")])
        => changes::each_change_is_logged_by_kind;
}
