use std::io::Write;

use nbdkit_api::{Blocking, Errno, Error};

use crate::testing::{self, decoded, disk_of, sample};

const CLUSTER: usize = 512;

/// An image of clusters of 512 bytes, whose L1 table is the second cluster and whose only L2 table
/// is the third.
struct Maker {
    bytes: Vec<u8>,
}

impl Maker {
    /// With a disk of `size` bytes, at most those of an L2 table.
    fn new(version: u32, size: u64) -> Maker {
        let mut maker = Maker { bytes: vec![0; 3 * CLUSTER] };
        maker.word(0, 0x5146_49fb).word(4, version).word(20, 9).long(24, size);
        maker.word(36, 1).long(40, CLUSTER as u64).word(100, 104);
        maker.long(CLUSTER, (1 << 63) | (2 * CLUSTER as u64));
        maker
    }

    fn word(&mut self, at: usize, word: u32) -> &mut Maker {
        self.bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        self
    }

    fn long(&mut self, at: usize, word: u64) -> &mut Maker {
        self.bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        self
    }

    /// Sets an entry of the L2 table.
    fn entry(&mut self, cluster: usize, entry: u64) -> &mut Maker {
        self.long(2 * CLUSTER + 8 * cluster, entry)
    }

    /// Appends `data` as a cluster of the disk.
    fn data(&mut self, cluster: usize, data: &[u8]) -> &mut Maker {
        let at = self.bytes.len().next_multiple_of(CLUSTER);
        self.bytes.resize(at, 0);
        self.bytes.extend(data);
        self.entry(cluster, 1 << 63 | at as u64)
    }

    /// Appends a cluster in compressed form.
    fn compressed(&mut self, cluster: usize, data: &[u8]) -> &mut Maker {
        let at = self.bytes.len();
        self.bytes.extend(data);
        let sectors = (self.bytes.len() - 1) / 512 - at / 512;
        self.entry(cluster, 1 << 62 | (sectors as u64) << 61 | at as u64)
    }

    fn decoded(&self) -> nbdkit_api::Result<Vec<u8>> {
        decoded("qcow2dec", self.bytes.clone(), &[])
    }

    fn error(&self) -> Error {
        let error = self.decoded().expect_err("an error");
        assert_eq!(error.errno(), Errno::EIO, "{error}");
        assert!(!error.message().contains('\n'));
        error
    }
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that can be compressed, different for each `number`.
fn cluster(number: u8) -> [u8; CLUSTER] {
    std::array::from_fn(|at| number ^ (at / 30) as u8)
}

#[test]
fn clusters_of_each_kind_are_where_the_tables_say() {
    for version in [2, 3] {
        let mut maker = Maker::new(version, 10 * 512 - 100);
        maker.data(1, &cluster(1)).data(2, &cluster(2)).data(0, &cluster(3));
        maker.compressed(4, &deflated(&cluster(4))).compressed(5, &deflated(&cluster(5)));
        if version == 3 {
            // It has a place, and reads as zeroes all the same.
            maker.data(7, &cluster(7));
            let entry = maker.bytes.len() as u64 - 512;
            maker.entry(7, 1 << 63 | entry | 1);
        }
        maker.data(9, &cluster(9));
        let zero = [0; CLUSTER];
        let (one, two, three) = (cluster(1), cluster(2), cluster(3));
        let (four, five, nine) = (cluster(4), cluster(5), cluster(9));
        let clusters = [three, one, two, zero, four, five, zero, zero, zero, nine];
        let expected = &clusters.concat()[..10 * 512 - 100];
        assert!(maker.decoded().unwrap() == expected, "version {version}");
        let mut disk = disk_of(maker.bytes);
        std::sync::Arc::get_mut(&mut disk).unwrap().blocking = Blocking::Short;
        let next = testing::backend(&disk, &["qcow2dec"], &[]);
        for (count, offset) in [(1, 0), (512, 512), (1000, 700), (600, 2000), (13, 2559)] {
            assert!(testing::read(&next, count, offset as u64) == expected[offset..][..count]);
            let mut now = vec![0xee; count];
            next.try_pread(&mut now, offset as u64).unwrap().unwrap();
            assert!(now == expected[offset..][..count], "{count}@{offset}");
        }
        let extents = testing::extents_of(&next, expected.len() as u64, 0);
        let kinds =
            [(0, 1536, 0), (1536, 512, 3), (2048, 1024, 0), (3072, 1536, 3), (4608, 412, 0)];
        assert_eq!(extents, kinds);
        assert!(!next.can_write().unwrap());
    }
}

#[test]
fn neighbours_in_the_image_are_read_in_one_go() {
    let mut maker = Maker::new(3, 4 * 512);
    for number in 0..4 {
        maker.data(usize::from(number), &cluster(number));
    }
    let disk = disk_of(maker.bytes);
    let next = testing::backend(&disk, &["qcow2dec"], &[]);
    let _ = testing::read(&next, 1, 0);
    disk.take_calls();
    let _ = testing::read(&next, 2000, 5);
    assert_eq!(disk.take_calls(), ["pread 2000@1541"]);
}

#[test]
fn clusters_are_compressed_with_zstd_if_the_header_says_so() {
    let mut maker = Maker::new(3, 1024);
    maker.long(72, 8).word(100, 112).word(104, 1 << 24);
    maker.compressed(0, &zstd::encode_all(&cluster(1)[..], 3).unwrap());
    maker.bytes.extend([0xff; 700]);
    assert!(maker.decoded().unwrap() == [cluster(1), [0; CLUSTER]].concat());
    maker.long(72, 0);
    assert!(maker.error().message().contains("compressed cluster at 1536"));
    maker.long(72, 8).word(104, 2 << 24);
    assert!(maker.error().message().contains("compression type 2"));
}

/// RFC 8878, 3.1.1.1: a frame of one block as it is.
#[test]
fn a_cluster_may_not_want_a_large_window() {
    let mut maker = Maker::new(3, 512);
    maker.long(72, 8).word(100, 112).word(104, 1 << 24);
    let frame = |window: u8| {
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3, 0x01, 0x10, 0x00];
        [&header[..], &cluster(5)].concat()
    };
    maker.compressed(0, &frame(23));
    assert!(maker.decoded().unwrap() == cluster(5));
    maker.compressed(0, &frame(24));
    let message = maker.error().message().to_owned();
    assert!(message.contains("too much memory"), "{message}");
}

#[test]
fn a_client_keeps_few_decompressed_clusters() {
    let mut maker = Maker::new(3, 64 * 512);
    for number in 0..=super::CLUSTERS {
        maker.compressed(number, &deflated(&cluster(number as u8)));
    }
    let disk = disk_of(maker.bytes.clone());
    let next = testing::backend(&disk, &["qcow2dec"], &[]);
    let is_kept = |number: usize| {
        disk.take_calls();
        assert!(testing::read(&next, CLUSTER, (number * CLUSTER) as u64) == cluster(number as u8));
        disk.take_calls().is_empty()
    };
    (0..super::CLUSTERS).for_each(|number| assert!(!is_kept(number)));
    assert!((0..super::CLUSTERS).all(is_kept));
    assert!(!is_kept(super::CLUSTERS), "in place of the first one");
    assert!(!is_kept(0));
}

#[test]
fn images_that_have_what_is_not_supported_are_refused() {
    let cases: [(usize, u64, &str); 8] = [
        (8, 4096, "backing file"),
        (24, 1 << 20, "1 entries where 32"),
        (72, 1 << 1, "corrupt"),
        (72, 1 << 2, "another file"),
        (72, 1 << 4, "extended L2"),
        (72, 1 << 5, "features 0x20"),
        (24, 1 << 63, "2^63"),
        (40, 100, "L1 table cannot be at 100"),
    ];
    for (at, value, expected) in cases {
        let error = Maker::new(3, 512).long(at, value).error();
        assert!(error.message().contains(expected), "{error}");
    }
    let words: [(usize, u32, &str); 8] = [
        (0, 0, "qcow2 image"),
        (4, 1, "version 1"),
        (4, 4, "version 4"),
        (20, 8, "2^8"),
        (20, 22, "2^22"),
        (32, 2, "encrypted"),
        (36, 0, "0 entries where 1"),
        (100, 96, "header of 96"),
    ];
    for (at, value, expected) in words {
        let error = Maker::new(3, 512).word(at, value).error();
        assert!(error.message().contains(expected), "{error}");
    }
    // Only the reference counts may be wrong.
    assert!(Maker::new(3, 512).long(72, 1).decoded().is_ok());
    assert!(decoded("qcow2dec", sample(71), &[]).is_err());
    assert!(decoded("qcow2dec", Vec::new(), &[]).is_err());
}

#[test]
fn tables_that_point_anywhere_are_an_error_of_the_request() {
    let l1 = |entry| Maker::new(3, 512).long(CLUSTER, entry).error();
    for entry in [1024 | 1, 1024 | 2, 1024 | 1 << 62, 1024 | 1 << 56, 1024 + 512, 1 << 55] {
        assert!(l1(entry).message().starts_with("qcow2dec: an L"), "{entry:#x}");
    }
    for entry in [4, 1 << 56, 1536, 1 << 54, 1 << 62, 1 << 62 | 100, 1 << 62 | 1 << 50] {
        let error = Maker::new(3, 512).entry(0, entry).error();
        assert!(error.message().starts_with("qcow2dec: a"), "{entry:#x}: {error}");
    }
    assert!(Maker::new(2, 512).entry(0, 1).error().message().contains("reserved"));
    // Loops are only odd: a table as a cluster.
    assert!(Maker::new(3, 512).entry(0, 1024).decoded().is_ok());
}

#[test]
fn an_image_that_is_cut_off_is_an_error_where_it_is() {
    let mut maker = Maker::new(3, 3 * 512);
    maker.data(0, &cluster(0)).data(1, &cluster(1)).compressed(2, &deflated(&cluster(2)));
    let whole = maker.bytes.clone();
    for length in [73, 103, 512, 1000, 1535, 1600, 2100, whole.len() - 1] {
        maker.bytes = whole[..length].to_vec();
        assert!(maker.decoded().is_err(), "{length}");
    }
    // What is still there is served.
    maker.bytes = whole[..2100].to_vec();
    let next = testing::backend(&disk_of(maker.bytes), &["qcow2dec"], &[]);
    assert_eq!(testing::read(&next, 512, 0), cluster(0));
    assert_eq!(next.pread(&mut [0; 512], 512).unwrap_err().errno(), Errno::EIO);
}

#[test]
fn a_cluster_that_makes_too_little_is_an_error_and_one_that_makes_too_much_is_cut() {
    let too_little = Maker::new(3, 512).compressed(0, &deflated(&[7; 511])).error();
    assert!(too_little.message().contains("compressed cluster"), "{too_little}");
    let mut bomb = Maker::new(3, 512);
    bomb.compressed(0, &deflated(&vec![7; 1 << 20])[..1000]);
    assert_eq!(bomb.decoded().unwrap(), [7; 512]);
}

#[test]
fn every_client_has_the_image_that_is_there_when_it_connects() {
    let disk = disk_of(Maker::new(3, 512).bytes.clone());
    let layer = testing::layer(&disk, &["qcow2dec"], &[]);
    let first = testing::open(&layer);
    *disk.data.lock().unwrap() = Maker::new(3, 1024).data(1, &cluster(1)).bytes.clone();
    let second = testing::open(&layer);
    assert_eq!((first.size().unwrap(), second.size().unwrap()), (512, 1024));
    assert_eq!(testing::read(&second, 512, 512), cluster(1));
}
