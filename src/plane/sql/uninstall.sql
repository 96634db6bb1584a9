begin;
drop function if exists biplane.database_v1;
drop table if exists biplane.database, biplane.migration;
drop schema if exists biplane;
commit;
