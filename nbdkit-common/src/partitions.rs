//! Partition tables: the layout of an MBR, of an EBR and of a GPT. UEFI specification, chapter 5.
//! Numbers are little-endian; starts and counts are in sectors.

/// Bytes of a master or extended boot record.
pub const MBR_SIZE: usize = 512;
/// Entries of a record.
pub const MBR_PRIMARIES: usize = 4;
/// Where the entries of a record begin, and how long each is, in bytes.
const MBR_ENTRIES: usize = 446;
const MBR_ENTRY_SIZE: usize = 16;
/// The end of a record.
const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Head, sector and cylinder beyond what they can express: the numbers of sectors count.
const CHS_BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];

/// Type of an entry that is not used.
pub const TYPE_EMPTY: u8 = 0;
/// Type of an extended partition of Windows, by numbers of sectors.
pub const TYPE_EXTENDED: u8 = 0x0f;
/// Extended partitions of DOS, of Windows and of Linux.
const TYPES_EXTENDED: [u8; 3] = [0x05, TYPE_EXTENDED, 0x85];
/// Type of the only partition of a disk that has a GPT.
pub const TYPE_PROTECTIVE: u8 = 0xee;

/// How a GPT's header begins.
pub const GPT_SIGNATURE: &[u8; 8] = b"EFI PART";
/// Least bytes of a GPT's header.
pub const GPT_HEADER_SIZE: usize = 92;
/// Least bytes of a GPT's entry.
pub const GPT_ENTRY_SIZE: usize = 128;
/// Where the entries of a GPT begin, in sectors.
pub const GPT_ENTRIES: u64 = 2;

/// Bytes of a sector of the disks that are made here.
pub const SECTOR: u64 = 512;
const REVISION: u32 = 0x0001_0000;
/// "Linux filesystem data", as a GPT holds it.
pub const GUID_LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
/// Where an entry of a GPT has its name, and how long that may be, in units of UTF-16.
const NAME: usize = 56;
const NAME_LENGTH: usize = 36;

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// A partition of a GPT.
#[derive(Debug, Clone, Copy)]
pub struct GptEntry<'a> {
    /// What the partition holds.
    pub kind: [u8; 16],
    /// Which one it is.
    pub unique: [u8; 16],
    /// First and last sector.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// Bits.
    pub attributes: u64,
    /// Left out if it has more than 36 units of UTF-16.
    pub name: &'a str,
}

impl GptEntry<'_> {
    /// Its bytes, UEFI specification, table 5.6.
    pub fn encode(&self) -> [u8; GPT_ENTRY_SIZE] {
        let mut bytes = [0; GPT_ENTRY_SIZE];
        bytes[..16].copy_from_slice(&self.kind);
        bytes[16..32].copy_from_slice(&self.unique);
        bytes[32..40].copy_from_slice(&self.first.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.last.to_le_bytes());
        bytes[48..NAME].copy_from_slice(&self.attributes.to_le_bytes());
        if self.name.encode_utf16().count() <= NAME_LENGTH {
            let units = bytes[NAME..].chunks_exact_mut(2).zip(self.name.encode_utf16());
            units.for_each(|(two, unit)| two.copy_from_slice(&unit.to_le_bytes()));
        }
        bytes
    }
}

/// One of the two headers of a GPT.
#[derive(Debug, Clone, Copy)]
pub struct GptHeader {
    /// Bytes of it that count: from [`GPT_HEADER_SIZE`] to those of a sector.
    pub size: usize,
    /// The sector that it is in, and that of the other one.
    pub own: u64,
    /// See `own`.
    pub other: u64,
    /// The sectors that partitions may have, the first and the last one.
    pub first_usable: u64,
    /// See `first_usable`.
    pub last_usable: u64,
    /// Which disk it is.
    pub disk: [u8; 16],
    /// Where its entries begin.
    pub entries: u64,
}

impl GptHeader {
    /// Its sector, UEFI specification, table 5.5. `entries`: their bytes.
    ///
    /// # Panics
    /// If the size is out of its bounds.
    pub fn encode(&self, entries: &[u8]) -> [u8; SECTOR as usize] {
        let mut sector = [0; SECTOR as usize];
        sector[..8].copy_from_slice(GPT_SIGNATURE);
        let count = entries.len() / GPT_ENTRY_SIZE;
        for (at, number) in [
            (8, REVISION),
            (12, self.size as u32),
            (80, count as u32),
            (84, GPT_ENTRY_SIZE as u32),
            (88, CRC.checksum(entries)),
        ] {
            sector[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        for (at, number) in [
            (24, self.own),
            (32, self.other),
            (40, self.first_usable),
            (48, self.last_usable),
            (72, self.entries),
        ] {
            sector[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        sector[56..72].copy_from_slice(&self.disk);
        let sum = CRC.checksum(&sector[..self.size]);
        sector[16..20].copy_from_slice(&sum.to_le_bytes());
        sector
    }
}

/// The only entry of the MBR of a disk that has a GPT, and whose last sector is `last`: the disk
/// may have more sectors than an MBR can express.
pub fn protective(last: u64) -> MbrEntry {
    let count = u32::try_from(last).unwrap_or(u32::MAX);
    MbrEntry { active: false, kind: TYPE_PROTECTIVE, start: 1, count }
}

/// An entry of an MBR or EBR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MbrEntry {
    /// The machine boots from it.
    pub active: bool,
    /// What the partition holds.
    pub kind: u8,
    /// First sector. In an EBR it is relative.
    pub start: u32,
    /// Sectors.
    pub count: u32,
}

impl MbrEntry {
    /// Whether it holds logical partitions.
    pub fn is_extended(self) -> bool {
        TYPES_EXTENDED.contains(&self.kind)
    }

    /// Whether it is a partition.
    pub fn is_used(self) -> bool {
        self.kind != TYPE_EMPTY && self.count != 0
    }
}

/// The entries of a record; `None` if it has no signature.
pub fn mbr_entries(record: &[u8; MBR_SIZE]) -> Option<[MbrEntry; MBR_PRIMARIES]> {
    record.ends_with(&MBR_SIGNATURE).then(|| {
        std::array::from_fn(|i| {
            let at = MBR_ENTRIES + i * MBR_ENTRY_SIZE;
            MbrEntry {
                active: record[at] == 0x80,
                kind: record[at + 4],
                start: u32_at(record, at + 8),
                count: u32_at(record, at + 12),
            }
        })
    })
}

/// A record with these entries, of which the first four count, and without a boot loader.
pub fn mbr(entries: &[MbrEntry]) -> [u8; MBR_SIZE] {
    let mut record = [0; MBR_SIZE];
    for (bytes, entry) in record[MBR_ENTRIES..].chunks_exact_mut(MBR_ENTRY_SIZE).zip(entries) {
        bytes[0] = if entry.active { 0x80 } else { 0 };
        bytes[1..4].copy_from_slice(&CHS_BEYOND);
        bytes[4] = entry.kind;
        bytes[5..8].copy_from_slice(&CHS_BEYOND);
        bytes[8..12].copy_from_slice(&entry.start.to_le_bytes());
        bytes[12..].copy_from_slice(&entry.count.to_le_bytes());
    }
    record[MBR_SIZE - MBR_SIGNATURE.len()..].copy_from_slice(&MBR_SIGNATURE);
    record
}

/// The little-endian number at `at`, which is within the buffer.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

/// The little-endian number at `at`, which is within the buffer.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

/// The bytes of a GUID as a GPT holds it: of its five groups the first three are little-endian.
/// The text may be in braces.
pub fn guid(text: &str) -> Option<[u8; 16]> {
    let bare = text.strip_prefix('{').map_or(Some(text), |rest| rest.strip_suffix('}'))?;
    let lengths = [8, 4, 4, 4, 12];
    let groups: Vec<&str> = bare.split('-').collect();
    if !groups.iter().map(|group| group.len()).eq(lengths) {
        return None;
    }
    let digits = groups.concat();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let entries = [(true, 0x83, 2048, 7), (false, 5, u32::MAX, 1), (false, 0, 0, 0)]
            .map(|(active, kind, start, count)| MbrEntry { active, kind, start, count });
        let record = mbr(&entries);
        assert_eq!(mbr_entries(&record).map(|all| all[..3].to_vec()), Some(entries.to_vec()));
        assert!(entries[1].is_extended() && !entries[2].is_used());
        assert_eq!(mbr_entries(&[0; MBR_SIZE]), None);
    }

    #[test]
    fn guids_are_mixed_endian_and_checked() {
        let linux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
        let bytes = guid(linux).expect("a GUID");
        assert_eq!(bytes[..8], [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47]);
        assert_eq!(bytes[8..], [0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4]);
        assert_eq!(guid(&format!("{{{}}}", linux.to_lowercase())), Some(bytes));
        for bad in ["", "{", "}", &linux[1..], &format!("{linux}0"), &format!("{{{linux}")] {
            assert_eq!(guid(bad), None, "{bad}");
        }
        assert_eq!(guid(&linux.replace('F', "G")), None);
        assert_eq!(guid(&linux.replacen("0F", "\u{e9}", 1)), None);
    }
}
