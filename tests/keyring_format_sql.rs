//! The SQL on the page of the sealed format does on a server what the page says.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot fail here should say so where it does"
)]

mod control;

use biplane::keyring::{Context, KeyMaterial, KeyState, Keyring, Sealed};
use control::{database, owner, run};
use sqlx::{AssertSqlSafe, PgConnection, query, query_as, query_scalar};

const PAGE: &str = include_str!("../src/manual/keyring_format.md");

/// The statements of the page, in its order.
fn statements() -> [String; 5] {
    let blocks: Vec<String> = PAGE
        .split("```sql\n")
        .skip(1)
        .map(|rest| rest.split_once("```").unwrap().0.to_owned())
        .collect();
    blocks.try_into().unwrap()
}

fn keyring(key: &str) -> Keyring {
    let key = KeyMaterial::from_hex(key).unwrap();
    Keyring::builder().key(key, KeyState::Primary).build().unwrap()
}

/// Values of every length of the last group, under the key of the page's example and another.
fn sealed() -> Vec<Sealed> {
    [
        "2b7c9a51e0d3864f17a5c862f93b0e74d81f46b09c25ea73506e8bd1c7249fa3",
        "04c3b62ac127678cc81083f5e2103cd25ae820bebccd9b59556b9754081e2d08",
    ]
    .iter()
    .flat_map(|key| {
        let keyring = keyring(key);
        let context = Context::new("setting", "owner", "field").unwrap();
        (0..4).map(move |length| keyring.seal(&context, &vec![7; length]).unwrap())
    })
    .collect()
}

async fn insert<'q, T>(connection: &mut PgConnection, table: &str, value: T) -> Result<(), sqlx::Error>
where
    T: sqlx::Encode<'q, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + 'q,
{
    query(AssertSqlSafe(format!("insert into {table} values ($1)")))
        .bind(value)
        .execute(connection)
        .await
        .map(drop)
}

fn is_check_violation(result: Result<(), sqlx::Error>) -> bool {
    matches!(result, Err(sqlx::Error::Database(error)) if error.is_check_violation())
}

#[tokio::test]
async fn the_checks_let_sealed_values_in_and_nothing_else_and_the_counts_are_per_key() {
    let database = database().await;
    let mut connection = owner(&database).await;
    let [text_check, per_key, under_one, binary_check, binary_per_key] = statements();
    run(
        &mut connection,
        "create table setting (sealed text); create table setting_binary (sealed bytea)",
    )
    .await
    .unwrap();
    run(&mut connection, text_check).await.unwrap();
    run(&mut connection, binary_check).await.unwrap();

    for sealed in sealed() {
        let text = sealed.to_text();
        let text = text.as_str();
        insert(&mut connection, "setting", text).await.unwrap();
        insert(&mut connection, "setting_binary", sealed.as_bytes())
            .await
            .unwrap();
        for wrong in [
            "postgres://app:password@db/app".to_owned(),
            String::new(),
            text.to_uppercase(),
            format!("{text}="),
            format!("{text}\n"),
            format!(" {text}"),
            text.replacen("bp1", "bp2", 1),
            text[..116].to_owned(),
        ] {
            let refused = insert(&mut connection, "setting", &*wrong).await;
            assert!(is_check_violation(refused), "{wrong:?}");
        }
        // One character over a multiple of four stands for nothing.
        let one_over = format!("{text}{}", "A".repeat([1, 0, 3, 2][(text.len() - 21) % 4]));
        let refused = insert(&mut connection, "setting", &*one_over).await;
        assert!(is_check_violation(refused), "{one_over:?}");
        let bytes = sealed.as_bytes();
        for wrong in [&bytes[..81], &bytes[1..], b"", &[&[1, 2], &bytes[2..]].concat()] {
            let refused = insert(&mut connection, "setting_binary", wrong).await;
            assert!(is_check_violation(refused), "{wrong:?}");
        }
    }

    for counted in [per_key, binary_per_key] {
        let rows: Vec<(String, i64)> = query_as(AssertSqlSafe(counted))
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let other = sealed()[7].key_id().to_string();
        let mut expected = vec![("c1ca0d96b672acee".to_owned(), 4), (other, 4)];
        expected.sort();
        assert_eq!(rows, expected);
    }
    let rows: i64 = query_scalar(AssertSqlSafe(under_one))
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(rows, 4);
}
