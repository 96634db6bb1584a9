with wanted as (
    select null::int as ord, null::uuid as tenant_id, null::bigint as name_version where false
),
tenants as materialized (
    select tenant.* from biplane_control.tenant
    where tenant.id > $1 or $1 is null
    order by tenant.id
    limit $2
),
