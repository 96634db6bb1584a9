-- What a data-plane database says of itself, and who works in it.
--
-- Nothing here has a `set` clause: a function with one would undo the search_path that it sets. So every name is
-- qualified, operators too, and means the same whatever a session's search_path is.

-- Which database this is, and where it was when that was written: `stamped_in` is the transaction that did it, which a
-- row that was restored from a dump was not written by; a copy has another oid, a server that was restored to a point in
-- time or promoted is on another timeline.
create table biplane.database (
    only_row boolean primary key default true check (only_row),
    database_id uuid not null,
    stamped_in xid not null,
    database_oid oid not null,
    system_identifier bigint not null,
    timeline text not null,
    -- Whether another timeline is this database still: for servers of which only synchronous standbys are promoted.
    follows_failover boolean not null default false,
    -- The setting that policies read.
    tenant_setting text not null default 'app.tenant_id'
        constraint database_tenant_setting check (
            tenant_setting ~ '^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)+$' and tenant_setting <> 'biplane.tenant')
);

-- The logins that may enter, or the groups they belong to, with their timeouts in milliseconds. Without one, a session
-- keeps what it has.
create table biplane.run_time_role (
    role_name name primary key,
    statement_timeout integer check (statement_timeout >= 0),
    lock_timeout integer check (lock_timeout >= 0),
    idle_timeout integer check (idle_timeout >= 0)
);

-- Which database this says it is. Raises BP003 when what says so was written elsewhere: this is a copy then, or restored.
create function biplane.database_v1() returns uuid
language plpgsql stable as $function$
declare
    here biplane.database;
begin
    select * into here from biplane.database;
    if found and not (
        here.stamped_in operator(pg_catalog.=) (select row.xmin from biplane.database as row)
        and here.database_oid operator(pg_catalog.=) (
            select mine.oid from pg_catalog.pg_database as mine
            where mine.datname operator(pg_catalog.=) pg_catalog.current_database())
        and here.system_identifier operator(pg_catalog.=) (
            select control.system_identifier from pg_catalog.pg_control_system() as control)
        and (here.follows_failover or pg_catalog.pg_is_in_recovery()
            or here.timeline operator(pg_catalog.=) pg_catalog.left(pg_catalog.pg_walfile_name('0/1'), 8))
    ) then
        raise exception using errcode = 'BP003', message = 'this database is a copy, or was restored',
            hint = 'Reconcile it with the control plane and stamp it.';
    end if;
    return here.database_id;
end
$function$;

-- Makes the database say that it is this one, here and from now on. What it was told before about tenants is not
-- believed any more if it was another one, or elsewhere.
create function biplane.stamp_v1(database uuid) returns void
language plpgsql as $function$
declare
    known boolean := false;
begin
    begin
        known := biplane.database_v1() operator(pg_catalog.=) database;
    exception when sqlstate 'BP003' then
        -- A copy, or restored.
    end;
    if known then
        return;
    end if;
    insert into biplane.database as here (database_id, stamped_in, database_oid, system_identifier, timeline)
    select stamp_v1.database, '0', mine.oid, control.system_identifier,
        pg_catalog.left(pg_catalog.pg_walfile_name('0/1'), 8)
    from pg_catalog.pg_database as mine, pg_catalog.pg_control_system() as control
    where mine.datname operator(pg_catalog.=) pg_catalog.current_database()
    on conflict (only_row) do update set database_id = excluded.database_id,
        database_oid = excluded.database_oid, system_identifier = excluded.system_identifier,
        timeline = excluded.timeline;
    -- Not the transaction's own id: inside a savepoint rows are written under another.
    update biplane.database as here set stamped_in = here.xmin;
    update biplane.residence set state = 'restored', changed_at = pg_catalog.clock_timestamp();
end
$function$;

revoke all on biplane.database, biplane.run_time_role from public;
revoke all on function biplane.database_v1(), biplane.stamp_v1(uuid) from public;
