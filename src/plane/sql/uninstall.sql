begin;
drop function if exists biplane.running_v1, biplane.unfence_v1, biplane.fence_v1, biplane.commit_durably_v1,
    biplane.enter_session_v1, biplane.enter_v1, biplane.may_enter_v1, biplane.mark_class_v1,
    biplane.stamp_v1, biplane.database_v1;
drop table if exists biplane.residence, biplane.run_time_role, biplane.database, biplane.migration;
drop function if exists biplane.check_alone;
drop schema if exists biplane;
commit;
