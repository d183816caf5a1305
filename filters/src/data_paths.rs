//! Compares what each filter declares about its data path, [`OpenLayer::data_path`], with what the
//! filter does to random requests. Requests that are declared to pass are carried out without the
//! filter, so a wrong word loses or corrupts data.

use std::sync::Arc;

use nbdkit_api::{
    DataPath, Direction, Errno, Error, Filter, Flags, Next, Open, OpenLayer, Result, Slot,
};

use crate::random;
use crate::testing::{self, Disk};

const DISK_SIZE: usize = 256 << 10;
const REQUESTS: usize = 400;

/// The same requests in every run.
pub(crate) struct Random(random::Random);

impl Random {
    pub(crate) fn new() -> Random {
        Random(random::Random::new(1))
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.0.word() % bound
    }
}

/// How many requests were made, and how many of them passed.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    made: usize,
    passed: usize,
}

impl Tally {
    fn count(&mut self, passed: bool) {
        self.made += 1;
        self.passed += usize::from(passed);
    }

    fn share(self) -> Share {
        match self.passed {
            0 => Share::Nothing,
            all if all == self.made => Share::All,
            _ => Share::Part,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    All,
    Part,
    Nothing,
}

/// Makes random requests to `filter`, which stands on `disk`. Returns which reads and which writes
/// were declared to pass.
///
/// # Errors
/// A request was declared to pass, but the filter did something else.
fn check(disk: &Disk, filter: &Next) -> Result<(Share, Share), String> {
    let random = Random::new();
    let (mut reads, mut writes) = (Tally::default(), Tally::default());
    let size = filter.size().unwrap();
    for _ in 0..REQUESTS {
        let count = 1 + random.below(size.min(5000));
        let offset = random.below(size - count + 1);
        let (count, start) = (count as usize, offset as usize);
        if random.below(2) == 0 {
            let below = filter.passes_to(Direction::Read, count as u64, offset);
            reads.count(below.is_some());
            check_read(disk, filter, count, offset, below)
                .map_err(|why| format!("read of {count} bytes at {start}: {why}"))?;
        } else if filter.can_write().unwrap() {
            let below = filter.passes_to(Direction::Write, count as u64, offset);
            writes.count(below.is_some());
            let bytes: Vec<u8> = (0..count).map(|_| random.below(256) as u8).collect();
            check_write(disk, filter, &bytes, offset, below)
                .map_err(|why| format!("write of {count} bytes at {start}: {why}"))?;
        }
    }
    Ok((reads.share(), writes.share()))
}

/// What the plugin was asked, but for prefetching: a filter may do that at any time.
pub(crate) fn calls(disk: &Disk) -> Vec<String> {
    let mut calls = disk.take_calls();
    calls.retain(|call| !call.starts_with("cache"));
    calls
}

fn check_read(
    disk: &Disk,
    filter: &Next,
    count: usize,
    offset: u64,
    below: Option<u64>,
) -> Result<(), String> {
    disk.take_calls();
    let mut buf = vec![0; count];
    let result = filter.pread(&mut buf, offset);
    let calls = calls(disk);
    if let Some(below) = below {
        result.as_ref().map_err(|error| format!("failed: {error}"))?;
        let expected = [format!("pread {count}@{below}")];
        if calls != expected {
            return Err(format!("calls below: {calls:?}, not {expected:?}"));
        }
        if buf != disk.data.lock().unwrap()[below as usize..][..count] {
            return Err("the bytes are not those of the disk".to_owned());
        }
    }
    let mut quick = vec![0; count];
    if let (Ok(()), Some(Ok(()))) = (result, filter.try_pread(&mut quick, offset))
        && quick != buf
    {
        return Err("try_pread and pread differ".to_owned());
    }
    Ok(())
}

fn check_write(
    disk: &Disk,
    filter: &Next,
    bytes: &[u8],
    offset: u64,
    below: Option<u64>,
) -> Result<(), String> {
    let mut expected = disk.data.lock().unwrap().clone();
    disk.take_calls();
    let result = filter.pwrite(bytes, offset, Flags::empty());
    let calls = calls(disk);
    let Some(below) = below else { return Ok(()) };
    result.map_err(|error| format!("failed: {error}"))?;
    if calls != [format!("pwrite {}@{below}", bytes.len())] {
        return Err(format!("calls below: {calls:?}"));
    }
    expected[below as usize..][..bytes.len()].copy_from_slice(bytes);
    if *disk.data.lock().unwrap() != expected {
        return Err("the bytes on the disk are not those that were written".to_owned());
    }
    Ok(())
}

pub(crate) type Parameters = &'static [(&'static str, &'static str)];

/// A file that the indexed-gzip filter makes.
const INDEX: &str = "/tmp/nbdkit-index-data-paths";

/// Every filter, in the configurations that its data path depends on, with the reads and the writes
/// that have to pass: a filter that lets nothing pass is correct but slow.
#[rustfmt::skip]
pub(crate) const FILTERS: &[(&str, Parameters, Share, Share)] = {
    use Share::{All, Nothing, Part};
    &[
        ("blocksize", &[], All, All),
        ("blocksize", &[("maxdata", "1000")], Part, Part),
        ("blocksize", &[("minblock", "2")], Part, Nothing),
        ("blocksize-policy", &[("blocksize-minimum", "512")], All, All),
        (
            "blocksize-policy",
            &[("blocksize-minimum", "2"), ("blocksize-error-policy", "error")],
            Part,
            Part,
        ),
        ("blocksize-policy", &[("blocksize-write-disconnect", "4000")], All, Part),
        ("bzip2", &[], Nothing, Nothing),
        ("bzip2", &[("bzip2-max-expand", "0")], Nothing, Nothing),
        ("cache", &[("cache-min-block-size", "4096")], Part, Nothing),
        ("cache", &[("cache", "writethrough"), ("cache-min-block-size", "4096")], Part, Nothing),
        ("cache", &[("cache-on-read", "true")], Nothing, Nothing),
        ("cacheextents", &[], All, Nothing),
        ("checkwrite", &[], All, Nothing),
        ("count", &[], All, All),
        ("cow", &[("cow-block-size", "4096")], Part, Nothing),
        ("cow", &[("cow-on-read", "true")], Nothing, Nothing),
        // Nothing is rescued by an empty map.
        ("ddrescue", &[("ddrescue-mapfile", "/dev/null")], Nothing, Nothing),
        ("delay", &[], All, All),
        ("delay", &[("rdelay", "1us")], Nothing, All),
        ("delay", &[("wdelay", "1us")], All, Nothing),
        ("error", &[], All, All),
        ("error", &[("error-rate", "50%")], Nothing, Nothing),
        ("error", &[("error-pread-rate", "1%")], Nothing, All),
        ("error", &[("error-pwrite-rate", "100%")], All, Nothing),
        ("evil", &[], Nothing, All),
        ("evil", &[("evil-probability", "0")], All, All),
        ("exitlast", &[], All, All),
        ("exitwhen", &[], All, All),
        ("exitwhen", &[("exit-when-file-created", "/nonexistent")], All, All),
        ("exportname", &[("default-export", "one")], All, All),
        ("extentlist", &[("extentlist", "/dev/null")], All, All),
        ("fua", &[], All, All),
        ("fua", &[("fuamode", "emulate")], All, All),
        ("fua", &[("fuamode", "native")], All, All),
        ("fua", &[("fuamode", "pass")], All, All),
        ("fua", &[("fuamode", "discard")], All, All),
        ("fua", &[("fuamode", "force")], All, Nothing),
        ("gzip", &[], Nothing, Nothing),
        ("gzip", &[("gzip-max-expand", "0")], Nothing, Nothing),
        ("indexed-gzip", &[("gzip-index-path", INDEX)], Nothing, Nothing),
        ("ip", &[], All, All),
        ("limit", &[], All, All),
        ("log", &[], All, All),
        ("log", &[("logfile", "/dev/null")], Nothing, Nothing),
        ("luks", &[("passphrase", crate::luks::example::PASSPHRASE)], Nothing, Nothing),
        ("lzip", &[], Nothing, Nothing),
        ("map", &[], All, All),
        ("map", &[("map", "1000-50000:100000")], Part, Part),
        // The layer below is multi-conn.
        ("multi-conn", &[], All, Nothing),
        ("multi-conn", &[("multi-conn-track-dirty", "off")], All, All),
        ("multi-conn", &[("multi-conn-mode", "emulate")], Nothing, Nothing),
        (
            "multi-conn",
            &[("multi-conn-mode", "emulate"), ("multi-conn-track-dirty", "fast")],
            All,
            Nothing,
        ),
        ("nocache", &[("cachemode", "emulate")], All, All),
        ("noextents", &[], All, All),
        ("nofilter", &[], All, All),
        ("noparallel", &[], All, All),
        ("nozero", &[("zeromode", "emulate")], All, All),
        ("offset", &[("offset", "12345"), ("range", "50000")], All, All),
        ("offset", &[], All, All),
        ("openonce", &[], All, All),
        ("partition", &[("partition", "1")], All, All),
        ("pause", &[("pause-control", "/tmp/nbdkit-pause-data-paths")], Nothing, Nothing),
        ("protect", &[], All, All),
        ("protect", &[("protect", "50000-60000")], All, Part),
        ("protect", &[("protect", "~50000-60000")], All, Part),
        ("qcow2dec", &[], Nothing, Nothing),
        ("rate", &[], All, All),
        ("rate", &[("rate", "1G")], Nothing, Nothing),
        ("readahead", &[], Nothing, All),
        // Clients that do not write.
        ("readonly", &[], All, Nothing),
        ("readonly", &[("readonly-file", "/nonexistent")], All, All),
        ("readonly", &[("readonly-file", "/")], All, Nothing),
        ("retry", &[], Nothing, Nothing),
        ("retry-request", &[], Nothing, Nothing),
        ("scan", &[], All, All),
        ("scan", &[("scan-ahead", "false")], All, All),
        ("rotational", &[], All, All),
        (
            "spinning",
            &[("max-seek-time", "0"), ("half-seek-time", "0"), ("min-seek-time", "0")],
            Nothing,
            Nothing,
        ),
        ("stats", &[("statsfile", "/dev/null")], All, All),
        ("swab", &[], Nothing, Nothing),
        ("swab", &[("swab-bits", "8")], All, All),
        ("tar", &[("tar-entry", "x")], All, All),
        ("time-limit", &[], All, All),
        ("time-limit", &[("time-limit", "1ns")], Nothing, Nothing),
        // Clients without TLS, who do not write.
        ("tls-fallback", &[], Nothing, Nothing),
        ("truncate", &[("truncate", "100k")], All, All),
        ("truncate", &[("truncate", "300k")], Part, Part),
        ("xor", &[("xor", "0")], All, All),
        ("xor", &[("xor", "0x1234")], Nothing, Nothing),
        ("xz", &[], Nothing, Nothing),
        ("zstd", &[], Nothing, Nothing),
    ]
};

#[test]
fn every_filter_does_to_data_what_it_says() {
    for (name, params, reads, writes) in FILTERS {
        let Some(disk) = testing::device_for(name, DISK_SIZE) else { continue };
        let filter = testing::backend(&disk, &[name], params);
        let shares = check(&disk, &filter).unwrap_or_else(|why| panic!("{name} {params:?}: {why}"));
        assert_eq!(shares, (*reads, *writes), "{name} {params:?}");
        // The close of exitlast stops the server, and another test counts how often that happens.
        std::mem::forget(filter);
    }
    let _ = std::fs::remove_file(INDEX);
    for name in crate::names() {
        assert!(FILTERS.iter().any(|(known, ..)| *known == name), "{name} is not in the table");
    }
}

/// What a filter does although it declares that all requests pass.
#[derive(Debug, Clone, Copy)]
enum Lie {
    None,
    Scrambles,
    ScramblesWrites,
    Moves,
    Splits,
    AddsFua,
    Fails,
    LosesWrites,
}

struct Liar(DataPath, Lie);

impl Filter for Liar {
    fn name(&self) -> &str {
        "liar"
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Liar(self.0, self.1)))
    }
}

impl OpenLayer for Liar {
    /// Half of the disk: there is room to shift.
    fn size(&self, _: &Next) -> Result<u64> {
        Ok(DISK_SIZE as u64 / 2)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.1 {
            Lie::Scrambles => {
                next.pread(buf, offset)?;
                buf.iter_mut().for_each(|byte| *byte ^= 1);
                Ok(())
            }
            Lie::Moves => next.pread(buf, offset + 1),
            Lie::Splits => {
                let (first, second) = buf.split_at_mut(1);
                next.pread(first, offset)?;
                next.pread(second, offset + 1)
            }
            Lie::Fails => Err(Error::silent(Errno::EIO)),
            Lie::None | Lie::ScramblesWrites | Lie::AddsFua | Lie::LosesWrites => {
                next.pread(buf, offset)
            }
        }
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        match self.1 {
            Lie::ScramblesWrites => {
                let scrambled: Vec<u8> = buf.iter().map(|byte| byte ^ 1).collect();
                next.pwrite(&scrambled, offset, flags)
            }
            Lie::AddsFua => next.pwrite(buf, offset, flags | Flags::FUA),
            Lie::LosesWrites => Ok(()),
            Lie::None | Lie::Scrambles | Lie::Moves | Lie::Splits | Lie::Fails => {
                next.pwrite(buf, offset, flags)
            }
        }
    }

    fn data_path(&self, _: Direction) -> DataPath {
        self.0
    }

    fn passes(&self, _: &Next, _: Direction, _: u64, _: u64) -> bool {
        true
    }
}

#[test]
fn a_filter_that_does_something_else_is_noticed() {
    let check = |path, lie| {
        let disk = Arc::new(Disk::pattern(DISK_SIZE));
        let filters: Vec<Box<dyn Filter>> = vec![Box::new(Liar(path, lie))];
        let layer = testing::try_stack_of(&disk, filters, &[]).unwrap().freeze();
        check(&disk, &testing::open(&layer))
    };
    for path in [DataPath::Transparent, DataPath::PerRequest] {
        assert_eq!(check(path, Lie::None), Ok((Share::All, Share::All)));
        for lie in [
            Lie::Scrambles,
            Lie::ScramblesWrites,
            Lie::Moves,
            Lie::Splits,
            Lie::AddsFua,
            Lie::Fails,
            Lie::LosesWrites,
        ] {
            assert!(check(path, lie).is_err(), "{path:?} {lie:?}");
            assert_eq!(check(DataPath::Opaque, lie), Ok((Share::Nothing, Share::Nothing)));
        }
    }
    check(DataPath::Shifted(1), Lie::None).unwrap_err();
}
