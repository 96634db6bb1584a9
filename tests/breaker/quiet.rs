//! What an outage writes into the log.

use std::{
    io,
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;

use crate::{
    biplane,
    data_plane::{Wish, World, options, shared},
    door::{Door, Mode},
    for_good, is_unavailable, kind,
};

/// Where everything that this thread logs goes.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_dead_server_with_three_hundred_tenants_is_one_line() {
    let world = World::new(shared().await);
    let door = Door::before(world.cluster.endpoint()).await;
    door.set(Mode::Shut);
    let biplane = biplane(&world, options(20), for_good());
    let mut tenants = Vec::new();
    for number in 0..300 {
        let wish = Wish {
            server: Some(door.to(world.cluster.server("postgres"))),
            ..Wish::default()
        };
        let placed = world.tenant_on(&format!("quiet{number}"), "postgres", wish).await;
        tenants.push(biplane.route(&placed.slug).await.unwrap());
    }
    let logged = Logged::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer({
            let logged = logged.clone();
            move || logged.clone()
        })
        .finish();
    let listening = tracing::subscriber::set_default(subscriber);
    for _ in 0..10 {
        for refused in join_all(tenants.iter().map(|db| db.begin())).await {
            assert!(is_unavailable(kind(refused)));
        }
    }
    drop(listening);
    let text = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    // That data sources without an id are not fenced is said once, whether the server lives or not.
    let of_the_outage = |line: &&str| line.contains("biplane") && !line.contains("is not fenced");
    let lines: Vec<&str> = text.lines().filter(of_the_outage).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("WARN") && lines[0].contains(&door.endpoint.to_string()));
    assert!(!lines[0].contains("postgres:"), "no login: {lines:?}");
    assert!(
        door.came() <= 25,
        "those under way when it opened, and no more: {}",
        door.came()
    );
}
