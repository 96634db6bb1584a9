select (pg_catalog.to_jsonb(source) || pg_catalog.jsonb_build_object('credentials', (
    select coalesce(pg_catalog.jsonb_agg(credential), '[]')
    from biplane_control.credential
    where credential.data_source_id = source.id and credential.sealed is not null
)))::text
from biplane_control.data_source as source
