//! A data-plane database says which one it is, and run-time roles can ask but not change it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod control;

use biplane::{
    error::ErrorKind,
    plane::{DataSchema, RoleName},
    tenant::DatabaseId,
};
use control::{ADMIN, ROUTER, cluster, create_role, database, login, owner, psql, run, text};

fn reader() -> Vec<RoleName> {
    vec![RoleName::parse(ROUTER).unwrap()]
}

#[tokio::test]
async fn an_installed_database_says_which_it_is_to_its_run_time_role() {
    let (database, id) = (database().await, DatabaseId::new());
    let mut owner = owner(&database).await;
    DataSchema::install(&mut owner, id, &reader()).await.unwrap();
    assert_eq!(DataSchema::read(&mut owner).await.unwrap(), Some(id));
    let mut router = cluster()
        .await
        .connect_as(&login(ROUTER), &database)
        .await
        .unwrap();
    assert_eq!(DataSchema::read(&mut router).await.unwrap(), Some(id));
    let mut other = cluster()
        .await
        .connect_as(&login(ADMIN), &database)
        .await
        .unwrap();
    let error = DataSchema::read(&mut other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
}

#[tokio::test]
async fn a_run_time_role_cannot_write_it() {
    let (database, id) = (database().await, DatabaseId::new());
    DataSchema::install(&mut owner(&database).await, id, &reader())
        .await
        .unwrap();
    let mut router = cluster()
        .await
        .connect_as(&login(ROUTER), &database)
        .await
        .unwrap();
    for sql in [
        "update biplane.database set database_id = gen_random_uuid()",
        "insert into biplane.database (database_id) values (gen_random_uuid())",
        "delete from biplane.database",
        "truncate biplane.database",
        "drop table biplane.database",
        "create table biplane.mine (n int)",
        "create or replace function biplane.database_v1() returns uuid language sql as 'select gen_random_uuid()'",
        "delete from biplane.migration",
    ] {
        let refused = run(&mut router, sql).await.unwrap_err();
        let code = refused.as_database_error().unwrap().code().unwrap().into_owned();
        assert_eq!(code, "42501", "{sql}");
    }
    let error = DataSchema::stamp(&mut router, DatabaseId::new())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    assert_eq!(DataSchema::read(&mut router).await.unwrap(), Some(id));
}

#[tokio::test]
async fn it_installs_again_and_never_over_another_database() {
    let (database, id) = (database().await, DatabaseId::new());
    let mut owner = owner(&database).await;
    for _ in 0..2 {
        DataSchema::install(&mut owner, id, &reader()).await.unwrap();
    }
    let error = DataSchema::install(&mut owner, DatabaseId::new(), &reader())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongDatabase);
    assert_eq!(DataSchema::read(&mut owner).await.unwrap(), Some(id));
    let restamped = DatabaseId::new();
    DataSchema::stamp(&mut owner, restamped).await.unwrap();
    assert_eq!(DataSchema::read(&mut owner).await.unwrap(), Some(restamped));
}

#[tokio::test]
async fn a_database_without_the_schema_is_told_from_one_that_does_not_say() {
    let database = database().await;
    let mut owner = owner(&database).await;
    for error in [
        DataSchema::read(&mut owner).await.unwrap_err(),
        DataSchema::stamp(&mut owner, DatabaseId::new())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
    }
    DataSchema::install(&mut owner, DatabaseId::new(), &[])
        .await
        .unwrap();
    run(&mut owner, "delete from biplane.database").await.unwrap();
    assert_eq!(DataSchema::read(&mut owner).await.unwrap(), None);
}

#[tokio::test]
async fn the_printed_sql_does_the_same_and_is_undone() {
    let (database, id) = (database().await, DatabaseId::new());
    let mut owner = owner(&database).await;
    let sql = DataSchema::install_sql(id, &reader());
    psql(&database, &sql).await.unwrap();
    psql(&database, &sql).await.unwrap();
    assert_eq!(DataSchema::read(&mut owner).await.unwrap(), Some(id));
    let other = DataSchema::install_sql(DatabaseId::new(), &reader());
    let refused = psql(&database, &other).await.unwrap_err();
    assert!(refused.contains("another one"), "{refused}");
    psql(&database, DataSchema::uninstall_sql()).await.unwrap();
    assert_eq!(text(&mut owner, "select to_regnamespace('biplane')").await, "");
    psql(&database, DataSchema::uninstall_sql()).await.unwrap();
}

#[tokio::test]
async fn a_missing_privilege_is_named() {
    let database = database().await;
    create_role(cluster().await, "data_owner").await;
    let mut plain = cluster()
        .await
        .connect_as(&login("data_owner"), &database)
        .await
        .unwrap();
    let error = DataSchema::install(&mut plain, DatabaseId::new(), &[])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    assert!(error.to_string().contains("CREATE on the database"), "{error}");
    let (mut owner, id) = (owner(&database).await, DatabaseId::new());
    DataSchema::install(&mut owner, id, &[]).await.unwrap();
    let error = DataSchema::install(&mut plain, DatabaseId::new(), &[])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingPrivilege);
    assert!(error.to_string().contains("ownership of the schema"), "{error}");
    let missing = [RoleName::parse("no such role").unwrap()];
    let error = DataSchema::install(&mut owner, id, &missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}
