with wanted as materialized (
    select asked.ord, asked.id as tenant_id, null::bigint as name_version
    from rows from (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::uuid[])) as asked (ord, id)
    union all
    select asked.ord, owned.tenant_id, owned.version
    from rows from (pg_catalog.unnest($3::int[]), pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::text[]))
        as asked (ord, kind, name)
    join biplane_control.tenant_name as owned on owned.kind = asked.kind and owned.name = asked.name
    where owned.tenant_id is not null
),
tenants as materialized (
    select tenant.* from biplane_control.tenant
    where tenant.id in (select wanted.tenant_id from wanted)
),
