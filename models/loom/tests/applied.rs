//! The applied index: no wait outlives its index, none ends before it.

#![cfg(loom)]

use keelson_loom::explore;
use keelson_store_sync::{AppliedIndex, Closed};
use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;

#[test]
fn a_wait_ends_when_its_index_is_applied_and_not_before() {
    explore(|| {
        let applied = Arc::new(AppliedIndex::new(0));
        let reader = {
            let applied = Arc::clone(&applied);
            thread::spawn(move || {
                assert_eq!(block_on(applied.wait_for(2)), Ok(()));
                assert!(applied.get() >= 2, "the wait ended early");
            })
        };
        applied.advance(1);
        applied.advance(2);
        reader.join().expect("the reader is woken");
    });
}

#[test]
fn two_waits_for_different_indices_both_end() {
    explore(|| {
        let applied = Arc::new(AppliedIndex::new(0));
        let readers = [1, 2].map(|index| {
            let applied = Arc::clone(&applied);
            thread::spawn(move || {
                assert_eq!(block_on(applied.wait_for(index)), Ok(()));
                assert!(applied.get() >= index);
            })
        });
        applied.advance(1);
        applied.advance(2);
        readers.into_iter().for_each(|reader| reader.join().expect("the reader is woken"));
    });
}

#[test]
fn closing_ends_a_wait_that_cannot_end_otherwise() {
    explore(|| {
        let applied = Arc::new(AppliedIndex::new(0));
        let reader = {
            let applied = Arc::clone(&applied);
            thread::spawn(move || block_on(applied.wait_for(2)))
        };
        applied.advance(1);
        applied.close();
        assert_eq!(reader.join().expect("the reader is woken"), Err(Closed));
    });
}
