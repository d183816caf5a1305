//! A GUID partition table with one partition, for a Linux file system. UEFI specification 2.10,
//! section 5.3.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nbdkit_api::partitions::{
    GPT_ENTRIES, GPT_ENTRY_SIZE, GPT_HEADER_SIZE, GUID_LINUX, GptEntry, GptHeader, mbr, protective,
};

pub(super) use nbdkit_api::partitions::SECTOR;

/// Where the partition begins, bytes: what every partitioning program leaves free for alignment.
pub(super) const START: u64 = 2048 * SECTOR;
/// What follows the partition, bytes: the second table and header.
pub(super) const END: u64 = (ENTRIES * GPT_ENTRY_SIZE) as u64 + SECTOR;

/// Entries of a table.
const ENTRIES: usize = 128;

/// What identifies a disk and its partition.
pub(super) struct Guids {
    disk: [u8; 16],
    partition: [u8; 16],
}

impl Guids {
    /// Two that nothing else has (version 4, RFC 9562).
    ///
    /// # Errors
    /// There is no /dev/urandom.
    pub(super) fn random() -> io::Result<Guids> {
        let mut random = File::open("/dev/urandom")?;
        let mut guid = || -> io::Result<[u8; 16]> {
            let mut guid = [0; 16];
            random.read_exact(&mut guid)?;
            // The first three fields are stored with the low byte first.
            guid[7] = guid[7] & 0x0f | 0x40;
            guid[8] = guid[8] & 0x3f | 0x80;
            Ok(guid)
        };
        Ok(Guids { disk: guid()?, partition: guid()? })
    }
}

/// Writes the tables around a partition of `length` bytes, a multiple of [`SECTOR`], at [`START`],
/// and makes the file as long as the disk.
///
/// # Errors
/// Those of writing.
pub(super) fn write(file: &File, length: u64, guids: &Guids) -> io::Result<()> {
    let size = START + length + END;
    file.set_len(size)?;
    let last = size / SECTOR - 1;
    let mut table = vec![0; ENTRIES * GPT_ENTRY_SIZE];
    let entry = GptEntry {
        kind: GUID_LINUX,
        unique: guids.partition,
        first: START / SECTOR,
        last: (START + length) / SECTOR - 1,
        attributes: 0,
        name: "",
    };
    table[..GPT_ENTRY_SIZE].copy_from_slice(&entry.encode());
    let sectors = table.len() as u64 / SECTOR;
    let header = |own, other, entries| {
        GptHeader {
            size: GPT_HEADER_SIZE,
            own,
            other,
            first_usable: GPT_ENTRIES + sectors,
            last_usable: last - 1 - sectors,
            disk: guids.disk,
            entries,
        }
        .encode(&table)
    };
    file.write_all_at(&mbr(&[protective(last)]), 0)?;
    file.write_all_at(&header(1, last, GPT_ENTRIES), SECTOR)?;
    file.write_all_at(&table, GPT_ENTRIES * SECTOR)?;
    file.write_all_at(&table, size - END)?;
    file.write_all_at(&header(last, 1, (size - END) / SECTOR), size - SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

    #[test]
    fn both_headers_and_tables_agree_and_their_sums_are_right() {
        let dir = TestDir::new();
        let mut options = File::options();
        let path = dir.join("disk");
        let file = options.read(true).write(true).create_new(true).open(path).unwrap();
        let guids = Guids::random().unwrap();
        write(&file, 1 << 20, &guids).unwrap();
        let size = file.metadata().unwrap().len();
        assert_eq!(size, (1 << 20) + (1 << 20) + 33 * 512);
        let read = |at: u64, length: usize| {
            let mut buf = vec![0; length];
            file.read_exact_at(&mut buf, at).unwrap();
            buf
        };
        for (at, other) in [(512, size / 512 - 1), (size - 512, 1)] {
            let mut header = read(at, 92);
            let number =
                |from: usize| u64::from_le_bytes(header[from..from + 8].try_into().unwrap());
            assert_eq!((number(24), number(32)), (at / 512, other));
            assert_eq!((number(40), number(48)), (34, size / 512 - 34));
            let table = read(number(72) * 512, ENTRIES * GPT_ENTRY_SIZE);
            assert_eq!(header[88..92], CRC.checksum(&table).to_le_bytes());
            assert_eq!(table[..16], GUID_LINUX);
            assert_eq!(table[32..40], 2048u64.to_le_bytes());
            assert_eq!(table[40..48], 4095u64.to_le_bytes());
            let sum: Vec<u8> = header[16..20].to_vec();
            header[16..20].fill(0);
            assert_eq!(CRC.checksum(&header).to_le_bytes()[..], sum);
        }
        assert_eq!(read(510, 2), [0x55, 0xaa]);
        assert_eq!((guids.disk[7] >> 4, guids.disk[8] >> 6), (4, 2));
        assert_ne!(guids.disk, guids.partition);
    }
}
