(pg_catalog.row_security_active('biplane_control.tenant'::regclass)
    or pg_catalog.row_security_active('biplane_control.tenant_name'::regclass)
    or pg_catalog.row_security_active('biplane_control.data_source'::regclass)
    or pg_catalog.row_security_active('biplane_control.credential'::regclass))
