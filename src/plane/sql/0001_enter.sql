-- How a transaction enters: as whom, at which epoch, in which database. Takes nothing but UUIDs and integers, because it
-- goes along with BEGIN as text; whatever else it sets stands in the tables here.

-- BP001: the tenant is not here at this epoch. BP002: it is fenced. BP003: this is another database, a copy, or restored.
-- BP004: the transaction has entered as another tenant.
create function biplane.enter_v1(tenant uuid, epoch bigint, database uuid) returns void
language plpgsql as $function$
declare
    home record;
    tenant_text pg_catalog.text := tenant;
    entered pg_catalog.text := pg_catalog.current_setting('biplane.tenant', true);
    service pg_catalog.text := pg_catalog.current_setting('application_name');
begin
    select here.database_id as database_here, here.tenant_setting,
        here.stamped_in operator(pg_catalog.=) here.xmin
            and here.database_oid operator(pg_catalog.=) mine.oid
            and (here.follows_failover or pg_catalog.pg_is_in_recovery()
                or here.timeline operator(pg_catalog.=) pg_catalog.left(pg_catalog.pg_walfile_name('0/1'), 8))
            as stamped_here,
        residence.epoch, residence.state, residence.isolation, residence.schema_name, residence.row_key,
        residence.database_id, residence.role_name as tenant_role,
        role.role_name, role.statement_timeout, role.lock_timeout, role.idle_timeout
    into home
    from biplane.database as here
    join pg_catalog.pg_database as mine on mine.datname operator(pg_catalog.=) pg_catalog.current_database()
    left join biplane.residence as residence on residence.tenant_id operator(pg_catalog.=) enter_v1.tenant
    left join biplane.run_time_role as role on role.role_name operator(pg_catalog.=) session_user;

    if home.stamped_here is not true or home.database_here operator(pg_catalog.<>) database then
        raise exception using errcode = 'BP003', message = 'this is not the database that the control plane means',
            hint = case when home.stamped_here then 'Correct the data source, or stamp the database.'
                else 'It was never stamped, is a copy, or was restored: reconcile it with the control plane and stamp it.'
                end;
    elsif home.role_name is null and not biplane.may_enter_v1(session_user) then
        raise exception using errcode = 'insufficient_privilege',
            message = 'this login is not one that biplane was told of',
            hint = 'Install again with it, or with a group it belongs to, among the run-time roles.';
    elsif home.epoch is null or home.epoch operator(pg_catalog.<>) epoch then
        raise exception using errcode = 'BP001', message = 'the tenant is not here at this epoch';
    elsif home.database_id operator(pg_catalog.<>) database then
        raise exception using errcode = 'BP003', message = 'the tenant''s place here was written for another database',
            hint = 'Reconcile it with the control plane.';
    elsif home.state operator(pg_catalog.<>) 'open' then
        raise exception using errcode = 'BP002', message = 'the tenant is fenced';
    elsif entered operator(pg_catalog.<>) '' and entered operator(pg_catalog.<>) tenant_text then
        raise exception using errcode = 'BP004', message = 'this transaction has entered as another tenant';
    end if;

    -- A mark for whoever fences: this transaction belongs to a tenant of this hash, and to no other. Two that share a hash
    -- wait for each other's fences, no more.
    if home.isolation operator(pg_catalog.<>) 'database' then
        perform pg_catalog.pg_advisory_xact_lock_shared(biplane.mark_class_v1(), pg_catalog.uuid_hash(tenant));
    end if;

    perform
        pg_catalog.set_config('biplane.tenant', tenant_text, true),
        pg_catalog.set_config(home.tenant_setting, coalesce(home.row_key, tenant_text), true),
        case when home.schema_name is not null then
            pg_catalog.set_config('search_path',
                pg_catalog.concat(pg_catalog.quote_ident(home.schema_name), ', pg_temp'), true) end,
        -- A session that has entered as a whole is named already.
        case when pg_catalog.right(service, 36) operator(pg_catalog.<>) tenant_text then
            pg_catalog.set_config('application_name',
                pg_catalog.concat(pg_catalog.left(service, 26), ' ', tenant_text), true) end,
        case when home.statement_timeout is not null then
            pg_catalog.set_config('statement_timeout', home.statement_timeout::pg_catalog.text, true) end,
        case when home.lock_timeout is not null then
            pg_catalog.set_config('lock_timeout', home.lock_timeout::pg_catalog.text, true) end,
        case when home.idle_timeout is not null then
            pg_catalog.set_config('idle_in_transaction_session_timeout', home.idle_timeout::pg_catalog.text, true) end;
    -- Last, for the role may not be let to do the rest.
    if home.tenant_role is not null then
        perform pg_catalog.set_config('role', home.tenant_role, true);
    end if;
end
$function$;

-- The same for a whole session of a tenant with a database of its own, so that single statements need not enter. BP005: the
-- tenant shares its database. A fence ends such sessions.
create function biplane.enter_session_v1(tenant uuid, epoch bigint, database uuid) returns void
language plpgsql as $function$
declare
    setting record;
begin
    if exists (
        select from biplane.residence as residence
        where residence.tenant_id operator(pg_catalog.=) enter_session_v1.tenant
            and residence.isolation operator(pg_catalog.<>) 'database'
    ) then
        raise exception using errcode = 'BP005', message = 'a session is entered for a tenant with a database of its own';
    end if;
    perform biplane.enter_v1(tenant, epoch, database);
    for setting in
        select known.name
        from biplane.database as here, pg_catalog.unnest(array[here.tenant_setting, 'search_path', 'application_name',
            'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout']) as known (name)
    loop
        perform pg_catalog.set_config(setting.name, pg_catalog.current_setting(setting.name), false);
    end loop;
end
$function$;

-- Whether a login may enter: it was named, or belongs to a group that was. A superuser belongs to every group, and is
-- therefore asked for by name: dumps and maintenance run as one, and must not keep a fence waiting.
create function biplane.may_enter_v1(login name) returns boolean
language sql stable as $function$
    select exists (
        select from biplane.run_time_role as role
        left join pg_catalog.pg_roles as team on team.rolname operator(pg_catalog.=) role.role_name
        left join pg_catalog.pg_roles as member on member.rolname operator(pg_catalog.=) login
        where role.role_name operator(pg_catalog.=) login
            or not member.rolsuper and pg_catalog.pg_has_role(member.oid, team.oid, 'MEMBER'))
$function$;

-- The first key of the marks, "bpla"; the second is the tenant's hash.
create function biplane.mark_class_v1() returns integer
language sql immutable as 'select 1651534945';

revoke all on function biplane.enter_v1(uuid, bigint, uuid), biplane.enter_session_v1(uuid, bigint, uuid),
    biplane.may_enter_v1(name), biplane.mark_class_v1() from public;
