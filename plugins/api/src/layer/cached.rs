//! The answers of a layer: each question is asked once.

use std::sync::OnceLock;

use crate::types::{BlockSize, Blocking, Cache, DataPath, Fua, Zero};

/// The answers so far.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) size: OnceLock<u64>,
    pub(super) block_size: OnceLock<BlockSize>,
    pub(super) can_write: OnceLock<bool>,
    pub(super) can_flush: OnceLock<bool>,
    pub(super) is_rotational: OnceLock<bool>,
    pub(super) can_trim: OnceLock<bool>,
    pub(super) can_zero: OnceLock<Zero>,
    pub(super) can_fast_zero: OnceLock<bool>,
    pub(super) can_extents: OnceLock<bool>,
    pub(super) can_fua: OnceLock<Fua>,
    pub(super) can_multi_conn: OnceLock<bool>,
    pub(super) can_cache: OnceLock<Cache>,
    pub(super) blocking: OnceLock<Blocking>,
    pub(super) reads: OnceLock<DataPath>,
    pub(super) writes: OnceLock<DataPath>,
    pub(super) watched: OnceLock<bool>,
}
