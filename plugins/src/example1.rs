//! nbdkit-example1-plugin(1): a read-only disk of 100 MB with one empty partition. The least that a
//! plugin has.

#![forbid(unsafe_code)]

use nbdkit_api::{Blocking, Connection, Open, Plugin, Result};

/// Bytes.
const SIZE: u64 = 100 << 20;
/// Where the partition table is in the first sector: an identifier of the disk, four entries of 16
/// bytes, and the signature.
const TABLE: u64 = 440;
/// One partition of type 83, Linux: 204545 sectors from sector 128 on.
const PARTITION: [u8; 16] = [0, 2, 3, 0, 0x83, 0xbc, 0x31, 0x0c, 128, 0, 0, 0, 0x01, 0x1f, 0x03, 0];

/// The plugin.
#[derive(Debug, Default)]
pub struct Example1;

impl Plugin for Example1 {
    fn name(&self) -> &str {
        "example1"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &["open", "get_size", "pread"]
    }

    fn has_config(&self) -> bool {
        false
    }

    fn open(&self, _open: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Handle))
    }
}

struct Handle;

/// The end of the first sector, from [`TABLE`] on.
fn table() -> [u8; 72] {
    let mut table = [0; 72];
    table[..4].copy_from_slice(&0x0002_5be1u32.to_le_bytes());
    table[6..22].copy_from_slice(&PARTITION);
    table[70..].copy_from_slice(&[0x55, 0xaa]);
    table
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(SIZE)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.fill(0);
        for (at, byte) in (TABLE..).zip(table()) {
            // Whatever the request has of it.
            let index = at.checked_sub(offset).and_then(|index| usize::try_from(index).ok());
            if let Some(place) = index.and_then(|index| buf.get_mut(index)) {
                *place = byte;
            }
        }
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        Blocking::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_first_sector_are_those_of_the_whole() {
        let mut sector = [1; 1024];
        Handle.pread(&mut sector, 0).unwrap();
        assert_eq!((sector[510], sector[511], sector[450]), (0x55, 0xaa, 0x83));
        assert!(sector[..440].iter().chain(&sector[512..]).all(|byte| *byte == 0));
        for (from, to) in [(0, 1), (439, 441), (500, 520), (511, 512), (512, 1000)] {
            let mut part = vec![1; to - from];
            Handle.pread(&mut part, from as u64).unwrap();
            assert_eq!(part, sector[from..to]);
        }
        let mut last = [1];
        Handle.pread(&mut last, SIZE - 1).unwrap();
        assert_eq!(last, [0]);
    }
}
