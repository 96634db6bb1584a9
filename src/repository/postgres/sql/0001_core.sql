-- The control plane: who the tenants are, where their rows live, and every change of that.
--
-- Whoever changes a tenant, a data source or a credential does so with plain INSERT and UPDATE, from a program or by
-- hand, inside a transaction at READ COMMITTED that says who and why:
--
--     begin;
--     set local biplane.actor = 'ann';
--     set local biplane.reason = 'INC-1234';
--     update biplane_control.tenant set status = 'suspended' where slug = 'acme';
--     commit;
--
-- Triggers do the rest, so that nothing can be forgotten: versions and epochs rise, names are claimed and released,
-- the audit and the change log get their entries, and what must never be is refused.
--
-- A change of more than half of the tenants that a router has cached is held by its brake, until somebody says in the same
-- way that it is meant, best at the end of the transaction of that change: select biplane_control.release_brake();
-- and `select biplane_control.freeze()` and `thaw()` hold and let go whatever would close or move an open tenant.
--
-- SQLSTATEs of our own: BC001 what is never changed this way; BC002 who or why is missing; BC003 a status that cannot
-- follow; BC004 a deleted tenant; BC005 a counter that would not rise; BC006 a database that is one tenant's alone;
-- BC007 a transaction above READ COMMITTED; BC008 a prepared credential without one in use.

create table biplane_control.meta (
    only_row boolean primary key default true check (only_row),
    -- One life of this control plane. Set another one after restoring a backup:
    -- update biplane_control.meta set incarnation = gen_random_uuid();
    incarnation uuid not null default gen_random_uuid(),
    -- The highest seq that was ever removed from the change log.
    pruned_through bigint not null default 0 check (pruned_through >= 0),
    -- Up to where changes pass the brakes of routers, whatever their number, in this life. Set by `release_brake` alone.
    released_through bigint not null default 0 check (released_through >= 0),
    -- Whether routers keep open tenants where they are. Set by `freeze` and `thaw` alone.
    frozen boolean not null default false
);
insert into biplane_control.meta default values;

create table biplane_control.data_source (
    id uuid primary key,
    name text collate "C" not null constraint data_source_name_key unique,
    location text not null,
    cluster text,
    region text,
    endpoints jsonb,
    database text,
    tls_mode text,
    tls_ca_pem text,
    tls_ca_file text,
    pooler text,
    max_prepared_statements bigint,
    pool_min bigint not null default 0,
    pool_max bigint not null default 10,
    database_id uuid constraint data_source_database_id_key unique,
    version bigint not null default 1,
    constraint data_source_name_form check (name ~ '^[A-Za-z0-9_.-]{1,63}$'),
    constraint data_source_location check (location in ('environment', 'server', 'memory')),
    constraint data_source_address check (
        case when location = 'server'
            then cluster is not null and endpoints is not null and database is not null
                and tls_mode is not null and pooler is not null
            else num_nonnulls(cluster, region, endpoints, database, tls_mode, tls_ca_pem, tls_ca_file, pooler,
                max_prepared_statements) = 0
        end),
    constraint data_source_texts check (cluster <> '' and region <> '' and database <> ''
        and tls_ca_pem <> '' and tls_ca_file <> ''),
    constraint data_source_endpoints check (
        case jsonb_typeof(endpoints)
            when 'array' then jsonb_array_length(endpoints) >= 1
                and jsonb_array_length(endpoints) = jsonb_array_length(jsonb_path_query_array(endpoints,
                    'strict $[*] ? (@.host.type() == "string" && @.host != "" && @.port.type() == "number"
                        && @.port >= 1 && @.port <= 65535 && @.port.floor() == @.port)'))
            else endpoints is null
        end),
    constraint data_source_tls_mode check (tls_mode in ('disable', 'prefer', 'require', 'verify-ca', 'verify-full')),
    constraint data_source_tls_ca check (tls_ca_pem is null or tls_ca_file is null),
    constraint data_source_pooler check (pooler in ('direct', 'session', 'transaction')
        and (pooler = 'transaction') = (max_prepared_statements is not null)
        and coalesce(max_prepared_statements between 0 and 4294967295, true)),
    constraint data_source_pool check (pool_min >= 0 and pool_min <= pool_max and pool_max > 0
        and pool_max <= 4294967295),
    constraint data_source_version check (version >= 1)
);

create table biplane_control.tenant (
    id uuid primary key,
    slug text collate "C" not null,
    domains text[] collate "C" not null default '{}',
    status text not null default 'provisioning',
    data_source_id uuid not null constraint tenant_data_source references biplane_control.data_source (id),
    isolation text not null default 'database',
    epoch bigint not null default 1,
    settings jsonb not null default '{}',
    version bigint not null default 1,
    constraint tenant_slug_form check (slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    constraint tenant_status check (status in
        ('provisioning', 'active', 'read_only', 'suspended', 'migrating', 'archived', 'deleted')),
    constraint tenant_isolation check (isolation in ('database', 'schema', 'row')),
    constraint tenant_epoch check (epoch >= 1),
    -- A null equals nothing, so that the names could not be told apart from it.
    constraint tenant_domains check (array_position(domains, null) is null),
    constraint tenant_settings_object check (jsonb_typeof(settings) = 'object'),
    constraint tenant_version check (version >= 1)
);
create index tenant_on_data_source on biplane_control.tenant (data_source_id) where status <> 'deleted';

-- One row for each slug and domain that ever named a tenant, kept up by the triggers of `tenant`. A row is free when it
-- names no tenant; its version rises whenever it changes hands.
create table biplane_control.tenant_name (
    kind text not null,
    name text collate "C" not null,
    tenant_id uuid constraint tenant_name_tenant references biplane_control.tenant (id),
    version bigint not null default 1,
    constraint tenant_name_pkey primary key (kind, name),
    constraint tenant_name_form check (
        case kind
            when 'slug' then name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
            when 'domain' then length(name) <= 253 and name !~ '\.([0-9]+|0x[0-9a-f]*)$'
                and name ~ '^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
            else false
        end),
    constraint tenant_name_version check (version >= 1)
);
create unique index tenant_name_one_slug on biplane_control.tenant_name (tenant_id) where kind = 'slug';

-- Sealed credentials. A slot is empty when it has no row or `sealed` is null; rows stay, so that no version comes back.
create table biplane_control.credential (
    data_source_id uuid not null constraint credential_data_source references biplane_control.data_source (id),
    role text collate "C" not null,
    slot text collate "C" not null,
    version bigint not null default 1,
    sealed text,
    primary key (data_source_id, role, slot),
    constraint credential_role check (role in ('app', 'service', 'read_only')),
    constraint credential_slot check (slot in ('current', 'next')),
    constraint credential_version check (version >= 1),
    -- `bp1.<key id>.<base64url of at least 72 bytes>`: a plain password or URL cannot have this form.
    constraint credential_sealed check (sealed ~ '^bp1\.[0-9a-f]{16}\.[A-Za-z0-9_-]+$'
        and length(sealed) >= 117 and (length(sealed) - 21) % 4 <> 1)
);

create table biplane_control.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(),
    actor text not null check (actor <> ''),
    reason text not null check (reason <> ''),
    -- The role that logged in, whatever the actor says.
    session_role text not null default session_user,
    tenant_id uuid,
    data_source_id uuid,
    kinds text[] not null,
    -- `{"fact": {"before": …, "after": …}}`; credentials as versions only, those that were sealed anew as key ids.
    changed jsonb not null check (jsonb_typeof(changed) = 'object'),
    -- About nobody alone: how routers take changes.
    constraint audit_subject check (num_nonnulls(tenant_id, data_source_id)
        = case when kinds && '{released,frozen,thawed}' then 0 else 1 end)
);
create index audit_of_tenant on biplane_control.audit (tenant_id, id) where tenant_id is not null;

create sequence biplane_control.change_seq;
create table biplane_control.change (
    seq bigint primary key,
    tenant_id uuid,
    data_source_id uuid,
    kind text not null,
    at timestamptz not null,
    constraint change_subject check (num_nonnulls(tenant_id, data_source_id)
        = case when kind in ('released', 'frozen', 'thawed') then 0 else 1 end),
    constraint change_kind check (kind in
        ('created', 'names', 'status', 'placement', 'settings', 'address', 'credential', 'deleted',
         'released', 'frozen', 'thawed'))
);

-- The processes that route by this control plane: written by `beat` and `leave` alone, every few seconds, so without
-- audit, change log and notification. No index but the keys', so that a beat updates rows where they are.
create table biplane_control.instance (
    id uuid primary key,
    service text not null check (service <> ''),
    started_at timestamptz not null default clock_timestamp(),
    seen_at timestamptz not null default clock_timestamp(),
    -- Since when no two of its beats were more than a minute apart.
    steady_since timestamptz not null default clock_timestamp(),
    applied_seq bigint not null default 0 check (applied_seq >= 0)
);

-- The keys that each of them has loaded, with what it has done with them since it started.
create table biplane_control.instance_key (
    instance_id uuid not null references biplane_control.instance (id) on delete cascade,
    key_id text collate "C" not null check (key_id ~ '^[0-9a-f]{16}$'),
    state text not null check (state in ('pending', 'primary', 'decrypt-only', 'disabled', 'destroyed')),
    opens bigint not null check (opens >= 0),
    seals bigint not null check (seals >= 0),
    refused bigint not null check (refused >= 0),
    -- When `opens` or `refused` was last seen to differ from the beat before, or the key was first reported.
    used_at timestamptz not null default clock_timestamp(),
    primary key (instance_id, key_id)
);

create function biplane_control.refuse() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $function$
begin
    raise exception using errcode = 'BC001',
        message = format('%s of biplane_control.%s is refused', lower(tg_op), tg_table_name),
        hint = tg_argv[0];
end
$function$;

-- The facts that differ between two rows.
create function biplane_control.differences(before jsonb, after jsonb) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $function$
    select coalesce(jsonb_object_agg(key, jsonb_build_object('before', before -> key, 'after', after -> key)), '{}')
    from jsonb_object_keys(before || after) as key
    where coalesce(before -> key, 'null') <> coalesce(after -> key, 'null')
$function$;

-- Writes the audit entry of a change; the change log follows at commit.
create function biplane_control.record(tenant uuid, source uuid, kinds text[], changed jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $function$
declare
    actor text := current_setting('biplane.actor', true);
    reason text := current_setting('biplane.reason', true);
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'BC007',
            message = 'a change of the control plane needs a transaction at READ COMMITTED',
            hint = 'Its checks must see what others have just committed: begin isolation level read committed.';
    end if;
    if coalesce(btrim(actor), '') = '' or coalesce(btrim(reason), '') = '' then
        raise exception using errcode = 'BC002',
            message = 'a change of the control plane must say who makes it and why',
            hint = 'In the same transaction: set local biplane.actor = ''…''; set local biplane.reason = ''…'';';
    end if;
    insert into biplane_control.audit (actor, reason, tenant_id, data_source_id, kinds, changed)
    values (actor, reason, tenant, source, kinds, changed);
end
$function$;

-- Fires at commit. The lock is held until the commit is visible, so that the order of seq is the order in which changes
-- become visible and a reader of "seq > last" skips nothing. It is the lock of a row and not an advisory one, which any
-- role of the database could take, and keep everybody from writing. Who listens hears of it once it is committed, by a
-- payload that says where the log stands and is no more than a hint.
create function biplane_control.append_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
    reached bigint;
begin
    perform 1 from biplane_control.meta for no key update;
    with appended as (
        insert into biplane_control.change (seq, tenant_id, data_source_id, kind, at)
        select nextval('biplane_control.change_seq'), new.tenant_id, new.data_source_id, kind, clock_timestamp()
        from unnest(new.kinds) as kind
        returning seq
    )
    select max(seq) into reached from appended;
    -- Here, where the position is known, and under the lock that orders it among all changes.
    if new.kinds && '{released,frozen,thawed}' then
        update biplane_control.meta
        set released_through = case when 'released' = any (new.kinds) then reached else released_through end,
            frozen = ('frozen' = any (new.kinds) or frozen) and not 'thawed' = any (new.kinds);
    end if;
    perform pg_notify('biplane_change', reached::text) where reached is not null;
    return null;
end
$function$;

create function biplane_control.tenant_guard() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
begin
    new.domains := array(select distinct domain from unnest(new.domains) as domain order by domain);
    if tg_op = 'INSERT' then
        if new.status <> 'provisioning' then
            raise exception using errcode = 'BC003', message = 'a tenant begins as provisioning';
        end if;
        if new.version <> 1 or new.epoch <> 1 then
            raise exception using errcode = 'BC005', message = 'a tenant begins at version 1 and epoch 1';
        end if;
        return new;
    end if;
    if new.id <> old.id then
        raise exception using errcode = 'BC001', message = 'the id of a tenant never changes';
    end if;
    if new.version < old.version or new.epoch < old.epoch then
        raise exception using errcode = 'BC005', message = 'versions and epochs only rise';
    end if;
    if new.status = 'deleted' and old.status <> 'deleted' then
        new.domains := '{}';
    end if;
    if to_jsonb(new) - 'version' = to_jsonb(old) - 'version' then
        new.version := old.version;
        return new;
    end if;
    if new.status <> old.status and (old.status, new.status) not in (
        ('provisioning', 'active'), ('provisioning', 'deleted'),
        ('active', 'read_only'), ('active', 'suspended'), ('active', 'migrating'), ('active', 'archived'),
        ('read_only', 'active'), ('read_only', 'suspended'), ('read_only', 'archived'),
        ('suspended', 'active'), ('suspended', 'read_only'), ('suspended', 'archived'),
        ('migrating', 'active'),
        ('archived', 'active'), ('archived', 'deleted')
    ) then
        raise exception using errcode = 'BC003',
            message = format('a tenant cannot go from %s to %s', old.status, new.status);
    end if;
    if old.status = 'deleted' then
        raise exception using errcode = 'BC004', message = 'a deleted tenant stays as it is';
    end if;
    if (new.data_source_id, new.isolation) <> (old.data_source_id, old.isolation) and new.epoch = old.epoch then
        new.epoch := old.epoch + 1;
    end if;
    new.version := greatest(new.version, old.version + 1);
    return new;
end
$function$;

-- Waits for whoever else places a tenant on this data source, then looks. Two Database tenants, or one beside others,
-- would read each other's rows.
create function biplane_control.check_exclusive(tenant uuid, source uuid, mode text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $function$
begin
    perform 1 from biplane_control.data_source where id = source for no key update;
    if exists (
        select from biplane_control.tenant as other
        where other.data_source_id = source and other.id <> tenant and other.status <> 'deleted'
            and (mode = 'database' or other.isolation = 'database')
    ) then
        raise exception using errcode = 'BC006',
            message = 'a database that is one tenant''s alone cannot hold a second one',
            hint = 'Place the tenant on another data source, or delete the one that has this database first.';
    end if;
end
$function$;

create function biplane_control.move_names(tenant uuid, kind_of text, before text[], after text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $function$
declare
    wanted text;
begin
    -- All rows are locked in one order first, so that two tenants exchanging names do not wait for each other.
    perform 1 from biplane_control.tenant_name
    where kind = kind_of and name = any (before || after) order by name for update;
    update biplane_control.tenant_name set tenant_id = null
    where kind = kind_of and name = any (before) and name <> all (after) and tenant_id = tenant;
    for wanted in select name from unnest(after) as name where name <> all (before) order by name loop
        insert into biplane_control.tenant_name as taken (kind, name, tenant_id) values (kind_of, wanted, tenant)
        on conflict (kind, name) do update set tenant_id = excluded.tenant_id where taken.tenant_id is null;
        if not found then
            raise exception using errcode = 'unique_violation', constraint = 'tenant_name_owner',
                message = format('the %s %s belongs to another tenant', kind_of, wanted);
        end if;
    end loop;
end
$function$;

create function biplane_control.tenant_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
    before jsonb := '{}';
    changed jsonb;
    kinds text[] := '{}';
begin
    if tg_op = 'UPDATE' then
        before := to_jsonb(old) - 'id' - 'version';
    end if;
    changed := biplane_control.differences(before, to_jsonb(new) - 'id' - 'version');
    if changed = '{}' then
        return null;
    end if;
    if tg_op = 'INSERT' then
        kinds := '{created}';
        perform biplane_control.move_names(new.id, 'slug', '{}', array[new.slug]);
        perform biplane_control.move_names(new.id, 'domain', '{}', new.domains);
    else
        perform biplane_control.move_names(new.id, 'slug', array[old.slug], array[new.slug])
        where changed ? 'slug';
        perform biplane_control.move_names(new.id, 'domain', old.domains, new.domains)
        where changed ? 'domains';
        kinds := array_remove(array[
            case when changed ?| '{slug,domains}' then 'names' end,
            case when changed ? 'status' then case new.status when 'deleted' then 'deleted' else 'status' end end,
            case when changed ?| '{data_source_id,isolation,epoch}' then 'placement' end,
            case when changed ? 'settings' then 'settings' end], null);
    end if;
    if changed ?| '{data_source_id,isolation}' then
        perform biplane_control.check_exclusive(new.id, new.data_source_id, new.isolation);
    end if;
    perform biplane_control.record(new.id, null, kinds, changed);
    return null;
end
$function$;

create function biplane_control.name_guard() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $function$
begin
    if pg_trigger_depth() < 2 then
        raise exception using errcode = 'BC001',
            message = 'names are written by the triggers of biplane_control.tenant alone',
            hint = 'Change slug or domains of the tenant.';
    end if;
    if tg_op = 'INSERT' then
        new.version := 1;
    elsif (new.kind, new.name) <> (old.kind, old.name)
        or (old.tenant_id is not null and new.tenant_id is not null and new.tenant_id <> old.tenant_id) then
        raise exception using errcode = 'BC001', message = 'a name changes hands only by being free in between';
    else
        new.version := old.version + (new.tenant_id is distinct from old.tenant_id)::int;
    end if;
    return new;
end
$function$;

create function biplane_control.data_source_guard() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
begin
    -- Not a CHECK, which would print the row, and with it the password. The audit would keep it for ever.
    if concat_ws(' ', new.cluster, new.region, new.database, new.tls_ca_file, new.endpoints) like '%://%'
        or jsonb_path_exists(new.endpoints, '$[*].host ? (@ like_regex "@")') then
        raise exception using errcode = 'check_violation', constraint = 'data_source_no_url',
            message = 'the address of a data source holds a URL or a login where a name is wanted';
    end if;
    if tg_op = 'INSERT' then
        if new.version <> 1 then
            raise exception using errcode = 'BC005', message = 'a data source begins at version 1';
        end if;
        return new;
    end if;
    if new.id <> old.id then
        raise exception using errcode = 'BC001', message = 'the id of a data source never changes';
    end if;
    if new.version < old.version then
        raise exception using errcode = 'BC005', message = 'versions only rise';
    end if;
    if to_jsonb(new) - 'version' <> to_jsonb(old) - 'version' then
        new.version := greatest(new.version, old.version + 1);
    elsif pg_trigger_depth() < 2 then
        -- A change of its credentials comes from their trigger and raises the version alone; by hand it means nothing.
        new.version := old.version;
    end if;
    return new;
end
$function$;

create function biplane_control.data_source_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
    before jsonb := '{}';
    changed jsonb;
begin
    if tg_op = 'UPDATE' then
        before := to_jsonb(old) - 'id' - 'version';
    end if;
    changed := biplane_control.differences(before, to_jsonb(new) - 'id' - 'version');
    if changed <> '{}' then
        perform biplane_control.record(null, new.id,
            array[case tg_op when 'INSERT' then 'created' else 'address' end], changed);
    end if;
    return null;
end
$function$;

create function biplane_control.credential_guard() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
    highest bigint;
begin
    -- Looked at here, because a CHECK that fails prints the row, and with it whatever stands in for the sealed value.
    if not (new.sealed ~ '^bp1\.[0-9a-f]{16}\.[A-Za-z0-9_-]+$'
        and length(new.sealed) >= 117 and (length(new.sealed) - 21) % 4 <> 1) then
        raise exception using errcode = 'check_violation', constraint = 'credential_sealed',
            message = 'a credential is stored sealed, and this value is not';
    end if;
    -- Whoever changes credentials of one data source waits here, so that no version is given twice.
    perform 1 from biplane_control.data_source where id = new.data_source_id for no key update;
    select coalesce(max(version), 0) into highest from biplane_control.credential
    where data_source_id = new.data_source_id and role = new.role;
    if tg_op = 'INSERT' then
        new.version := greatest(new.version, highest + 1);
        return new;
    end if;
    if (new.data_source_id, new.role, new.slot) <> (old.data_source_id, old.role, old.slot) then
        raise exception using errcode = 'BC001', message = 'a credential stays with its data source, role and slot';
    end if;
    if new.version < old.version then
        raise exception using errcode = 'BC005', message = 'versions only rise';
    end if;
    -- The same login under another key, says `reseal_credentials`: nobody has to connect anew for that.
    if new.version > old.version
        or new.sealed is distinct from old.sealed
            and coalesce(current_setting('biplane.resealing', true), '') <> 'on' then
        new.version := greatest(new.version, highest + 1);
    end if;
    return new;
end
$function$;

create function biplane_control.credential_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
    fact text := format('credential.%s.%s', new.role, new.slot);
    before jsonb;
    after jsonb := case when new.sealed is not null then to_jsonb(new.version) end;
begin
    if tg_op = 'UPDATE' then
        if new.version = old.version and new.sealed is not distinct from old.sealed then
            return null;
        end if;
        before := case when old.sealed is not null then to_jsonb(old.version) end;
        if new.version = old.version then
            fact := fact || '.key';
            before := to_jsonb(split_part(old.sealed, '.', 2));
            after := to_jsonb(split_part(new.sealed, '.', 2));
        end if;
    end if;
    if exists (
        select from biplane_control.credential as prepared
        where prepared.data_source_id = new.data_source_id and prepared.role = new.role
            and prepared.slot = 'next' and prepared.sealed is not null
            and not exists (
                select from biplane_control.credential as used
                where used.data_source_id = new.data_source_id and used.role = new.role
                    and used.slot = 'current' and used.sealed is not null)
    ) then
        raise exception using errcode = 'BC008', message = 'a next credential needs a current one';
    end if;
    update biplane_control.data_source set version = version + 1 where id = new.data_source_id;
    perform biplane_control.record(null, new.data_source_id, '{credential}', jsonb_build_object(
        fact, jsonb_build_object('before', before, 'after', after)));
    return null;
end
$function$;

create function biplane_control.change_guard() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $function$
begin
    if pg_trigger_depth() < 2 then
        raise exception using errcode = 'BC001', message = 'the change log is written at commit, by trigger alone';
    end if;
    return new;
end
$function$;

-- Whoever removes history, its readers are told.
create function biplane_control.change_pruned() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
begin
    update biplane_control.meta
    set pruned_through = greatest(pruned_through, (select max(seq) from gone))
    where exists (select from gone);
    return null;
end
$function$;

create function biplane_control.meta_guard() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $function$
begin
    if new.pruned_through < old.pruned_through then
        raise exception using errcode = 'BC005', message = 'pruned_through only rises';
    end if;
    if (new.released_through, new.frozen) <> (old.released_through, old.frozen) and pg_trigger_depth() < 2 then
        raise exception using errcode = 'BC001',
            message = 'how routers take changes is set by functions alone, which say who and why',
            hint = 'select biplane_control.release_brake(), freeze() or thaw().';
    end if;
    -- Positions of another life say nothing in this one.
    if new.incarnation <> old.incarnation then
        new.released_through := 0;
    end if;
    return new;
end
$function$;

-- Lets whatever is committed by this transaction or was before it past the brakes of all routers: those that hold changes
-- apply them, and those that would have do not begin to. It belongs at the end of the transaction of a bulk change that is
-- meant.
create function biplane_control.release_brake() returns void
language sql security definer set search_path = pg_catalog, pg_temp as $function$
    select biplane_control.record(null, null, '{released}', '{"brake": {"before": null, "after": "released"}}')
$function$;

-- Keeps open tenants where they are, in every process that has them cached, until `thaw`.
create function biplane_control.freeze() returns void
language sql security definer set search_path = pg_catalog, pg_temp as $function$
    select biplane_control.record(null, null, '{frozen}',
        jsonb_build_object('frozen', jsonb_build_object('before', frozen, 'after', true)))
    from biplane_control.meta
$function$;

-- Lets routing go on, and whatever has changed since `freeze` act.
create function biplane_control.thaw() returns void
language sql security definer set search_path = pg_catalog, pg_temp as $function$
    select biplane_control.record(null, null, '{thawed}',
        jsonb_build_object('frozen', jsonb_build_object('before', frozen, 'after', false)))
    from biplane_control.meta
$function$;

-- Removes the changes that are older than `keep`; returns how many.
create function biplane_control.prune_changes(keep interval) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
declare
    removed bigint;
begin
    delete from biplane_control.change
    where seq <= (select max(seq) from biplane_control.change where at <= clock_timestamp() - keep);
    get diagnostics removed = row_count;
    return removed;
end
$function$;

-- Replaces sealed credentials by the same logins sealed under another key, each where the slot still holds `before`;
-- says of each, in the order given, whether it did. What somebody else has changed, or is about to, stays. The versions
-- of the credentials stay too, and those of their data sources rise, so that routers take up the new text.
create function biplane_control.reseal_credentials(
    source uuid[], role text[], slot text[], before text[], after text[]) returns boolean[]
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
#variable_conflict use_column
declare
    wanted record;
    outcomes boolean[] := '{}';
    replaced boolean;
begin
    if (cardinality(reseal_credentials.source) = all (array[cardinality(reseal_credentials.role),
            cardinality(reseal_credentials.slot), cardinality(reseal_credentials.before),
            cardinality(reseal_credentials.after)])) is not true then
        raise exception using errcode = 'invalid_parameter_value',
            message = 'the arrays of reseal_credentials have one length';
    end if;
    if array_position(reseal_credentials.after, null) is not null then
        raise exception using errcode = 'check_violation', constraint = 'credential_sealed',
            message = 'a credential is sealed anew, never emptied';
    end if;
    -- All at once and in one order, so that several of us do not wait for each other in a circle.
    perform 1 from biplane_control.data_source as known
    where known.id = any (reseal_credentials.source) order by known.id for no key update;
    -- Whoever sets this by hand gets no more than this function gives.
    perform set_config('biplane.resealing', 'on', true);
    for wanted in
        select * from unnest(reseal_credentials.source, reseal_credentials.role, reseal_credentials.slot,
            reseal_credentials.before, reseal_credentials.after)
            with ordinality as asked (source, role, slot, before, after, place) order by asked.place
    loop
        -- Who writes by hand holds this row while waiting for the data source that we hold: theirs is the change.
        perform 1 from biplane_control.credential as held
        where held.data_source_id = wanted.source and held.role = wanted.role and held.slot = wanted.slot
            and held.sealed = wanted.before
        for no key update skip locked;
        replaced := found;
        if replaced then
            update biplane_control.credential as held set sealed = wanted.after
            where held.data_source_id = wanted.source and held.role = wanted.role and held.slot = wanted.slot;
        end if;
        outcomes := outcomes || replaced;
    end loop;
    perform set_config('biplane.resealing', '', true);
    return outcomes;
end
$function$;

-- Says that an instance lives, how far it has followed the change log, and which keys it has:
-- `[{"id": "…", "state": "primary", "opens": 0, "seals": 0, "refused": 0}]`, all of them each time. Who has been silent
-- for a day is forgotten on the way. Nobody waits for anybody but for the end of what is about the same instance: the
-- silent ones are taken in one order, and left to whoever has them already.
create function biplane_control.beat(id uuid, service text, applied bigint, keys jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
#variable_conflict use_column
declare
    heard timestamptz := clock_timestamp();
begin
    insert into biplane_control.instance as known (id, service, started_at, seen_at, steady_since, applied_seq)
    values (beat.id, beat.service, heard, heard, heard, beat.applied)
    on conflict (id) do update
    set service = excluded.service, seen_at = excluded.seen_at, applied_seq = excluded.applied_seq,
        steady_since = case when excluded.seen_at - known.seen_at <= interval '1 minute'
            then known.steady_since else excluded.seen_at end;
    delete from biplane_control.instance_key as held
    where held.instance_id = beat.id
        and held.key_id not in (select key ->> 'id' from jsonb_array_elements(beat.keys) as key);
    insert into biplane_control.instance_key as held (instance_id, key_id, state, opens, seals, refused, used_at)
    select beat.id, key.id, key.state, key.opens, key.seals, key.refused, heard
    from jsonb_to_recordset(beat.keys) as key (id text, state text, opens bigint, seals bigint, refused bigint)
    on conflict (instance_id, key_id) do update
    set state = excluded.state, opens = excluded.opens, seals = excluded.seals, refused = excluded.refused,
        -- A counter that fell began again, and what it counted in between nobody knows.
        used_at = case when (excluded.opens, excluded.refused) = (held.opens, held.refused)
            then held.used_at else excluded.used_at end
    where (excluded.state, excluded.opens, excluded.seals, excluded.refused)
        <> (held.state, held.opens, held.seals, held.refused);
    delete from biplane_control.instance
    where id = any (array(
        select silent.id from biplane_control.instance as silent
        where silent.seen_at < heard - interval '24 hours'
        order by silent.id for update skip locked));
end
$function$;

-- Says that an instance has ended, or is known to be dead.
create function biplane_control.leave(id uuid) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $function$
    delete from biplane_control.instance as gone where gone.id = leave.id
$function$;

create trigger tenant_guard before insert or update on biplane_control.tenant
    for each row execute function biplane_control.tenant_guard();
create trigger tenant_changed after insert or update on biplane_control.tenant
    for each row execute function biplane_control.tenant_changed();
create trigger tenant_stays before delete or truncate on biplane_control.tenant
    for each statement execute function biplane_control.refuse('Set its status to deleted.');
create trigger name_guard before insert or update on biplane_control.tenant_name
    for each row execute function biplane_control.name_guard();
create trigger name_stays before delete or truncate on biplane_control.tenant_name
    for each statement execute function biplane_control.refuse('Change slug or domains of the tenant.');
create trigger data_source_guard before insert or update on biplane_control.data_source
    for each row execute function biplane_control.data_source_guard();
create trigger data_source_changed after insert or update on biplane_control.data_source
    for each row execute function biplane_control.data_source_changed();
create trigger data_source_stays before delete or truncate on biplane_control.data_source
    for each statement execute function biplane_control.refuse('A data source without tenants does no harm.');
create trigger credential_guard before insert or update on biplane_control.credential
    for each row execute function biplane_control.credential_guard();
create trigger credential_changed after insert or update on biplane_control.credential
    for each row execute function biplane_control.credential_changed();
create trigger credential_stays before delete or truncate on biplane_control.credential
    for each statement execute function biplane_control.refuse('Set sealed to null to empty the slot.');
create trigger audit_stays before update or delete or truncate on biplane_control.audit
    for each statement execute function biplane_control.refuse('The audit is only ever appended to.');
create constraint trigger audit_appends_change after insert on biplane_control.audit
    deferrable initially deferred for each row execute function biplane_control.append_change();
create trigger change_guard before insert on biplane_control.change
    for each row execute function biplane_control.change_guard();
create trigger change_stays before update or truncate on biplane_control.change
    for each statement execute function biplane_control.refuse('Remove old changes with prune_changes.');
create trigger change_pruned after delete on biplane_control.change
    referencing old table as gone for each statement execute function biplane_control.change_pruned();
create trigger meta_guard before update on biplane_control.meta
    for each row execute function biplane_control.meta_guard();
create trigger meta_stays before delete or truncate on biplane_control.meta
    for each statement execute function biplane_control.refuse('Uninstall the schema instead.');

-- The data source whose address comes from the environment of each process.
select set_config('biplane.actor', 'biplane', true), set_config('biplane.reason', 'installation', true);
insert into biplane_control.data_source (id, name, location)
values ('b1b10000-0000-8000-8000-000000000001', 'default', 'environment');
set constraints all immediate;
set constraints all deferred;
select set_config('biplane.actor', '', true), set_config('biplane.reason', '', true);
