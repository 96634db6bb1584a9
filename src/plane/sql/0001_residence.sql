-- Which tenants live here, and since which epoch. Written by its owner alone.

create table biplane.residence (
    tenant_id uuid primary key,
    epoch bigint not null constraint residence_epoch check (epoch >= 1),
    -- open: can be entered. fenced: by a mover. restored: what a restored or copied database said, until it is
    -- reconciled with the control plane.
    state text not null constraint residence_state check (state in ('open', 'fenced', 'restored')),
    isolation text not null constraint residence_isolation check (isolation in ('database', 'schema', 'row')),
    -- The schema that unqualified names are looked up in. None: what the session has.
    schema_name name constraint residence_schema_name check (
        schema_name <> '' and schema_name !~ '^pg_'
        and schema_name not in ('biplane', 'biplane_control', 'information_schema', 'public')),
    -- What the rows carry. None: the tenant's id.
    row_key text constraint residence_row_key check (row_key <> ''),
    -- The role that its transactions take on, where it shares the database. None: the login's own.
    role_name name constraint residence_role_name check (
        role_name not in ('', 'none', 'public') and role_name !~ '^pg_'),
    -- The database this was written for.
    database_id uuid not null,
    changed_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint residence_schema check (isolation <> 'schema' or schema_name is not null),
    constraint residence_role check (isolation <> 'database' or role_name is null)
);
create unique index residence_one_database on biplane.residence (isolation) where isolation = 'database';
create unique index residence_schema_name_key on biplane.residence (schema_name) where isolation = 'schema';
create unique index residence_role_name_key on biplane.residence (role_name) where isolation = 'schema';
create unique index residence_row_key_key on biplane.residence (coalesce(row_key, tenant_id::text))
    where isolation = 'row';

-- What neighbours may not have in common, and what they must. Enter tells a session no more than where to look names up,
-- so a tenant of rows that looks into another's schema would find tables without policies there; and of those who share
-- tables a service takes statements and types to be the same.
create function biplane.check_neighbours() returns trigger
language plpgsql as $function$
declare
    reason text;
begin
    -- Writers of this table wait for each other, so that two cannot overlook one another. biplane.place_v1 has this lock
    -- already; whoever writes rows by hand in parallel begins with it, too, or meets deadlocks.
    lock table biplane.residence in share row exclusive mode;
    select case
        when new.isolation operator(pg_catalog.=) 'database' or other.isolation operator(pg_catalog.=) 'database'
            then 'a tenant with a database of its own shares it with no other'
        when (new.isolation operator(pg_catalog.=) 'schema' or other.isolation operator(pg_catalog.=) 'schema')
            and new.schema_name operator(pg_catalog.=) other.schema_name
            then 'a tenant with a schema of its own shares it with no other'
        when new.isolation operator(pg_catalog.=) 'row' and other.isolation operator(pg_catalog.=) 'row'
            and coalesce(new.schema_name, '') operator(pg_catalog.<>) coalesce(other.schema_name, '')
            then 'tenants who share tables look them up in the same schema'
    end as gap
    into reason
    from biplane.residence as other
    where other.tenant_id operator(pg_catalog.<>) new.tenant_id
    order by gap
    limit 1;
    if reason is not null then
        raise exception using errcode = 'BP006', message = reason;
    end if;
    return new;
end
$function$;

create trigger check_neighbours before insert or update of isolation, schema_name on biplane.residence
    for each row execute function biplane.check_neighbours();

revoke all on biplane.residence from public;
revoke all on function biplane.check_neighbours() from public;
