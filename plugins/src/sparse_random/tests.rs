use super::*;

const SIZE: u64 = 1 << 30;

fn disk(percent: f64, run_length: u64, random_content: bool) -> Sparse {
    Sparse { size: SIZE, seed: 7, random_content, runs: Runs::new(7, percent, run_length) }
}

fn read(disk: &Sparse, offset: u64, count: u64) -> Vec<u8> {
    let mut buf = vec![0xaa; count as usize];
    disk.read(&mut buf, offset).unwrap();
    buf
}

/// Runs, neighbours of one kind being one.
fn runs(disk: &Sparse) -> Vec<(u64, bool)> {
    let mut extents = Extents::new(0, disk.size);
    disk.extents(disk.size, 0, false, &mut extents).unwrap();
    extents.iter().map(|it| (it.length, it.kind == ExtentKind::DATA)).collect()
}

#[test]
fn the_disk_is_the_same_however_it_is_read() {
    for random_content in [false, true] {
        let disk = disk(50.0, 3 * BLOCK, random_content);
        let whole = read(&disk, 0, 1 << 20);
        for from in (0..1 << 20).step_by(10_007) {
            for count in [1, 4095, 4096, 30_000_u64] {
                let to = (from + count).min(1 << 20);
                assert_eq!(read(&disk, from, to - from), whole[from as usize..to as usize]);
            }
        }
        // What is said to be a hole is zeroes, and data is not.
        let mut at = 0;
        for (length, data) in runs(&disk) {
            for block in (at..at + length).step_by(BLOCK as usize).take(3) {
                assert_eq!(read(&disk, block, BLOCK).iter().any(|byte| *byte != 0), data);
            }
            at += length;
        }
        assert_eq!(at, SIZE);
    }
}

#[test]
fn the_bytes_do_not_change_between_versions() {
    let disk = disk(50.0, 3 * BLOCK, false);
    let sum =
        |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, it| sum * 31 % 1_000_003 + u64::from(*it));
    assert_eq!(sum(&read(&disk, 0, 1 << 20)), 667_296);
}

#[test]
fn percentage_and_length_of_runs_are_about_those_that_are_asked_for() {
    for (percent, length) in [(1.5, BLOCK), (10.0, 16 << 10), (50.0, 64 << 10), (99.0, BLOCK)] {
        let runs = runs(&disk(percent, length, false));
        let data: u64 = runs.iter().filter(|(_, data)| *data).map(|(length, _)| length).sum();
        let found = data as f64 * 100.0 / SIZE as f64;
        assert!((found - percent).abs() < percent.min(100.0 - percent) / 5.0, "{percent}: {found}");
        let count = runs.iter().filter(|(_, data)| *data).count() as u64;
        let expected = length.max((BLOCK as f64 * percent / (100.0 - percent)) as u64);
        let average = data / count;
        assert!((expected * 4 / 5..expected * 5 / 4).contains(&average), "{percent}: {average}");
    }
}

#[test]
fn the_whole_disk_may_be_data_or_hole_and_of_any_size() {
    for (percent, data) in [(0.0, false), (100.0, true)] {
        let disk = Sparse { size: i64::MAX as u64, ..disk(percent, 16 << 20, false) };
        let mut extents = Extents::new(0, disk.size);
        disk.extents(disk.size, 0, false, &mut extents).unwrap();
        let kinds: Vec<_> = extents.iter().map(|it| (it.length, it.kind.is_empty())).collect();
        assert_eq!(kinds, [(disk.size, data)]);
        let end = read(&disk, disk.size - 5000, 5000);
        assert!(end.iter().all(|byte| (*byte != 0) == data));
    }
    // Neither the smallest share nor the longest runs overflow.
    for percent in [f64::MIN_POSITIVE, 1e-9, 50.0, 99.999_999_999, 100.0_f64.next_down()] {
        for length in [1, i64::MAX as u64] {
            let disk = Sparse { size: i64::MAX as u64, ..disk(percent, length, true) };
            assert_eq!(read(&disk, disk.size - 1, 1).len(), 1);
        }
    }
}

#[test]
fn only_what_is_there_already_can_be_written() {
    for random_content in [false, true] {
        let disk = disk(50.0, 3 * BLOCK, random_content);
        let mut data = read(&disk, 100, 1 << 20);
        disk.write(&data, 100).unwrap();
        for at in [0, 300_000, (1 << 20) - 1] {
            data[at] ^= 1;
            let why = disk.write(&data, 100).unwrap_err();
            assert_eq!(why.message(), "data written does not match expected");
            assert_eq!(why.errno(), Errno::EIO);
            data[at] ^= 1;
        }
        let mut at = 0;
        for (length, data) in runs(&disk).into_iter().take(50) {
            assert_eq!(disk.zero(length, at).is_err(), data);
            at += length;
        }
        assert!(disk.zero(at, 0).is_err());
    }
}

#[test]
fn parameters_that_make_no_sense_are_one_line() {
    let why = |key, value| {
        SparseRandom::default().config(key, Value::new(value)).unwrap_err().message().to_owned()
    };
    for value in ["-1", "101", "x", "", "nan", "inf", "-0.1"] {
        assert_eq!(why("percent", value), format!("cannot parse percent parameter: {value}"));
    }
    assert_eq!(why("runlength", "0"), "runlength parameter must be > 0");
    assert_eq!(why("foo", "0"), "unknown parameter 'foo'");
    for (key, value) in [("seed", "-1"), ("random-content", "x"), ("size", "-1")] {
        assert!(!why(key, value).is_empty());
    }
}
