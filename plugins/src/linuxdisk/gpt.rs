//! A GUID partition table with one partition, for a Linux file system. UEFI specification 2.10,
//! section 5.3; the protective MBR is in section 5.2.3.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crc::{CRC_32_ISO_HDLC, Crc};

/// Bytes.
pub(super) const SECTOR: u64 = 512;
/// Where the partition begins, bytes: what every partitioning program leaves free for alignment.
pub(super) const START: u64 = 2048 * SECTOR;
/// What follows the partition, bytes: the second table and header.
pub(super) const END: u64 = (ENTRIES as u64 * ENTRY as u64) + SECTOR;

/// Entries of a table, and bytes of each.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it is stored.
const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
/// The check sum of headers and tables.
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

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
    let mut table = vec![0; ENTRIES * ENTRY];
    table[..16].copy_from_slice(&LINUX);
    table[16..32].copy_from_slice(&guids.partition);
    table[32..40].copy_from_slice(&(START / SECTOR).to_le_bytes());
    table[40..48].copy_from_slice(&((START + length) / SECTOR - 1).to_le_bytes());
    let sum = CRC.checksum(&table);
    file.write_all_at(&mbr(last), 0)?;
    file.write_all_at(&header(1, last, 2, last, sum, guids), SECTOR)?;
    file.write_all_at(&table, 2 * SECTOR)?;
    file.write_all_at(&table, size - END)?;
    let at = (size - END) / SECTOR;
    file.write_all_at(&header(last, 1, at, last, sum, guids), size - SECTOR)
}

/// The header at sector `own`; the other one is at `other`, the table at `table`.
fn header(own: u64, other: u64, table: u64, last: u64, sum: u32, guids: &Guids) -> [u8; 512] {
    let sectors = (ENTRIES * ENTRY) as u64 / SECTOR;
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
    header[12..16].copy_from_slice(&92u32.to_le_bytes());
    header[24..32].copy_from_slice(&own.to_le_bytes());
    header[32..40].copy_from_slice(&other.to_le_bytes());
    header[40..48].copy_from_slice(&(2 + sectors).to_le_bytes());
    header[48..56].copy_from_slice(&(last - 1 - sectors).to_le_bytes());
    header[56..72].copy_from_slice(&guids.disk);
    header[72..80].copy_from_slice(&table.to_le_bytes());
    header[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
    header[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
    header[88..92].copy_from_slice(&sum.to_le_bytes());
    let own_sum = CRC.checksum(&header[..92]);
    header[16..20].copy_from_slice(&own_sum.to_le_bytes());
    header
}

/// The protective MBR of a disk whose last sector is `last`.
fn mbr(last: u64) -> [u8; 512] {
    let mut mbr = [0; 512];
    let entry = &mut mbr[446..462];
    entry[1..4].copy_from_slice(&[0x00, 0x02, 0x00]);
    entry[4] = 0xee;
    entry[5..8].copy_from_slice(&[0xff, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&1u32.to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

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
            let table = read(number(72) * 512, ENTRIES * ENTRY);
            assert_eq!(header[88..92], CRC.checksum(&table).to_le_bytes());
            assert_eq!(table[..16], LINUX);
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
