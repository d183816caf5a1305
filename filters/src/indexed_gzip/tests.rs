use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nbdkit_api::{Cache, Errno, Layer, Next};

use crate::compressed::index_file::example;
use crate::gzip::tests::{gzip, long, read_parts};
use crate::testing::{self, Disk, disk_of, made_by, sample};

/// Where an index is, for one test.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("indexed-gzip-{}-{number}", std::process::id());
        Place(std::env::temp_dir().join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }

    /// A server with this index, whose points are close together.
    fn server(&self, disk: &Arc<Disk>) -> Arc<Layer> {
        let parameters = [("gzip-index-path", self.path()), ("gzip-index-span", "64K")];
        testing::layer(disk, &["indexed-gzip"], &parameters)
    }

    /// Why a server does not start.
    fn refused(&self) -> String {
        testing::config_error("indexed-gzip", &[("gzip-index-path", self.path())])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether opening the disk decompresses the image, of which it then shows `data`.
fn is_made(place: &Place, disk: &Arc<Disk>, data: &[u8]) -> bool {
    disk.take_calls();
    let next = testing::open(&place.server(disk));
    let read = disk.bytes_read();
    let image = disk.data.lock().unwrap().len();
    assert!(testing::read(&next, data.len(), 0) == data);
    // What it is recognised by, and all of it.
    let recognised = 2 * image.min(65536);
    assert!(read == recognised || read >= recognised + image, "{read} bytes of {image}");
    read != recognised
}

fn parts(place: &Place, image: Vec<u8>, data: &[u8]) {
    let disk = disk_of(image);
    for _ in 0..2 {
        let parameters = [("gzip-index-path", place.path())];
        let layer = testing::layer(&disk, &["indexed-gzip"], &parameters);
        read_parts(&testing::open(&layer), data);
    }
}

#[test]
fn an_index_is_made_once_and_used_by_the_next_server() {
    let data = long(12 << 20);
    let Some(image) = gzip(&data) else { return };
    let place = Place::new();
    let disk = disk_of(image);
    assert!(is_made(&place, &disk, &data));
    let mode = std::fs::metadata(&place.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o7133, 0, "{mode:o}");
    let bytes = place.bytes();
    assert!(!is_made(&place, &disk, &data));
    assert!(place.bytes() == bytes);
    // About 32 KiB for every 64.
    assert!((data.len() / 4..data.len()).contains(&bytes.len()), "{}", bytes.len());
}

#[test]
fn points_are_where_the_parameter_says_and_an_index_with_others_is_used() {
    let data = long(6 << 20);
    let Some(image) = gzip(&data) else { return };
    let disk = disk_of(image);
    let mut lengths = Vec::new();
    for span in ["64K", "1M", "8M"] {
        let place = Place::new();
        let parameters = [("gzip-index-path", place.path()), ("gzip-index-span", span)];
        let layer = testing::layer(&disk, &["indexed-gzip"], &parameters);
        read_parts(&testing::open(&layer), &data);
        lengths.push(place.bytes().len());
        drop(layer);
        assert!(!is_made(&place, &disk, &data), "{span}");
    }
    assert!(lengths[0] > 2 * lengths[1] && lengths[1] > 2 * lengths[2], "{lengths:?}");
}

#[test]
fn files_of_several_members() {
    let data = long(9 << 20);
    for size in [20_000, 65_280, 1 << 20, (4 << 20) + 1] {
        let place = Place::new();
        let members: Option<Vec<_>> = data.chunks(size).map(gzip).collect();
        let Some(members) = members else { return };
        parts(&place, members.concat(), &data);
        // What follows is ignored each time.
        let place = Place::new();
        parts(&place, [members.concat(), vec![0; 999]].concat(), &data);
    }
    // A disk without bytes.
    let place = Place::new();
    let disk = disk_of(gzip(&[]).unwrap());
    for _ in 0..2 {
        assert_eq!(testing::open(&place.server(&disk)).size().unwrap(), 0);
    }
}

/// bgzip(1) has the length of a member in an extra field, and an empty member at the end.
#[test]
fn files_as_bgzip_and_pigz_make_them() {
    use flate2::{Compression, GzBuilder};
    use std::io::Write;
    let data = long(3 << 20);
    let mut image = Vec::new();
    for part in data.chunks(65_280).chain([&[][..]]) {
        let header = GzBuilder::new().extra(vec![b'B', b'C', 2, 0, 0, 0]);
        let mut encoder = header.write(Vec::new(), Compression::fast());
        encoder.write_all(part).unwrap();
        image.extend(encoder.finish().unwrap());
    }
    parts(&Place::new(), image, &data);
    // pigz(1) has one member, and an empty stored block behind each part.
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    for part in data.chunks(128 << 10) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    parts(&Place::new(), encoder.finish().unwrap(), &data);
}

/// A small disk, its image and the index.
fn small() -> Option<(Place, Arc<Disk>, Vec<u8>)> {
    let data = sample(300_000);
    let (place, disk) = (Place::new(), disk_of(gzip(&data)?));
    assert!(is_made(&place, &disk, &data));
    Some((place, disk, data))
}

#[test]
fn a_damaged_index_is_made_anew() {
    let Some((place, disk, data)) = small() else { return };
    let whole = place.bytes();
    // Each field of the header, of the first record, one in the middle, and a window.
    let header = (8..72).step_by(3);
    let body = (4096..4096 + 32).step_by(3).chain([4096 + 5000, whole.len() - 1]);
    for at in header.chain(body) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&place.0, damaged).unwrap();
        assert!(is_made(&place, &disk, &data), "byte {at}");
        assert!(place.bytes() == whole, "byte {at}");
        assert!(!is_made(&place, &disk, &data), "byte {at}");
    }
    for length in [0, 8, 71, 72, 4095, 4096, 4127, 5000, whole.len() - 1] {
        std::fs::write(&place.0, &whole[..length]).unwrap();
        assert!(is_made(&place, &disk, &data), "cut off at {length}");
        assert!(place.bytes() == whole, "cut off at {length}");
    }
    std::fs::write(&place.0, [&whole[..], &[0]].concat()).unwrap();
    assert!(is_made(&place, &disk, &data), "longer");
    assert!(place.bytes() == whole, "longer");
}

/// A process that is killed while it writes leaves this, or less.
#[test]
fn an_unfinished_index_is_made_anew() {
    let Some((place, disk, data)) = small() else { return };
    let whole = place.bytes();
    let unfinished = example::unfinished(&whole);
    for length in [72, 4096, 4096 + 32, whole.len() - 1, whole.len()] {
        std::fs::write(&place.0, &unfinished[..length]).unwrap();
        assert!(is_made(&place, &disk, &data), "{length} bytes");
        assert!(place.bytes() == whole, "{length} bytes");
    }
}

#[test]
fn a_file_that_is_no_index_is_not_overwritten() {
    let place = Place::new();
    for content in [&b"the image itself, perhaps"[..], b"NBD", b"NBDgzidy and more"] {
        std::fs::write(&place.0, content).unwrap();
        let error = place.refused();
        assert!(error.contains("not an index"), "{error}");
        assert!(place.bytes() == content);
    }
    let _ = std::fs::remove_file(&place.0);
    let pipe = nix::unistd::mkfifo(&place.0, nix::sys::stat::Mode::S_IRWXU);
    pipe.unwrap();
    assert!(!place.refused().contains('\n'));
    let directory = Place(Path::new("/tmp").to_owned());
    assert!(directory.refused().contains("not an index"), "{}", directory.refused());
    std::mem::forget(directory);
    let missing = Place("/nonexistent/index".into());
    assert_eq!(missing.refused(), "open: /nonexistent/index: No such file or directory");
    // One that has become something else since the start.
    let Some((place, disk, data)) = small() else { return };
    std::fs::write(&place.0, b"").unwrap();
    let layer = place.server(&disk);
    std::fs::write(&place.0, b"something else").unwrap();
    assert!(testing::read(&testing::open(&layer), data.len(), 0) == data);
    assert!(place.bytes() == b"something else");
}

#[test]
fn the_index_of_another_image_is_made_anew() {
    let Some((place, disk, data)) = small() else { return };
    let whole = place.bytes();
    let other_data = sample(500_000);
    let other = disk_of(gzip(&other_data).unwrap());
    assert!(is_made(&place, &other, &other_data));
    assert!(place.bytes() != whole);
    assert!(is_made(&place, &disk, &data));
    assert!(place.bytes() == whole);
    // Of the same size, with another end.
    let at = disk.data.lock().unwrap().len() - 1;
    disk.data.lock().unwrap()[at] ^= 1;
    let error = testing::try_open(&place.server(&disk), "", false).unwrap_err();
    assert!(error.message().contains("sum or size"), "{error}");
}

#[test]
fn an_image_that_has_changed_in_the_middle_is_noticed_when_it_is_read() {
    let data = long(4 << 20);
    let Some(image) = gzip(&data) else { return };
    let (place, disk) = (Place::new(), disk_of(image));
    assert!(is_made(&place, &disk, &data));
    let at = disk.data.lock().unwrap().len() / 2;
    disk.data.lock().unwrap()[at] ^= 0x10;
    let next = testing::open(&place.server(&disk));
    assert_eq!(next.pread(&mut vec![0; 4 << 20], 0).unwrap_err().errno(), Errno::EIO);
}

#[test]
fn one_server_serves_one_image_under_any_name() {
    let Some((place, disk, data)) = small() else { return };
    let layer = place.server(&disk);
    for number in 0..20 {
        let next = testing::try_open(&layer, &number.to_string(), false).unwrap();
        assert!(testing::read(&next, 5000, 200_000) == data[200_000..205_000]);
    }
    let before = place.bytes();
    *disk.data.lock().unwrap() = gzip(&sample(1000)).unwrap();
    let error = testing::try_open(&layer, "other", false).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(place.bytes() == before);
    // Of the same size.
    let mut image = gzip(&data).unwrap();
    image[4] ^= 1;
    *disk.data.lock().unwrap() = image;
    let error = testing::try_open(&layer, "other", false).unwrap_err();
    let expected = "indexed-gzip: the image is not the one that clients have the index of: one \
                    server serves one image";
    assert_eq!(error.message(), expected);
    *disk.data.lock().unwrap() = gzip(&data).unwrap();
    assert!(testing::read(&testing::open(&layer), 300_000, 0) == data);
}

#[test]
fn a_second_server_reads_an_index_and_does_not_write_it() {
    let Some((place, disk, data)) = small() else { return };
    let whole = place.bytes();
    let first = place.server(&disk);
    assert!(!is_made(&place, &disk, &data));
    let damaged = [&whole[..whole.len() - 1], &[!whole[whole.len() - 1]]].concat();
    std::fs::write(&place.0, &damaged).unwrap();
    assert!(is_made(&place, &disk, &data));
    assert!(place.bytes() == damaged);
    drop(first);
    assert!(is_made(&place, &disk, &data));
    assert!(place.bytes() == whole);
}

#[test]
fn the_disk_is_read_only_and_its_data_are_in_no_file() {
    let Some((place, disk, _)) = small() else { return };
    let next: Next = testing::open(&place.server(&disk));
    assert!(!next.can_write().unwrap() && !next.can_extents().unwrap());
    assert!(next.can_multi_conn().unwrap());
    assert_eq!(next.can_cache().unwrap(), Cache::Emulate);
    assert!(next.file_range(0, 1).is_none());
    let description = "expansion of indexed-gzip-compressed image: about \"one\"";
    assert_eq!(next.export_description().as_deref(), Some(description));
}

#[test]
fn bad_parameters() {
    let place = Place::new();
    let error = testing::config_error("indexed-gzip", &[]);
    assert_eq!(error, "indexed-gzip filter requires gzip-index-path parameter");
    for (span, expected) in [
        ("0", "gzip-index-span must be between 64K and 8M"),
        ("65535", "gzip-index-span must be between 64K and 8M"),
        ("8388609", "gzip-index-span must be between 64K and 8M"),
        ("-1", "-1"),
        ("much", "much"),
    ] {
        let parameters = [("gzip-index-path", place.path()), ("gzip-index-span", span)];
        let error = testing::config_error("indexed-gzip", &parameters);
        assert!(error.contains(expected), "{error}");
    }
    assert!(!testing::config_error("indexed-gzip", &[("gzip-index-path", "")]).is_empty());
    assert!(!place.0.exists());
}

/// What is no gzip file leaves no index.
#[test]
fn what_fails_is_tried_again() {
    let data = long(3 << 20);
    let Some(image) = gzip(&data) else { return };
    let (place, disk) = (Place::new(), disk_of(image[..image.len() - 1].to_vec()));
    let layer = place.server(&disk);
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert_eq!(error.message(), "indexed-gzip: the file is cut off");
    assert!(place.bytes().is_empty());
    *disk.data.lock().unwrap() = image;
    assert!(testing::read(&testing::open(&layer), data.len(), 0) == data);
    drop(layer);
    assert!(!is_made(&place, &disk, &data));
}

/// An index whose sums are right and which is wrong: an error, other data, or made anew.
#[test]
fn hostile_indexes() {
    let Some((place, disk, data)) = small() else { return };
    let image = disk.data.lock().unwrap().clone();
    let case = example::case(&place.bytes());
    assert!(example::sealed(&image, &case) == place.bytes());
    let mut used = 0;
    for at in (0..example::BYTES + 32).chain([example::BYTES + 32 + 32, case.len() - 7]) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut case = case.clone();
            if std::mem::replace(&mut case[at], value) == value {
                continue;
            }
            let sealed = example::sealed(&image, &case);
            std::fs::write(&place.0, &sealed).unwrap();
            let next = testing::open(&place.server(&disk));
            used += u32::from(place.bytes() == sealed);
            let size = next.size().unwrap();
            assert!(size <= 300_000 + (16 << 20), "{size}");
            let mut found = vec![0; size as usize];
            if next.pread(&mut found, 0).is_ok() {
                assert!(found == data, "byte {at} as {value}");
            }
        }
    }
    assert!(used > 10, "{used}");
}

#[test]
fn an_image_of_gzip_itself() {
    let data = long(2 << 20);
    for level in ["-1", "-9"] {
        let Some(image) = made_by("gzip", &["--stdout", level], &data) else { return };
        parts(&Place::new(), image, &data);
    }
}
