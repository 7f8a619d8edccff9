//! The engine on real hosts: a lab of libvirt and sshd for every test, looked at from outside.
//!
//! One program, because what the tests share is compiled once then. Each file is one behaviour; those in directories are what
//! they share: machines and clients (`common`, `pair`, `reach`, `standby`), what must hold at every moment (`oracle`), ways to write
//! to an image behind everybody's back (`tricks`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, unreachable_pub, missing_docs)]

mod block_size;
mod broken_lanes;
mod clone;
mod common;
mod connection;
mod dead_man;
mod disks;
mod every_step;
mod every_step_live;
mod every_step_sync;
mod faults;
mod force;
mod force_files;
mod formats;
mod host_kinds;
mod host_users;
mod in_place;
mod live;
mod live_changes;
mod locks;
mod machines;
mod many_syncs;
mod media;
mod networks;
mod operations;
mod oracle;
mod pair;
mod power;
mod reach;
mod recover;
mod refusals;
mod resume;
mod routes;
mod safety_snapshot;
mod seals;
mod seals_replica;
mod snapshots;
mod stalls;
mod standby;
mod started;
mod sync;
mod sync_beside;
mod takeover;
mod tpm;
mod tricks;
mod unreadable;
mod verify;
