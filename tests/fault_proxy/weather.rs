//! Many clients, and faults that change all the time.

use std::{sync::Arc, time::Duration};

use biplane::testing::proxy::{Arrivals, FaultProxy, NetworkFault};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{
    Direction::{Both, ToClient, ToServer},
    PATIENCE, ask, bytes_per_second, connect, proxy, within,
};

/// Clients ask on and on while faults come and go. Whoever gets an answer gets that to his own question, nobody waits for
/// ever, and in the end everything works and nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_that_come_and_go_never_mix_up_answers() {
    let proxy = Arc::new(proxy().await);
    let (right, over) = (watch::Sender::new(0_usize), watch::Sender::new(false));
    let mut clients = JoinSet::new();
    for client in 0..12 {
        clients.spawn(ask_on_and_on(
            Arc::clone(&proxy),
            client,
            right.clone(),
            over.subscribe(),
        ));
    }
    let mut answers = right.subscribe();
    for turn in 0..40 {
        let direction = [ToServer, ToClient, Both][turn % 3];
        match turn % 8 {
            0 => proxy.set(direction, NetworkFault::Delay(Duration::from_millis(5))),
            1 => proxy.set_open(direction, NetworkFault::BlackHole),
            2 => proxy.set(direction, NetworkFault::Stall),
            3 => proxy.reset(),
            4 => proxy.set_open(direction, NetworkFault::HalfClose),
            5 => proxy.set(direction, bytes_per_second(20_000)),
            6 => proxy.set(direction, NetworkFault::CutAfter(700)),
            _ => proxy.set_arrivals(Arrivals::Refuse).await.unwrap(),
        }
        // For a while that differs, so that faults end at any moment of a question.
        let _ = timeout(Duration::from_millis(turn as u64), answers.wait_for(|_| false)).await;
        proxy.heal().await.unwrap();
        let so_far = *answers.borrow_and_update();
        within(answers.wait_for(|right| *right > so_far + 5))
            .await
            .unwrap();
    }
    over.send_replace(true);
    let failed: usize = within(clients.join_all()).await.into_iter().sum();
    assert!(failed > 0);

    let mut new = within(connect(&proxy)).await.unwrap();
    assert_eq!(within(ask(&mut new, 1)).await.unwrap(), 2);
    drop(new);
    // Those whose end was lost in a black hole.
    proxy.reset();
    within(proxy.until(|counts| counts.open == 0)).await;
}

/// Returns how many questions and connections failed.
async fn ask_on_and_on(
    proxy: Arc<FaultProxy>,
    client: i32,
    right: watch::Sender<usize>,
    over: watch::Receiver<bool>,
) -> usize {
    let mut failed = 0;
    let mut question = client * 1_000_000;
    while !*over.borrow() {
        let Ok(Ok(mut connection)) = timeout(PATIENCE, connect(&proxy)).await else {
            failed += 1;
            continue;
        };
        while !*over.borrow() {
            question += 1;
            match timeout(PATIENCE, ask(&mut connection, question)).await {
                Ok(Ok(answer)) => {
                    assert_eq!(answer, question + 1);
                    right.send_modify(|right| *right += 1);
                }
                _ => {
                    failed += 1;
                    break;
                }
            }
        }
    }
    failed
}
