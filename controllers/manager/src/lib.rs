//! Informers, queues, executor, leader election.
