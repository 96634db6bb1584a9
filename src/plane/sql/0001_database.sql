-- What a data-plane database says of itself, and who works in it.
--
-- Nothing here has a `set` clause: a function with one would undo the search_path that it sets. So every name is
-- qualified, operators too, and means the same whatever a session's search_path is.

-- Which database this is, and where it was when that was written: a row that came out of a dump was not written by the
-- transaction it names, a copy lies in another directory, and a server that was restored to a point in time or promoted is
-- on another timeline. All in one row, because every transaction reads it.
create table biplane.database (
    only_row boolean primary key default true check (only_row),
    database_id uuid not null,
    stamped_in text not null,
    directory text not null,
    system_identifier bigint not null,
    timeline text not null,
    -- Whether another timeline is this database still: for servers of which only synchronous standbys are promoted.
    follows_failover boolean not null default false,
    -- The setting that policies read.
    tenant_setting text not null default 'app.tenant_id'
        constraint database_tenant_setting check (
            tenant_setting ~ '^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)+$' and tenant_setting <> 'biplane.tenant'),
    -- The logins that may enter, or the groups they belong to, each with its timeouts in milliseconds. Without one, a
    -- session keeps what it has.
    run_time_roles jsonb not null default '{}' constraint database_run_time_roles check (
        jsonb_typeof(run_time_roles) = 'object')
);

-- Where the database's files are, below its tablespace: the number that tells it from its copies on the same server.
create function biplane.directory_v1() returns text
language sql stable as $function$
    select pg_catalog.split_part(pg_catalog.reverse(
        pg_catalog.pg_relation_filepath('biplane.database'::pg_catalog.regclass)), '/', 2)
$function$;

-- The history that the server writes; none on a standby.
create function biplane.timeline_v1() returns text
language sql volatile as $function$
    select case when not pg_catalog.pg_is_in_recovery()
        then pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) end
$function$;

-- Whether the stamp was written here.
create function biplane.stamped_here_v1() returns boolean
language sql volatile as $function$
    select here.stamped_in operator(pg_catalog.=) here.xmin::pg_catalog.text
        and here.directory operator(pg_catalog.=) biplane.directory_v1()
        and here.system_identifier operator(pg_catalog.=) control.system_identifier
        and (here.follows_failover or coalesce(here.timeline operator(pg_catalog.=) biplane.timeline_v1(), true))
    from biplane.database as here, pg_catalog.pg_control_system() as control
$function$;

-- Which database this says it is. Raises BP003 when what says so was written elsewhere: this is a copy then, or restored.
create function biplane.database_v1() returns uuid
language plpgsql volatile as $function$
begin
    if not biplane.stamped_here_v1() then
        raise exception using errcode = 'BP003', message = 'this database is a copy, or was restored',
            hint = 'Reconcile it with the control plane and stamp it.';
    end if;
    return (select here.database_id from biplane.database as here);
end
$function$;

-- Makes the database say that it is this one, here and from now on. What it was told of tenants is not believed any more
-- if it was another one, or elsewhere.
create function biplane.stamp_v1(database uuid) returns void
language plpgsql as $function$
begin
    if biplane.stamped_here_v1() and biplane.database_v1() operator(pg_catalog.=) database then
        return;
    end if;
    insert into biplane.database as here (database_id, stamped_in, directory, system_identifier, timeline)
    select stamp_v1.database, '', biplane.directory_v1(), control.system_identifier, biplane.timeline_v1()
    from pg_catalog.pg_control_system() as control
    on conflict (only_row) do update set database_id = excluded.database_id, directory = excluded.directory,
        system_identifier = excluded.system_identifier, timeline = excluded.timeline;
    perform biplane.keep_stamp();
    update biplane.residence set state = 'restored', changed_at = pg_catalog.clock_timestamp();
end
$function$;

-- What changes the row changes the transaction that it was written in. Not this transaction's own id: inside a savepoint
-- rows are written under another.
create function biplane.keep_stamp() returns void
language sql as $function$
    update biplane.database as here set stamped_in = here.xmin::pg_catalog.text
$function$;

-- Lets a login, or the members of a group, enter, with these timeouts in milliseconds.
create function biplane.allow_v1(
    role_name name,
    statement_timeout integer default null, lock_timeout integer default null, idle_timeout integer default null
) returns void
language plpgsql as $function$
begin
    perform biplane.database_v1();
    update biplane.database as here
    set run_time_roles = here.run_time_roles operator(pg_catalog.||) pg_catalog.jsonb_build_object(role_name::text,
        pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('statement_timeout', statement_timeout,
            'lock_timeout', lock_timeout, 'idle_timeout', idle_timeout)));
    perform biplane.keep_stamp();
end
$function$;

-- Takes that back. A fence does not wait any more for sessions that such a role still has: end them first.
create function biplane.disallow_v1(role_name name) returns void
language plpgsql as $function$
begin
    perform biplane.database_v1();
    update biplane.database as here
    set run_time_roles = here.run_time_roles operator(pg_catalog.-) role_name::text;
    perform biplane.keep_stamp();
end
$function$;

-- Whether a login may enter: it was named, or belongs to a group that was. A superuser belongs to every group, and is
-- therefore asked for by name: dumps and maintenance run as one, and must not keep a fence waiting.
create function biplane.may_enter_v1(login name) returns boolean
language sql stable as $function$
    select exists (
        select from biplane.database as here
        cross join pg_catalog.jsonb_object_keys(here.run_time_roles) as allowed (role_name)
        left join pg_catalog.pg_roles as team
            on team.rolname operator(pg_catalog.=) allowed.role_name::pg_catalog.name
        left join pg_catalog.pg_roles as member on member.rolname operator(pg_catalog.=) login
        where allowed.role_name::pg_catalog.name operator(pg_catalog.=) login
            or not member.rolsuper and pg_catalog.pg_has_role(member.oid, team.oid, 'MEMBER'))
$function$;

-- The timeouts of a login that was not named itself and belongs to groups that were: of each kind the shortest. Null if it
-- belongs to none, and then it may not enter.
create function biplane.team_v1(login name) returns jsonb
language sql stable as $function$
    select case when pg_catalog.count(*) operator(pg_catalog.>) 0 then
        pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'statement_timeout', pg_catalog.min(given.statement)
                filter (where given.statement operator(pg_catalog.<>) 0),
            'lock_timeout', pg_catalog.min(given.lock)
                filter (where given.lock operator(pg_catalog.<>) 0),
            'idle_timeout', pg_catalog.min(given.idle)
                filter (where given.idle operator(pg_catalog.<>) 0))) end
    from biplane.database as here
    cross join pg_catalog.jsonb_each(here.run_time_roles) as allowed (role_name, timeouts)
    cross join lateral (
        select (allowed.timeouts operator(pg_catalog.->>) 'statement_timeout')::pg_catalog.int4 as statement,
            (allowed.timeouts operator(pg_catalog.->>) 'lock_timeout')::pg_catalog.int4 as lock,
            (allowed.timeouts operator(pg_catalog.->>) 'idle_timeout')::pg_catalog.int4 as idle
    ) as given
    join pg_catalog.pg_roles as team on team.rolname operator(pg_catalog.=) allowed.role_name::pg_catalog.name
    join pg_catalog.pg_roles as member on member.rolname operator(pg_catalog.=) login
    where not member.rolsuper and pg_catalog.pg_has_role(member.oid, team.oid, 'MEMBER')
$function$;

revoke all on biplane.database from public;
revoke all on function biplane.directory_v1(), biplane.timeline_v1(), biplane.stamped_here_v1(), biplane.database_v1(),
    biplane.stamp_v1(uuid), biplane.keep_stamp(), biplane.allow_v1(name, integer, integer, integer),
    biplane.disallow_v1(name), biplane.may_enter_v1(name), biplane.team_v1(name) from public;
