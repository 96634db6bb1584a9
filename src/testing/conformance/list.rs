//! The macros that make tests of the behaviours. A test of this module holds the lists against the functions.

/// Makes a module with one `#[tokio::test]` for each behaviour of a
/// [`TenantRepository`](crate::repository::TenantRepository).
///
/// Takes the name of the module and an async function without arguments that starts a fresh
/// [`ReadBackend`](crate::testing::conformance::ReadBackend). The crate that uses it needs tokio with the features
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! reading_conformance {
    ($module:ident, $start:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the expression names what it needs of the surrounding module")]
            use super::*;

            $crate::__conformance!(ReadBackend, $start, reading: [
                finds_by_id_slug_and_domain,
                unknown_names_are_none,
                names_are_matched_whole_and_by_kind,
                outcomes_are_in_the_order_of_the_names,
                no_names_no_outcomes,
                many_names_in_one_call,
                one_malformed_record_is_its_own_error,
                names_have_versions_and_ids_have_none,
                deleted_tenants_are_found_as_deleted,
                one_call_shares_data_sources,
                list_pages_have_no_gaps_and_no_repeats,
                list_has_whole_records,
                list_begins_after_any_id,
                list_shows_a_malformed_record_in_its_place,
            ]);
        }
    };
}

/// Makes a module with one `#[tokio::test]` for each behaviour of a whole control plane, reading included.
///
/// Takes the name of the module and an async function without arguments that starts a fresh
/// [`Backend`](crate::testing::conformance::Backend). The crate that uses it needs tokio with the features `macros` and
/// `rt-multi-thread`.
#[macro_export]
macro_rules! repository_conformance {
    ($module:ident, $start:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the expression names what it needs of the surrounding module")]
            use super::*;

            $crate::reading_conformance!(reads, $start);
            $crate::__conformance!(Backend, $start, writing: [
                a_new_tenant_is_provisioning_at_version_and_epoch_one,
                each_write_raises_the_version_and_is_seen_by_the_next_read,
                an_old_version_is_refused_by_every_write,
                an_unknown_tenant_is_refused_by_every_write,
                a_write_without_actor_or_reason_is_refused,
                settings_are_an_object,
                status_follows_the_edges,
                delete_follows_the_edges,
                a_deleted_tenant_stays_as_it_is,
                placing_raises_the_epoch_by_one,
                other_writes_leave_the_epoch,
                an_unknown_data_source_is_refused,
                a_database_is_one_tenants_alone,
                what_changes_nothing_leaves_no_trace,
                the_audit_says_who_why_and_what,
                a_refused_write_leaves_no_audit,
            ]);
            $crate::__conformance!(Backend, $start, names: [
                rename_moves_the_tenant,
                a_released_slug_has_a_higher_version_for_its_next_owner,
                a_name_keeps_its_version_while_it_keeps_its_owner,
                a_taken_slug_is_refused,
                a_taken_id_is_refused,
                the_slug_of_a_deleted_tenant_stays_reserved,
                domains_come_and_go,
                a_taken_domain_is_refused,
                a_domain_that_changes_hands_has_a_higher_version,
                only_its_own_domain_is_taken_from_a_tenant,
                deletion_frees_the_domains,
            ]);
            $crate::__conformance!(Backend, $start, sources: [
                a_new_source_is_found_as_given,
                an_unknown_source_is_none,
                a_taken_id_name_or_database_is_refused,
                what_cannot_be_is_refused,
                a_change_is_seen_through_the_tenants,
                a_change_needs_version_source_and_actor,
                what_changes_nothing_leaves_no_trace,
                the_audit_says_what_changed,
            ]);
            $crate::__conformance!(Backend, $start, credentials: [
                a_credential_is_seen_through_the_tenants,
                versions_rise_across_the_slots,
                a_credential_raises_the_version_of_its_source,
                an_old_version_is_refused,
                plaintext_is_refused,
                a_credential_needs_its_place,
                the_audit_has_versions_only,
                a_resealed_credential_keeps_its_version,
                a_reseal_raises_the_version_of_the_source,
                a_reseal_leaves_what_was_changed_meanwhile,
                a_reseal_that_cannot_be_changes_nothing,
                a_reseal_is_audited_by_key_and_logged,
                pages_of_sealed_credentials_have_each_one_once,
                an_opening_is_audited_and_changes_nothing,
                an_opening_of_nothing_or_by_nobody_is_refused,
            ]);
            $crate::__conformance!(Backend, $start, promotion: [
                what_was_prepared_is_in_use_after_its_promotion,
                a_promotion_is_one_change,
                a_promotion_of_what_was_not_looked_at_is_refused,
                what_was_prepared_can_be_given_up,
                of_rival_promotions_one_wins,
            ]);
            $crate::__conformance!(Backend, $start, instances: [
                a_beat_is_listed_as_it_was_given,
                each_beat_replaces_the_one_before,
                silence_ends_with_a_beat,
                a_gap_between_beats_ends_the_steady_time,
                a_key_is_idle_since_its_last_use,
                who_leaves_is_gone,
                who_is_silent_for_a_day_is_forgotten,
                a_beat_that_cannot_be_is_refused,
                presence_leaves_no_trace,
                many_beat_at_once,
            ]);
            $crate::__conformance!(Backend, $start, changes: [
                each_change_is_logged_by_kind,
                deletion_is_logged,
                the_head_is_the_last_change,
                nothing_comes_after_the_head,
                pages_give_every_change_in_order,
                a_refused_write_is_not_logged,
                a_reader_that_fell_behind_is_told,
                history_is_pruned_by_age,
                a_release_reaches_to_its_own_entry,
                freezing_is_said_until_it_is_thawed,
                who_holds_or_lets_go_all_routing_is_audited,
            ]);
            $crate::__conformance!(Backend, $start, concurrency: [
                of_rival_writers_one_wins,
                of_rivals_for_a_slug_one_gets_it,
                of_rivals_for_a_domain_one_gets_it,
                of_rivals_for_a_database_one_gets_it,
                of_rivals_for_a_credential_one_wins,
                of_workers_that_reseal_one_replaces_each,
                no_reseal_undoes_a_change,
                a_reader_misses_nothing_while_many_write,
                a_record_is_of_one_moment,
            ]);
        }
    };
}

/// Makes a module with one `#[tokio::test]` for each behaviour of a
/// [`ChangePush`](crate::repository::ChangePush).
///
/// Takes the name of the module and an async function without arguments that starts a fresh
/// [`PushBackend`](crate::testing::conformance::PushBackend). The crate that uses it needs tokio with the features
/// `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! push_conformance {
    ($module:ident, $start:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the expression names what it needs of the surrounding module")]
            use super::*;

            $crate::__conformance!(PushBackend, $start, push: [
                what_is_committed_is_told,
                everybody_who_listens_is_told,
                a_position_that_is_told_can_be_read,
                of_many_commits_the_last_is_told,
                what_changes_no_route_is_not_told,
            ]);
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($backend:ident, $start:expr, $part:ident: [$($behaviour:ident,)+]) => {
        mod $part {
            #[allow(unused_imports, reason = "the expression names what it needs of the surrounding module")]
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $behaviour() {
                    let backend = ($start)().await;
                    let backend: &dyn $crate::testing::conformance::$backend = &backend;
                    $crate::testing::conformance::within_a_minute(
                        $crate::testing::conformance::$part::$behaviour(backend),
                    )
                    .await;
                }
            )+
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_behaviour_is_in_a_macro() {
        let list = include_str!("list.rs");
        for (part, text) in [
            ("reading", include_str!("reading.rs")),
            ("writing", include_str!("writing.rs")),
            ("names", include_str!("names.rs")),
            ("sources", include_str!("sources.rs")),
            ("credentials", include_str!("credentials.rs")),
            ("promotion", include_str!("promotion.rs")),
            ("instances", include_str!("instances.rs")),
            ("changes", include_str!("changes.rs")),
            ("concurrency", include_str!("concurrency.rs")),
            ("push", include_str!("push.rs")),
        ] {
            let behaviours: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("pub async fn ")?.split('(').next())
                .collect();
            assert!(behaviours.len() > 4, "{part}");
            let (_, section) = list
                .split_once(&format!("{part}: ["))
                .expect("the part is listed");
            let (section, _) = section.split_once(']').expect("the list ends");
            let listed: Vec<_> = section
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .collect();
            assert_eq!(listed, behaviours, "{part}");
        }
    }
}
