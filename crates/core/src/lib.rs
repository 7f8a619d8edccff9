//! What kvm-clone knows without touching a host.
//!
//! Everything here is pure: no file, process, network, clock or environment. `engine` carries out what this crate
//! decides, `agent` does what a host must do, and the two meet in [`wire`].
//!
//! The main flow, with the module that decides each part:
//! 1. what the user wrote becomes names that cannot be wrong: [`name`], [`host`], [`size`];
//! 2. what the hosts have is an [`inventory`];
//! 3. request and inventories become a [`plan`], with the definition of the new machine made by [`domain`];
//! 4. the plan runs as journaled steps: [`journal`];
//! 5. disks travel as [`blocks`] in frames of the [`wire`], and every step tells its progress as an [`event`],
//!    of which [`progress`] is made;
//!    Of a disk that nobody wrote to, a [`seal`] may tell what it holds;
//! 6. what goes wrong is an [`error`] with a code and a way out.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod checksum;
pub mod domain;
pub mod error;
pub mod event;
pub mod host;
pub mod inventory;
pub mod journal;
pub mod name;
pub mod plan;
pub mod progress;
pub mod quote;
pub mod retry;
pub mod seal;
pub mod size;
pub mod wire;

pub use error::{Code, Error, Result};
