-- What a data-plane database says of itself. Which tenants live here, and since which epoch, will stand beside it.

create table biplane.database (
    only_row boolean primary key default true check (only_row),
    database_id uuid not null
);

-- No `set` clause: a function with one would undo a search_path set in the same statement. Every name is qualified.
create function biplane.database_v1() returns uuid
language sql stable as $function$
    select database_id from biplane.database
$function$;

revoke all on biplane.database from public;
revoke all on function biplane.database_v1() from public;
