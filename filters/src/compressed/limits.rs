//! Tests of what bounds the memory and the time that a hostile image takes.

use crate::testing::{self, decoded, disk_of, made_by};

/// What cannot be compressed.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Images whose only block has 3 MiB, and is said to have 1000 bytes.
fn understated() -> Option<Vec<(&'static str, Vec<u8>)>> {
    let data = noise(3 << 20);
    let xz = made_by("xz", &["--stdout", "--check=none", "-0"], &data)?;
    // One record of an index has up to 10 bytes, and the footer is behind it.
    let footer = xz.len() - 12;
    let backward: [u8; 4] = xz[footer + 4..footer + 8].try_into().unwrap();
    let index = footer - (u32::from_le_bytes(backward) as usize + 1) * 4;
    let block = &xz[12..index];
    let mut lzip = made_by("lzip", &["--stdout", "-0"], &data)?;
    let size = lzip.len() - 16;
    lzip[size..size + 8].copy_from_slice(&1000_u64.to_le_bytes());
    let mut zstd = made_by("zstd", &["--stdout", "--quiet"], &data)?;
    let length = zstd.len() as u32;
    for word in [0x184d_2a5e, 17, length, 1000, 1] {
        zstd.extend(word.to_le_bytes());
    }
    zstd.push(0);
    zstd.extend(0x8f92_eab1_u32.to_le_bytes());
    let xz = crate::xz::with_index(block, &[(block.len() as u64, 1000)]);
    Some(vec![("xz", xz), ("lzip", lzip), ("zstd", zstd)])
}

/// No more than what is expected is decompressed: of 3 MiB, which cannot be compressed, no more
/// is read than what decoders read in advance.
#[test]
fn a_block_that_is_larger_than_its_index_says_is_not_decompressed() {
    let Some(images) = understated() else { return };
    for (filter, image) in images {
        let disk = disk_of(image);
        let next = testing::backend(&disk, &[filter], &[]);
        assert_eq!(next.size().unwrap(), 1000, "{filter}");
        disk.take_calls();
        let error = next.pread(&mut [0; 1000], 0).unwrap_err();
        assert!(!error.message().is_empty(), "{filter}");
        let read = disk.bytes_read();
        assert!(read <= 1 << 20, "{filter}: {read} bytes");
    }
}

/// RFC 8878, 3.1.1.1: a frame of five bytes that wants a window of 256 MiB.
#[test]
fn a_window_of_zstd_has_a_limit() {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3, 5 << 3 | 1, 0, 0];
    frame.extend(b"hello");
    let mut good = frame.clone();
    good[5] = 17 << 3;
    assert_eq!(decoded("zstd", good, &[]).unwrap(), b"hello");
    let error = decoded("zstd", frame.clone(), &[]).unwrap_err();
    assert!(error.message().contains("too much memory"), "{error}");
    for word in [0x184d_2a5e, 17, frame.len() as u32, 5, 1] {
        frame.extend(u32::to_le_bytes(word));
    }
    frame.push(0);
    frame.extend(0x8f92_eab1_u32.to_le_bytes());
    let error = decoded("zstd", frame, &[]).unwrap_err();
    assert!(error.message().contains("too much memory"), "{error}");
}

/// A worker has no more than that, and what everybody has.
#[test]
fn the_memory_that_a_client_may_take_is_declared() {
    let disk = disk_of(vec![0; 1000]);
    let memory = |filter: &str, params: &[(&str, &str)]| {
        testing::try_stack(&disk, &[filter], params).unwrap().needs(false).memory
    };
    for filter in ["xz", "lzip", "zstd"] {
        let (block, depth) = (format!("{filter}-max-block"), format!("{filter}-max-depth"));
        let params = [(block.as_str(), "10M"), (depth.as_str(), "3")];
        // For each block itself, and as much for the decoder's window, or zstd's.
        let least =
            if filter == "zstd" { 3 * (20 << 20) + 3 * (128 << 20) } else { 3 * (20 << 20) };
        assert_eq!(memory(filter, &params), least, "{filter}");
        assert!(memory(filter, &[]) >= 2 * 8 * (512 << 20), "{filter}");
    }
    // Sixteen parts of up to 16 MiB.
    assert_eq!(memory("gzip", &[]), 16 * (16 << 20));
    // Eight blocks, and each as it comes from the decoder.
    assert_eq!(memory("bzip2", &[]), 2 * 8 * (48 << 20));
    // Clusters of 2 MiB, as many that are being decompressed, from up to two each.
    assert!(memory("qcow2dec", &[]) >= 8 * 4 * (2 << 20));
}

/// The tests' limits are small: see the constants.
#[test]
fn a_file_has_only_so_many_parts() {
    let Some(stream) = made_by("xz", &["--stdout"], &[]) else { return };
    assert_eq!(decoded("xz", stream.repeat(1000), &[]).unwrap(), b"");
    let error = decoded("xz", stream.repeat(1001), &[]).unwrap_err();
    assert_eq!(error.message(), "xz: the file has too many streams");
    // Records of blocks without data.
    let records = |count| crate::xz::with_index(&[0; 8].repeat(count), &vec![(8, 0); count]);
    assert_eq!(decoded("xz", records(5000), &[]).unwrap(), b"");
    let error = decoded("xz", records(5001), &[]).unwrap_err();
    assert_eq!(error.message(), "xz: more than 5000 blocks");
    let Some(member) = made_by("lzip", &["--stdout"], &[]) else { return };
    assert_eq!(decoded("lzip", member.repeat(1000), &[]).unwrap(), b"");
    let error = decoded("lzip", member.repeat(1001), &[]).unwrap_err();
    assert_eq!(error.message(), "lzip: the file has too many members");
}
