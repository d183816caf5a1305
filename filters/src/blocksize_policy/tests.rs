use super::*;
use crate::testing::{self, Disk};
use std::sync::atomic::{AtomicBool, Ordering};

const LIMITS: [(&str, &str); 3] =
    [("blocksize-minimum", "512"), ("blocksize-preferred", "4k"), ("blocksize-maximum", "8k")];
/// The end of the disk is not aligned.
const SIZE: usize = 100_001;

fn open(disk: &Arc<Disk>, policy: &str) -> Next {
    let params = [&LIMITS[..], &[("blocksize-error-policy", policy)]].concat();
    let filter = testing::backend(disk, &["blocksize-policy"], &params);
    disk.take_calls();
    filter
}

/// Every request for this range; what failed, and how.
fn refused(filter: &Next, count: u64, offset: u64) -> Vec<&'static str> {
    let mut refused = Vec::new();
    let mut note = |name, result: Result<()>| {
        if let Err(error) = result {
            assert_eq!(error.errno(), Errno::EINVAL);
            assert!(error.message().starts_with(&format!("client {name} request rejected: ")));
            refused.push(name);
        }
    };
    let mut buf = vec![0; count as usize];
    note("pread", filter.pread(&mut buf, offset));
    note("pwrite", filter.pwrite(&buf, offset, Flags::empty()));
    note("trim", filter.trim(count, offset, Flags::empty()));
    note("zero", filter.zero(count, offset, Flags::empty()));
    note("cache", filter.cache(count, offset));
    let mut extents = Extents::new(offset, SIZE as u64);
    note("extents", filter.extents(count, offset, Flags::empty(), &mut extents));
    refused
}

#[test]
fn requests_that_do_not_keep_the_constraints_are_refused() {
    const ALL: [&str; 6] = ["pread", "pwrite", "trim", "zero", "cache", "extents"];
    let disk = Arc::new(Disk::new(SIZE));
    let [allow, error, strict] = ["allow", "error", "strict"].map(|policy| open(&disk, policy));
    for (count, offset, by_error, by_strict) in [
        (512, 0, &[][..], &[][..]),
        (8192, 512, &[], &[]),
        (8704, 0, &ALL[..2], &ALL[..2]),
        (100, 0, &ALL, &ALL),
        (512, 50, &ALL, &ALL),
        (700, 512, &ALL, &ALL),
        // At the end of the disk.
        (161, 99_840, &[], &ALL),
        (1697, 98_304, &[], &ALL),
        (101, 99_900, &ALL, &ALL),
        (160, 99_840, &ALL, &ALL),
    ] {
        assert!(refused(&allow, count, offset).is_empty());
        assert_eq!(refused(&error, count, offset), by_error, "{count}@{offset}");
        assert_eq!(refused(&strict, count, offset), by_strict, "{count}@{offset}");
    }
}

#[test]
fn a_refused_request_does_not_reach_the_layer_below() {
    let disk = Arc::new(Disk::new(SIZE));
    let filter = open(&disk, "error");
    disk.take_calls();
    assert_eq!(refused(&filter, 100, 0).len(), 6);
    assert!(disk.take_calls().is_empty());
}

#[test]
fn extents_are_rounded_to_the_minimum() {
    let disk = Arc::new(Disk { extents: false, ..Disk::new(SIZE) });
    let filter = open(&disk, "allow");
    assert!(filter.can_extents().unwrap());
    assert_eq!(testing::extents_of(&filter, 1000, 50), [(50, 1000, 0)]);
    let disk = Arc::new(Disk::new(SIZE));
    let filter = open(&disk, "allow");
    assert_eq!(testing::extents_of(&filter, 34_465, 65_536), [(65_536, 34_465, 3)]);
    let mut extents = Extents::new(50, SIZE as u64);
    filter.extents(100, 50, Flags::empty(), &mut extents).unwrap();
    assert_eq!(extents.covered_to(), 512);
}

#[test]
fn an_oversize_write_ends_the_connection() {
    static CUT: AtomicBool = AtomicBool::new(false);
    let disk = Arc::new(Disk::new(1 << 20));
    let params = [("blocksize-write-disconnect", "8000")];
    let layer = testing::layer(&disk, &["blocksize-policy"], &params);
    let cut = Box::new(|| CUT.store(true, Ordering::Relaxed));
    let client = Client::new(1, nbdkit_api::client::Peer::default(), None, cut);
    let open = Open { client: Some(&client), readonly: false, export: "", tls: false };
    let filter = layer.open(&open).unwrap();
    filter.prepare().unwrap();
    let own = BlockSize { minimum: 1, preferred: 4096, maximum: 8000 };
    assert_eq!(filter.block_size().unwrap(), own);
    filter.pwrite(&[0; 8000], 0, Flags::empty()).unwrap();
    testing::read(&filter, 9000, 0);
    assert!(!CUT.load(Ordering::Relaxed));
    let error = filter.pwrite(&[0; 8001], 0, Flags::empty()).unwrap_err();
    assert_eq!(error.errno(), Errno::ESHUTDOWN);
    assert!(CUT.load(Ordering::Relaxed));
}

#[test]
fn what_is_advertised_is_given_or_from_below_or_a_default() {
    let size = |minimum, preferred, maximum| BlockSize { minimum, preferred, maximum };
    let (nothing, below) = (BlockSize::default(), size(512, 65_536, 1 << 20));
    for (given, disconnect, below, expected) in [
        (nothing, 0, nothing, Some(nothing)),
        (nothing, 0, below, Some(below)),
        (size(4096, 0, 0), 0, nothing, Some(size(4096, 4096, u32::MAX))),
        (size(4096, 0, 0), 0, below, Some(size(4096, 65_536, 1 << 20))),
        (size(0, 0, 100_000), 0, below, Some(size(512, 65_536, 99_840))),
        (size(0, 0, 2048), 0, nothing, None),
        (size(8192, 0, 0), 0, nothing, None),
        (size(512, 0, 0), 10_000, nothing, Some(size(512, 4096, 9728))),
        (nothing, 1000, nothing, Some(size(1, 4096, u32::MAX))),
        (nothing, 100_000, below, Some(below)),
    ] {
        let filter =
            BlocksizePolicy { given, write_disconnect: disconnect, ..BlocksizePolicy::default() };
        assert_eq!(filter.block_size(below).ok(), expected, "{given:?} {disconnect} {below:?}");
    }
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for (params, why) in [
        (&[("blocksize-minimum", "3")][..], "blocksize-minimum must be a power of 2"),
        (&[("blocksize-minimum", "128k")], "blocksize-minimum must be <= 64K"),
        (&[("blocksize-preferred", "256")], "blocksize-preferred must be between 512 and 32M"),
        (
            &[("blocksize-minimum", "4k"), ("blocksize-write-disconnect", "4k")],
            "blocksize-write-disconnect must be larger than blocksize-minimum",
        ),
        (&[("blocksize-maximum", "4G")], "blocksize-maximum: could not parse 4G"),
        (&[("blocksize-error-policy", "foo")], "unknown blocksize-error-policy: foo"),
    ] {
        assert_eq!(testing::config_error("blocksize-policy", params), why);
    }
}
