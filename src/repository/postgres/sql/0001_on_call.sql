
-- For whoever is on call: what a router would find, which processes follow, and what no fence protects. The views run
-- with the rights of their owner, so that whoever may read them needs no right to the sealed credentials, of which they
-- show the key and never the text.

-- A name is found by its kind and text, an id as text by this.
create index tenant_id_text on biplane_control.tenant ((id::text collate "C"));
create index tenant_name_domains on biplane_control.tenant_name (tenant_id) where kind = 'domain';

-- One row for each stored credential.
create view biplane_control.credential_key as
select held.data_source_id, source.name collate "C" as data_source, held.role, held.slot, held.version,
    split_part(held.sealed, '.', 2) collate "C" as key_id
from biplane_control.credential as held
join biplane_control.data_source as source on source.id = held.data_source_id
where held.sealed is not null;

-- One row for each name that leads, or once led, to a tenant: `kind` is id, slug or domain. A free name leads nowhere.
-- `name_version` is 1 as long as a name has been one tenant's only; it rises when the name is released and when it is
-- taken again. Each kind is a part of its own, so that a look for a name, or for a tenant, goes by an index in each.
create view biplane_control.route_of as
select known.kind, known.name, known.name_version, coalesce(known.name_version > 1, false) as changed_hands,
    tenant.id as tenant_id, tenant.slug, tenant.status, tenant.version as tenant_version,
    tenant.isolation, tenant.epoch,
    source.id as data_source_id, source.name as data_source, source.version as data_source_version, source.location,
    source.cluster, source.region,
    array(select concat(endpoint ->> 'host', ':', endpoint ->> 'port')
        from jsonb_array_elements(source.endpoints) as endpoint) as endpoints,
    source.database, source.tls_mode, source.pooler, source.database_id,
    -- Role, slot, version, and the id of the key that opens it.
    array(select format('%s %s v%s key %s', held.role, held.slot, held.version, split_part(held.sealed, '.', 2))
        from biplane_control.credential as held
        where held.data_source_id = source.id and held.sealed is not null
        order by held.role, held.slot) as credentials
from (
    select 'id' as kind, owned.id::text collate "C" as name, null::bigint as name_version, owned.id as tenant_id
    from biplane_control.tenant as owned
    union all
    select 'slug', slug.name, slug.version, slug.tenant_id
    from biplane_control.tenant_name as slug where slug.kind = 'slug'
    union all
    select 'domain', domain.name, domain.version, domain.tenant_id
    from biplane_control.tenant_name as domain where domain.kind = 'domain'
) as known
left join biplane_control.tenant on tenant.id = known.tenant_id
left join biplane_control.data_source as source on source.id = tenant.data_source_id;

-- One row for each process that was heard of within a day. It is alive while no minute passes between two of its beats,
-- and suspect afterwards: dead, cut off from the control plane, or paused.
create view biplane_control.instance_status as
select process.id as instance_id, process.service, process.started_at, process.seen_at as last_seen,
    clock_timestamp() - process.seen_at as silent_for,
    case when clock_timestamp() - process.seen_at <= interval '1 minute' then 'alive' else 'suspect' end as state,
    process.applied_seq, log.seq as log_seq,
    (select count(*) from biplane_control.change as later where later.seq > process.applied_seq) as behind,
    -- For how long the first change that it has not applied has been waiting for it.
    (select clock_timestamp() - next.at from biplane_control.change as next
        where next.seq > process.applied_seq order by next.seq limit 1) as behind_for,
    -- Whether some of those have been pruned: then it looks at every tenant again.
    process.applied_seq < log.pruned_through as behind_pruned,
    coalesce((select jsonb_object_agg(held.state, held.keys) from (
        select state, count(*) as keys from biplane_control.instance_key
        where instance_id = process.id group by state) as held), '{}') as keys,
    -- Keys that a process seals with and that this one cannot open with.
    array(select distinct sealing.key_id from biplane_control.instance_key as sealing
        where sealing.state = 'primary' and not exists (
            select from biplane_control.instance_key as held
            where held.instance_id = process.id and held.key_id = sealing.key_id
                and held.state in ('pending', 'primary', 'decrypt-only'))
        order by sealing.key_id) as missing_primary
from biplane_control.instance as process
cross join (
    select greatest(coalesce((select max(seq) from biplane_control.change), 0), pruned_through) as seq, pruned_through
    from biplane_control.meta
) as log;

-- Data sources that hold tenants and whose databases nobody asks which they are, because they have no `database_id`.
create view biplane_control.unfenced as
select source.id as data_source_id, source.name as data_source, source.location, source.cluster, source.database,
    held.tenants
from biplane_control.data_source as source
join (
    select data_source_id, count(*) as tenants from biplane_control.tenant
    where status <> 'deleted' group by data_source_id
) as held on held.data_source_id = source.id
where source.database_id is null;

-- Says that somebody opens a credential, and gives it, sealed: an entry in the audit and none in the change log, because
-- nothing has changed. `version` and `sealed` are null when the slot is empty, and `data_source` as well when there is no
-- such data source; then nothing is written.
create function biplane_control.record_opening(source uuid, role text, slot text,
    out data_source text, out version bigint, out sealed text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
#variable_conflict use_column
begin
    select known.name, held.version, held.sealed
    into record_opening.data_source, record_opening.version, record_opening.sealed
    from biplane_control.data_source as known
    left join biplane_control.credential as held on held.data_source_id = known.id and held.sealed is not null
        and held.role = record_opening.role and held.slot = record_opening.slot
    where known.id = record_opening.source;
    if record_opening.sealed is null then
        return;
    end if;
    -- What is forgotten in a crash was not committed.
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    perform biplane_control.record(null, record_opening.source, '{}', jsonb_build_object(
        format('credential.%s.%s.opened', record_opening.role, record_opening.slot),
        jsonb_build_object('version', record_opening.version, 'key', split_part(record_opening.sealed, '.', 2))));
end
$function$;
