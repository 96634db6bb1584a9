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
    name pg_catalog.text := pg_catalog.current_setting('application_name');
begin
    select here.stamped_in, here.database_id as database_here, here.tenant_setting,
        here.run_time_roles operator(pg_catalog.->) session_user as role,
        residence.epoch, residence.state, residence.isolation, residence.schema_name, residence.row_key,
        residence.database_id, residence.role_name
    into home
    from biplane.database as here
    left join biplane.residence as residence on residence.tenant_id operator(pg_catalog.=) enter_v1.tenant;

    -- Where it was stamped is looked at once in a session, which cannot move to another server. One on a standby can: it is
    -- looked at each time, until that is promoted.
    if home.stamped_in operator(pg_catalog.=) pg_catalog.current_setting('biplane.stamp_seen', true) then
        null;
    elsif biplane.stamped_here_v1() is not true then
        raise exception using errcode = 'BP003', message = 'this database was never stamped, is a copy, or was restored',
            hint = 'Reconcile it with the control plane and stamp it.';
    elsif not pg_catalog.pg_is_in_recovery() then
        perform pg_catalog.set_config('biplane.stamp_seen', home.stamped_in, false);
    end if;

    -- Not one that was named: it enters with a group, and with the timeouts of that.
    if home.role is null then
        home.role := biplane.team_v1(session_user);
    end if;

    if home.database_here operator(pg_catalog.<>) database then
        raise exception using errcode = 'BP003', message = 'this is not the database that the control plane means',
            hint = 'Correct the data source, or stamp the database.';
    elsif home.role is null then
        raise exception using errcode = 'insufficient_privilege',
            message = 'this login is not one that may enter',
            hint = 'Install again with it, or with a group that it belongs to, among the run-time roles.';
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
        perform pg_catalog.pg_advisory_xact_lock_shared(1651534945, pg_catalog.uuid_hash(tenant));
    end if;

    -- Assignments, which cost a third of what statements do.
    entered := pg_catalog.set_config('biplane.tenant', tenant_text, true);
    entered := pg_catalog.set_config(home.tenant_setting, coalesce(home.row_key, tenant_text), true);
    if home.schema_name is not null then
        entered := pg_catalog.set_config('search_path',
            pg_catalog.concat(pg_catalog.quote_ident(home.schema_name), ', pg_temp'), true);
    end if;
    -- A session that has entered as a whole is named already.
    if pg_catalog.right(name, 36) operator(pg_catalog.<>) tenant_text then
        entered := pg_catalog.set_config('application_name',
            pg_catalog.concat(pg_catalog.left(name, 26), ' ', tenant_text), true);
    end if;
    if home.role operator(pg_catalog.<>) '{}' then
        perform pg_catalog.set_config(known.setting, home.role operator(pg_catalog.->>) known.key, true)
        from (values ('statement_timeout', 'statement_timeout'), ('lock_timeout', 'lock_timeout'),
            ('idle_timeout', 'idle_in_transaction_session_timeout')) as known (key, setting)
        where home.role operator(pg_catalog.?) known.key;
    end if;
    -- Last, for that role may not be let to do the rest.
    if home.role_name is not null then
        entered := pg_catalog.set_config('role', home.role_name, true);
    end if;
end
$function$;

-- The same for a whole session of a tenant with a database of its own, so that single statements need not enter. BP005: the
-- tenant shares its database. A fence ends such sessions.
--
-- It prepares what the session's transactions begin with, biplane_<tenant>_<epoch>: that looks whether everything still is
-- as it was, for half of what entering costs, and enters if not, so that it never lets in whom enter_v1 would not. As a
-- statement of the session it is planned once; a function would be called, and a query be run in it, each time. Whatever
-- changes biplane.database, a login's timeouts for instance, gives it another stamp, and the session has those of before.
create function biplane.enter_session_v1(tenant uuid, epoch bigint, database uuid) returns void
language plpgsql as $function$
declare
    named record;
    again pg_catalog.text := pg_catalog.concat('biplane_', pg_catalog.replace(tenant::pg_catalog.text, '-', ''), '_', epoch);
begin
    if exists (
        select from biplane.residence as residence
        where residence.tenant_id operator(pg_catalog.=) enter_session_v1.tenant
            and residence.isolation operator(pg_catalog.<>) 'database'
    ) then
        raise exception using errcode = 'BP005', message = 'a session is entered for a tenant with a database of its own';
    end if;
    perform biplane.enter_v1(tenant, epoch, database);
    for named in
        select known.name
        from biplane.database as here, pg_catalog.unnest(array[here.tenant_setting, 'search_path', 'application_name',
            'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout']) as known (name)
    loop
        perform pg_catalog.set_config(named.name, pg_catalog.current_setting(named.name), false);
    end loop;
    for named in
        select prepared.name
        from pg_catalog.pg_prepared_statements as prepared
        where prepared.from_sql and pg_catalog.starts_with(prepared.name, 'biplane_')
    loop
        execute pg_catalog.format('deallocate %I', named.name);
    end loop;
    execute pg_catalog.format($again$
        prepare %1$I as
        select biplane.enter_v1(%2$L, %3$s, %4$L)
        where not exists (
            select from biplane.residence as residence, biplane.database as here
            where residence.tenant_id operator(pg_catalog.=) %2$L
                and residence.epoch operator(pg_catalog.=) %3$s
                and residence.state operator(pg_catalog.=) 'open'
                and residence.isolation operator(pg_catalog.=) 'database'
                and residence.database_id operator(pg_catalog.=) %4$L
                and here.database_id operator(pg_catalog.=) %4$L
                and here.stamped_in operator(pg_catalog.=) %5$L
                and pg_catalog.current_setting('biplane.stamp_seen', true) operator(pg_catalog.=) %5$L
                and here.run_time_roles operator(pg_catalog.?) session_user::pg_catalog.text
                and pg_catalog.current_setting(here.tenant_setting, true) operator(pg_catalog.=)
                    coalesce(residence.row_key, %2$L)
        )$again$, again, tenant, epoch, database, (select here.stamped_in from biplane.database as here));
end
$function$;

revoke all on function biplane.enter_v1(uuid, bigint, uuid), biplane.enter_session_v1(uuid, bigint, uuid)
    from public;
