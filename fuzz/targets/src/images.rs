//! What filters find in images: partitions.

use nbdkit_filters::fuzz;

use crate::input::Input;

/// A disk with a partition table. The first byte is the partition, the second the sector size.
///
/// # Panics
/// If the parser does, or if a partition is not within the disk.
pub fn partition_table(data: &[u8]) {
    let mut input = Input(data);
    let (number, large) = (input.u8(), input.u8() & 1 != 0);
    let disk = input.0;
    if let Ok(found) = fuzz::find_partition(disk, u32::from(number).max(1), large) {
        assert!(found.start <= found.end && found.end <= disk.len() as u64, "{found:?}");
    }
}
