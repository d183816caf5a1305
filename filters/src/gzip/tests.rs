use nbdkit_api::{Cache, Errno};

use crate::testing::{self, damage, decoded, disk_of, made_by, sample};

fn gzip(data: &[u8]) -> Option<Vec<u8>> {
    made_by("gzip", &["--stdout"], data)
}

#[test]
fn all_members_of_a_file_are_one_disk() {
    let data = sample(300_000);
    let Some(image) = gzip(&data) else { return };
    assert!(decoded("gzip", image, &[]).unwrap() == data);
    let members: Vec<Vec<u8>> =
        [&data[..100_000], &[], &data[100_000..]].iter().map(|part| gzip(part).unwrap()).collect();
    let image = members.concat();
    assert!(decoded("gzip", image.clone(), &[]).unwrap() == data);
    // What follows the last member is ignored.
    for end in [&[0; 1000][..], &[0], b"garbage", &[0x1f], &[0x1f, 0]] {
        assert!(decoded("gzip", [&image[..], end].concat(), &[]).unwrap() == data, "{end:?}");
    }
    assert!(decoded("gzip", gzip(&[]).unwrap(), &[]).unwrap().is_empty());
}

#[test]
fn a_disk_that_is_mostly_zeroes() {
    let mut data = sample(100_000);
    data.resize(8 << 20, 0);
    data.extend(sample(1000));
    data.resize(16 << 20, 0);
    let Some(image) = gzip(&data) else { return };
    assert!(decoded("gzip", image, &[]).unwrap() == data);
}

#[test]
fn the_disk_is_read_only_and_expanded_once_for_all_clients() {
    let Some(image) = gzip(&sample(100_000)) else { return };
    let disk = disk_of(image);
    let layer = testing::layer(&disk, &["gzip"], &[]);
    let next = testing::open(&layer);
    assert!(!next.can_write().unwrap() && !next.can_extents().unwrap());
    assert!(next.can_multi_conn().unwrap());
    assert_eq!(next.can_cache().unwrap(), Cache::Emulate);
    let description = "expansion of gzip-compressed image: about \"one\"";
    assert_eq!(next.export_description().as_deref(), Some(description));
    disk.take_calls();
    let second = testing::open(&layer);
    assert!(testing::read(&second, 5000, 90_000) == sample(100_000)[90_000..95_000]);
    assert_eq!(disk.take_calls(), ["open \"one\" readonly=true"]);
    assert_eq!(second.file_range(10, 20).unwrap().offset, 20);
    // Another export has another image.
    *disk.data.lock().unwrap() = gzip(&sample(500)).unwrap();
    assert_eq!(testing::try_open(&layer, "two", false).unwrap().size().unwrap(), 500);
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert_eq!(
        error.message(),
        "plugin size changed unexpectedly: you must restart nbdkit so the gzip filter can \
         uncompress the data again"
    );
    // There are no more than eight.
    let open = |number: u32| testing::try_open(&layer, &number.to_string(), false);
    (0..6).for_each(|number| assert_eq!(open(number).unwrap().size().unwrap(), 500));
    assert_eq!(open(6).unwrap_err().errno(), Errno::EMFILE);
}

#[test]
fn an_image_that_failed_is_tried_again() {
    let data = sample(200_000);
    let Some(image) = gzip(&data) else { return };
    let disk = disk_of(image[..image.len() / 2].to_vec());
    let layer = testing::layer(&disk, &["gzip"], &[]);
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert_eq!(error.message(), "gzip: the file is cut off");
    *disk.data.lock().unwrap() = image;
    assert!(testing::read(&testing::open(&layer), data.len(), 0) == data);
}

#[test]
fn damage_is_noticed() {
    let data = sample(1500);
    let Some(image) = gzip(&data) else { return };
    // Time stamp, extra flags and system in the header: RFC 1952, 2.3.1. And the flag of text.
    let unharmed = damage("gzip", &image, &data);
    assert!(unharmed <= 7, "{unharmed}");
}
