do $biplane_install$
begin
    if to_regnamespace('biplane_control') is null then
        if not has_database_privilege(current_database(), 'CREATE') then
            raise exception using errcode = 'insufficient_privilege', constraint = 'create_on_database',
                message = 'installing biplane needs the privilege CREATE on this database',
                hint = format('grant create on database %I to %I', current_database(), current_user);
        end if;
        create schema biplane_control;
    elsif not pg_has_role((select nspowner from pg_namespace where nspname = 'biplane_control'), 'USAGE') then
        raise exception using errcode = 'insufficient_privilege', constraint = 'owner_of_schema',
            message = 'the schema biplane_control belongs to another role, and only that one can change it';
    end if;
    if to_regclass('biplane_control.migration') is null then
        create table biplane_control.migration (
            version integer primary key,
            installed_at timestamptz not null default clock_timestamp(),
            installed_by text not null default session_user
        );
        revoke all on biplane_control.migration from public;
    end if;
end
$biplane_install$;
