-- The mover's side, for its owner. Each of these takes effect with the commit, and what was committed is read by whoever
-- begins afterwards; who began before is in biplane.running_v1.

-- Nobody enters any more, once this is committed. Written again if it was so already: a commit that an earlier attempt did
-- not see the end of is followed by one that is flushed. Returns when that was if the tenant was open before, so that
-- whoever gives up takes back what is still its own fence, and not another's.
create function biplane.fence_v1(tenant uuid, epoch bigint) returns timestamptz
language plpgsql as $function$
declare
    before text;
    fenced_at timestamptz := pg_catalog.clock_timestamp();
begin
    perform biplane.commit_durably_v1();
    -- Before the row's, in the order in which biplane.place_v1 takes them.
    lock table biplane.residence in row exclusive mode;
    select residence.state into before
    from biplane.residence as residence
    where residence.tenant_id operator(pg_catalog.=) fence_v1.tenant
        and residence.epoch operator(pg_catalog.=) fence_v1.epoch
        and residence.state operator(pg_catalog.<>) 'restored'
    for update;
    if not found then
        raise exception using errcode = 'BP001', message = 'the tenant is not here at this epoch, or waits to be reconciled';
    end if;
    update biplane.residence as residence set state = 'fenced', changed_at = fenced_at
    where residence.tenant_id operator(pg_catalog.=) fence_v1.tenant;
    return case when before operator(pg_catalog.=) 'open' then fenced_at end;
end
$function$;

-- It is entered again, at the same epoch; with a time, only if it was fenced then and nobody has fenced it since.
create function biplane.unfence_v1(tenant uuid, epoch bigint, fenced_at timestamptz default null) returns void
language plpgsql as $function$
begin
    perform biplane.commit_durably_v1();
    update biplane.residence as residence
    set state = 'open', changed_at = pg_catalog.clock_timestamp()
    where residence.tenant_id operator(pg_catalog.=) unfence_v1.tenant
        and residence.epoch operator(pg_catalog.=) unfence_v1.epoch
        and residence.state operator(pg_catalog.<>) 'restored'
        and (fenced_at is null or residence.changed_at operator(pg_catalog.=) fenced_at);
    if not found then
        raise exception using errcode = 'BP001', message = 'the tenant is not here at this epoch, or waits to be reconciled';
    end if;
end
$function$;

-- What a restored or copied database says of a tenant is right: the control plane has it here, at this epoch, isolated this
-- way. Says whether it was. Raises BP007 when its role is not fit: roles are the server's, and come with no dump.
create function biplane.confirm_v1(tenant uuid, epoch bigint, isolation text) returns boolean
language plpgsql as $function$
begin
    perform biplane.commit_durably_v1();
    perform biplane.check_role_v1(residence.role_name, residence.schema_name)
    from biplane.residence as residence
    where residence.tenant_id operator(pg_catalog.=) confirm_v1.tenant
        and residence.epoch operator(pg_catalog.=) confirm_v1.epoch
        and residence.isolation operator(pg_catalog.=) confirm_v1.isolation;
    update biplane.residence as residence
    set state = case when residence.state operator(pg_catalog.=) 'restored' then 'open' else residence.state end,
        database_id = biplane.database_v1(), changed_at = pg_catalog.clock_timestamp()
    where residence.tenant_id operator(pg_catalog.=) confirm_v1.tenant
        and residence.epoch operator(pg_catalog.=) confirm_v1.epoch
        and residence.isolation operator(pg_catalog.=) confirm_v1.isolation;
    return found;
end
$function$;

-- Why a tenant's transactions cannot take on this role, or would reach further with it than its own rows. Null: they can,
-- and would not. A schema that is not there yet is not looked at.
create function biplane.role_gap_v1(role_name name, schema_name name) returns text
language sql stable as $function$
    select case
        when team.oid is null then
            pg_catalog.format('the role %I does not exist on this server; create it', role_gap_v1.role_name)
        when team.rolsuper or team.rolbypassrls then
            pg_catalog.format('the role %I is a superuser or has BYPASSRLS; take another', role_gap_v1.role_name)
        when outsider.name is not null then
            pg_catalog.format('%I may enter and is not a member of the role %I; grant it that role',
                outsider.name, role_gap_v1.role_name)
        when not pg_catalog.has_schema_privilege(team.oid, own.oid, 'USAGE') then
            pg_catalog.format('the role %I has no USAGE on the schema %I; grant it', role_gap_v1.role_name,
                role_gap_v1.schema_name)
    end
    from (values (role_gap_v1.role_name)) as asked (role_name)
    left join pg_catalog.pg_roles as team on team.rolname operator(pg_catalog.=) asked.role_name
    left join pg_catalog.pg_namespace as own on own.nspname operator(pg_catalog.=) role_gap_v1.schema_name
    cross join lateral (
        select pg_catalog.min(login.rolname::pg_catalog.text) as name
        from biplane.database as here
        cross join pg_catalog.jsonb_object_keys(here.run_time_roles) as allowed (role_name)
        join pg_catalog.pg_roles as login on login.rolname operator(pg_catalog.=) allowed.role_name::pg_catalog.name
        where not pg_catalog.pg_has_role(login.oid, team.oid, 'MEMBER')
    ) as outsider
    where asked.role_name is not null
$function$;

-- Raises BP007 with that reason.
create function biplane.check_role_v1(role_name name, schema_name name) returns void
language plpgsql as $function$
declare
    gap pg_catalog.text := biplane.role_gap_v1(role_name, schema_name);
begin
    if gap is not null then
        raise exception using errcode = 'BP007', message = gap;
    end if;
end
$function$;

-- The tenant lives here from now on, at this epoch: open to be entered, or fenced until its rows are here. An epoch only
-- rises, and not under those who have entered; the same one again must be told the same.
create function biplane.place_v1(
    tenant uuid, epoch bigint, isolation text, state text, schema_name name default null, row_key text default null,
    role_name name default null
) returns void
language plpgsql as $function$
begin
    perform biplane.commit_durably_v1();
    -- What the trigger needs, taken before any weaker lock: two that have a weaker one each would wait for each other.
    lock table biplane.residence in share row exclusive mode;
    insert into biplane.residence as home (
        tenant_id, epoch, state, isolation, schema_name, row_key, role_name, database_id)
    values (tenant, epoch, state, isolation, schema_name, row_key, role_name, biplane.database_v1())
    on conflict (tenant_id) do update set epoch = excluded.epoch, state = excluded.state,
        isolation = excluded.isolation, schema_name = excluded.schema_name, row_key = excluded.row_key,
        role_name = excluded.role_name, database_id = excluded.database_id, changed_at = excluded.changed_at
    where home.epoch operator(pg_catalog.<) excluded.epoch and home.state operator(pg_catalog.<>) 'open'
        or home.epoch operator(pg_catalog.=) excluded.epoch and home.state operator(pg_catalog.=) excluded.state
            and home.isolation operator(pg_catalog.=) excluded.isolation
            and coalesce(home.schema_name, '') operator(pg_catalog.=) coalesce(excluded.schema_name, '')
            and coalesce(home.row_key, '') operator(pg_catalog.=) coalesce(excluded.row_key, '')
            and coalesce(home.role_name, '') operator(pg_catalog.=) coalesce(excluded.role_name, '')
            and home.database_id operator(pg_catalog.=) excluded.database_id;
    if not found then
        raise exception using errcode = 'BP001', message = 'the tenant is here already, open, or at this epoch or a later one';
    end if;
    perform biplane.check_role_v1(role_name, schema_name);
end
$function$;

-- The tenant has left: whoever still comes with the old epoch is told to look where it lives. Only once it is fenced.
create function biplane.leave_v1(tenant uuid, epoch bigint) returns void
language plpgsql as $function$
begin
    perform biplane.commit_durably_v1();
    delete from biplane.residence as residence
    where residence.tenant_id operator(pg_catalog.=) leave_v1.tenant
        and residence.epoch operator(pg_catalog.=) leave_v1.epoch
        and residence.state operator(pg_catalog.<>) 'open';
    if not found then
        raise exception using errcode = 'BP001', message = 'the tenant is not here, fenced, at this epoch';
    end if;
end
$function$;

-- This transaction's commit is flushed, here and where synchronous_standby_names says, before it acts or returns.
create function biplane.commit_durably_v1() returns void
language sql volatile as $function$
    select pg_catalog.set_config('synchronous_commit', 'on', true)
    where pg_catalog.current_setting('synchronous_commit')
        operator(pg_catalog.=) any (array['off', 'local', 'remote_write'])
$function$;

-- What runs or waits now and may have entered as this tenant: transactions by their virtual ids, prepared ones by their
-- names, and, where the tenant has the database to itself, the sessions. Asked for after the commit of a fence, whatever
-- of the answer is gone later cannot commit any more, and what is not in it reads the fence. Whoever has entered a shared
-- database is told by a mark, whatever became of the login; of others it counts whether they may enter.
create function biplane.running_v1(tenant uuid)
returns table (kind text, id text, pid integer)
language sql volatile as $function$
    with residence as materialized (
        select coalesce((select home.isolation operator(pg_catalog.=) 'database' from biplane.residence as home
            where home.tenant_id operator(pg_catalog.=) running_v1.tenant), true) as alone
    ), session as materialized (
        select activity.pid, activity.backend_start, activity.backend_type,
            biplane.may_enter_v1(activity.usename) as may_enter
        from pg_catalog.pg_stat_activity as activity
        where activity.datname operator(pg_catalog.=) pg_catalog.current_database()
            and activity.pid operator(pg_catalog.<>) pg_catalog.pg_backend_pid()
    ), held as materialized (
        select * from pg_catalog.pg_locks
    ), marked as (
        select held.virtualtransaction,
            pg_catalog.bool_or(held.objid operator(pg_catalog.=)
                (pg_catalog.uuid_hash(tenant)::pg_catalog.int8 operator(pg_catalog.&) 4294967295)::pg_catalog.oid) as ours
        from held
        join pg_catalog.pg_database as mine on mine.oid operator(pg_catalog.=) held.database
        where held.locktype operator(pg_catalog.=) 'advisory' and held.objsubid operator(pg_catalog.=) 2
            and held.classid operator(pg_catalog.=) 1651534945::pg_catalog.oid
            and mine.datname operator(pg_catalog.=) pg_catalog.current_database()
            and held.granted
        group by held.virtualtransaction
    )
    select 'transaction', held.virtualxid, held.pid
    from held
    cross join residence
    join session on session.pid operator(pg_catalog.=) held.pid
    left join marked on marked.virtualtransaction operator(pg_catalog.=) held.virtualtransaction
    where held.locktype operator(pg_catalog.=) 'virtualxid'
        and held.virtualxid operator(pg_catalog.=) held.virtualtransaction
        and (residence.alone and session.may_enter
            or not residence.alone and coalesce(marked.ours, session.may_enter))
    union all
    select 'prepared', pg_catalog.concat(prepared.transaction, ' ', prepared.gid), null
    from pg_catalog.pg_prepared_xacts as prepared
    cross join residence
    -- It has kept its locks, and the one on its own number says under which virtual id.
    left join held as own on own.locktype operator(pg_catalog.=) 'transactionid'
        and own.transactionid operator(pg_catalog.=) prepared.transaction
        and own.pid is null and own.mode operator(pg_catalog.=) 'ExclusiveLock'
    left join marked on marked.virtualtransaction operator(pg_catalog.=) own.virtualtransaction
    where prepared.database operator(pg_catalog.=) pg_catalog.current_database()
        and (residence.alone or marked.ours is not false)
    union all
    select 'session', session.backend_start::pg_catalog.text, session.pid
    from session
    cross join residence
    where residence.alone and session.may_enter and session.backend_type operator(pg_catalog.=) 'client backend'
$function$;

revoke all on function biplane.fence_v1(uuid, bigint), biplane.unfence_v1(uuid, bigint, timestamptz),
    biplane.confirm_v1(uuid, bigint, text), biplane.place_v1(uuid, bigint, text, text, name, text, name),
    biplane.role_gap_v1(name, name), biplane.check_role_v1(name, name),
    biplane.leave_v1(uuid, bigint), biplane.commit_durably_v1(), biplane.running_v1(uuid) from public;
