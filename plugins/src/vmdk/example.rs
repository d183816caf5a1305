//! Small images made by hand, for tests and fuzzing: what qemu-img(1) does not make.

use std::io::Write;

use super::SECTOR;

/// Grains of the disk of a sparse extent, the last of which is not whole where a grain has more
/// than a sector.
const GRAINS: u64 = 3;

/// A descriptor with these extents.
pub(super) fn descriptor(extents: &str) -> Vec<u8> {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentSparse\"\n{extents}\n"
    )
    .into()
}

/// How a sparse extent is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kind {
    /// Sectors of a grain.
    pub(super) grain: u64,
    /// With a descriptor.
    pub(super) is_whole: bool,
    /// Compressed, with the directory at the end.
    pub(super) is_stream: bool,
}

impl Kind {
    /// Sectors of the disk.
    pub(super) fn capacity(self) -> u64 {
        GRAINS * self.grain - self.grain / 2
    }

    /// The bytes of the disk.
    #[cfg(test)]
    pub(super) fn disk(self) -> Vec<u8> {
        let mut disk = vec![0; (self.capacity() * SECTOR) as usize];
        let second = (self.grain * SECTOR) as usize;
        disk[second..second + 4].copy_from_slice(b"data");
        disk
    }
}

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

/// Up to the end of a sector.
fn pad(image: &mut Vec<u8>) {
    image.resize(image.len().next_multiple_of(SECTOR as usize), 0);
}

/// A sparse extent of three grains: the first is not there, the second begins with "data", the
/// third is zeroes.
pub(super) fn sparse(kind: Kind) -> Vec<u8> {
    let mut image = vec![0; SECTOR as usize];
    let text = descriptor(&format!("RW {} SPARSE \"old-name.vmdk\"", kind.capacity()));
    if kind.is_whole {
        image.extend(&text);
    }
    // An entry that is 1 stands for zeroes.
    image.resize(2 * SECTOR as usize, 0);
    let grain = image.len() as u64 / SECTOR;
    let mut second = vec![0; (kind.grain * SECTOR) as usize];
    put(&mut second, 0, b"data");
    if kind.is_stream {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&second).expect("memory");
        let zlib = encoder.finish().expect("memory");
        image.extend(kind.grain.to_le_bytes());
        image.extend((zlib.len() as u32).to_le_bytes());
        image.extend(zlib);
    } else {
        image.extend(&second);
    }
    pad(&mut image);
    let table = image.len() as u64 / SECTOR;
    for entry in [0, grain as u32, 1] {
        image.extend(entry.to_le_bytes());
    }
    pad(&mut image);
    let directory = image.len() as u64 / SECTOR;
    image.extend((table as u32).to_le_bytes());
    pad(&mut image);
    let mut header = header(kind, directory);
    if kind.is_stream {
        // The marker of the footer, the footer, and the marker of the end.
        let mut end = vec![0; 3 * SECTOR as usize];
        put(&mut end, 0, &[1]);
        put(&mut end, 12, &[3]);
        put(&mut end, SECTOR, &header);
        image.extend(end);
        put(&mut header, 56, &[0xff; 8]);
    }
    put(&mut image, 0, &header);
    image
}

fn header(kind: Kind, directory: u64) -> Vec<u8> {
    let mut header = vec![0; SECTOR as usize];
    put(&mut header, 0, b"KDMV");
    let (version, flags) = if kind.is_stream { (3, 0x30005_u32) } else { (2, 0x5) };
    put(&mut header, 4, &[version]);
    put(&mut header, 8, &flags.to_le_bytes());
    put(&mut header, 12, &kind.capacity().to_le_bytes());
    put(&mut header, 20, &kind.grain.to_le_bytes());
    if kind.is_whole {
        put(&mut header, 28, &[1]);
        put(&mut header, 36, &[1]);
    }
    // So that the table is one sector.
    put(&mut header, 44, &128_u32.to_le_bytes());
    put(&mut header, 56, &directory.to_le_bytes());
    put(&mut header, 64, &[2]);
    put(&mut header, 73, b"\n \r\n");
    put(&mut header, 77, &[kind.is_stream.into()]);
    header
}

/// The same as an extent of ESX, whose tables have 4096 entries.
pub(super) fn cowd(kind: Kind) -> Vec<u8> {
    let (directory, table, grain) = (4, 5, 37_u32);
    let mut image = vec![0; (u64::from(grain) + kind.grain) as usize * SECTOR as usize];
    put(&mut image, 0, b"COWD");
    for (number, field) in
        [1, 3, kind.capacity() as u32, kind.grain as u32, directory, 1].iter().enumerate()
    {
        put(&mut image, 4 + number as u64 * 4, &field.to_le_bytes());
    }
    put(&mut image, u64::from(directory) * SECTOR, &[table]);
    put(&mut image, u64::from(table) * SECTOR + 4, &grain.to_le_bytes());
    put(&mut image, u64::from(grain) * SECTOR, b"data");
    image
}
