with wanted as (
    select null::int as ord, null::uuid as tenant_id, null::bigint as name_version where false
),
tenants as materialized (
    select tenant.* from biplane_control.tenant
    -- Not `id > $1 or $1 is null`, for which no index serves.
    where tenant.id >= coalesce($1, '00000000-0000-0000-0000-000000000000'::uuid) and tenant.id is distinct from $1
    order by tenant.id
    limit $2
),
