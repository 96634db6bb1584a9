sources as (
    select source.* from biplane_control.data_source as source
    where source.id in (select tenants.data_source_id from tenants)
)
select 'hit' as part, wanted.tenant_id as id, wanted.ord, wanted.name_version, null as body from wanted
union all
select 'tenant', tenants.id, null, null, pg_catalog.to_jsonb(tenants)::text from tenants
union all
select 'source', sources.id, null, null, (
    pg_catalog.to_jsonb(sources) || pg_catalog.jsonb_build_object('credentials', (
        select coalesce(pg_catalog.jsonb_agg(credential), '[]')
        from biplane_control.credential
        where credential.data_source_id = sources.id and credential.sealed is not null
    ))
)::text from sources
union all
select 'hidden', '00000000-0000-0000-0000-000000000000', null, null, null
where
