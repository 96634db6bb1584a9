begin;
drop table if exists biplane_control.instance_key, biplane_control.instance, biplane_control.change,
    biplane_control.audit, biplane_control.credential, biplane_control.tenant_name, biplane_control.tenant,
    biplane_control.data_source, biplane_control.meta, biplane_control.migration;
drop sequence if exists biplane_control.change_seq;
drop function if exists biplane_control.refuse, biplane_control.differences, biplane_control.record,
    biplane_control.append_change, biplane_control.tenant_guard, biplane_control.check_exclusive,
    biplane_control.move_names, biplane_control.tenant_changed, biplane_control.name_guard,
    biplane_control.data_source_guard, biplane_control.data_source_changed, biplane_control.credential_guard,
    biplane_control.credential_changed, biplane_control.change_guard, biplane_control.change_pruned,
    biplane_control.meta_guard, biplane_control.prune_changes, biplane_control.reseal_credentials,
    biplane_control.beat, biplane_control.leave, biplane_control.release_brake, biplane_control.freeze,
    biplane_control.thaw;
drop schema if exists biplane_control;
commit;
