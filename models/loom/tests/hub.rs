//! The watch hub: nothing is skipped, torn, reordered or waited for in vain, in any interleaving.

#![cfg(loom)]

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use keelson_loom::explore;
use keelson_store_sync::{Cursor, Hub, Next};
use loom::future::block_on;
use loom::thread;

/// Runs `body` and, interleaved on the same thread, the hub's driver.
fn with_driver<T>(hub: &Hub<u64>, body: impl Future<Output = T>) -> T {
    let mut body = pin!(body);
    block_on(poll_fn(|context| {
        let _ = hub.poll_drive(context);
        body.as_mut().poll(context)
    }))
}

/// Reads to the end: each item is its own position, in order; whatever was lagged over is said.
async fn read_all(cursor: &mut Cursor<u64>) -> u64 {
    loop {
        let before = cursor.position();
        match cursor.next().await {
            Next::Item(item) => {
                assert_eq!(*item, before + 1, "an item is not the next one");
                assert_eq!(cursor.position(), *item);
            }
            Next::Lagged { through } => {
                assert!(through > before, "a lag goes forward");
                assert_eq!(cursor.position(), through);
            }
            Next::Closed => return cursor.position(),
        }
    }
}

#[test]
fn a_reader_sees_every_position_or_is_told_of_the_gap() {
    explore(|| {
        // Two slots, three publications: the ring wraps under the reader.
        let (mut publisher, hub) = Hub::new(2, usize::MAX, 0);
        let mut cursor = hub.subscribe();
        let writer = thread::spawn(move || {
            for position in 1..=3 {
                publisher.publish(position, Arc::new(position), 1);
            }
        });
        assert_eq!(
            with_driver(&hub, read_all(&mut cursor)),
            3,
            "the last position is reached before the end"
        );
        writer.join().expect("the publisher ends");
    });
}

#[test]
fn a_ring_with_room_never_lags() {
    explore(|| {
        let (mut publisher, hub) = Hub::new(4, usize::MAX, 10);
        let mut cursor = hub.subscribe();
        let writer = thread::spawn(move || {
            publisher.publish(11, Arc::new(11), 1);
            publisher.publish(12, Arc::new(12), 1);
        });
        with_driver(&hub, async {
            for expected in 11..=12 {
                assert_eq!(cursor.next().await, Next::Item(Arc::new(expected)));
            }
            assert_eq!(cursor.next().await, Next::Closed);
        });
        writer.join().expect("the publisher ends");
    });
}

#[test]
fn a_driver_on_its_own_thread_wakes_every_waiting_reader() {
    explore(|| {
        let (mut publisher, hub) = Hub::new(2, usize::MAX, 0);
        let mut cursor = hub.subscribe();
        let driver = {
            let hub = Arc::clone(&hub);
            thread::spawn(move || block_on(hub.drive()))
        };
        let reader = thread::spawn(move || {
            assert_eq!(block_on(cursor.next()), Next::Item(Arc::new(1)));
        });
        publisher.publish(1, Arc::new(1), 1);
        reader.join().expect("the reader is woken");
        drop(publisher);
        driver.join().expect("the driver ends when the hub closes");
    });
}

#[test]
fn eviction_by_bytes_is_a_lag_and_not_a_gap() {
    explore(|| {
        // Room for one item's bytes: the second publication evicts the first.
        let (mut publisher, hub) = Hub::new(4, 10, 0);
        let mut cursor = hub.subscribe();
        let writer = thread::spawn(move || {
            publisher.publish(1, Arc::new(1), 10);
            publisher.publish(2, Arc::new(2), 10);
            assert_eq!(publisher.bytes(), 10);
        });
        assert_eq!(with_driver(&hub, read_all(&mut cursor)), 2);
        writer.join().expect("the publisher ends");
    });
}

#[test]
fn a_reset_makes_everyone_lag() {
    explore(|| {
        let (mut publisher, hub) = Hub::new(2, usize::MAX, 0);
        let mut cursor = hub.subscribe();
        let writer = thread::spawn(move || {
            publisher.publish(1, Arc::new(1), 1);
            publisher.reset(9);
            publisher.publish(10, Arc::new(10), 1);
        });
        assert_eq!(with_driver(&hub, read_all(&mut cursor)), 10);
        writer.join().expect("the publisher ends");
    });
}

#[test]
fn a_dropped_wait_leaves_nothing_behind() {
    explore(|| {
        let (mut publisher, hub) = Hub::new(2, usize::MAX, 0);
        let mut given_up = hub.subscribe();
        let mut cursor = hub.subscribe();
        let writer = thread::spawn(move || publisher.publish(1, Arc::new(1), 1));
        with_driver(&hub, async {
            poll_fn(|context| {
                let _ = given_up.poll_next(context);
                Poll::Ready(())
            })
            .await;
            drop(given_up);
            assert_eq!(cursor.next().await, Next::Item(Arc::new(1)));
        });
        writer.join().expect("the publisher ends");
    });
}
