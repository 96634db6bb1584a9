begin;
drop function if exists biplane.running_v1, biplane.leave_v1, biplane.place_v1, biplane.check_role_v1,
    biplane.role_gap_v1, biplane.confirm_v1, biplane.unfence_v1, biplane.fence_v1, biplane.commit_durably_v1,
    biplane.enter_session_v1, biplane.enter_v1, biplane.team_v1, biplane.may_enter_v1, biplane.disallow_v1,
    biplane.allow_v1, biplane.stamp_v1, biplane.keep_stamp, biplane.database_v1, biplane.stamped_here_v1, biplane.timeline_v1,
    biplane.directory_v1;
drop table if exists biplane.residence, biplane.database, biplane.migration;
drop function if exists biplane.check_neighbours;
drop schema if exists biplane;
commit;
