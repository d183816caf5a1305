use std::sync::Arc;

use nbdkit_api::{Cache, Errno, Flags, Zero};

use super::cipher::SECTOR;
use super::example::{MATERIAL, PASSPHRASE, PAYLOAD, STRIPES, image};
use super::*;
use crate::testing::{self, Disk, decoded, disk_of, sample};

fn open(disk: &Arc<Disk>) -> Next {
    testing::backend(disk, &["luks"], &[("passphrase", PASSPHRASE)])
}

fn refusal(image: Vec<u8>) -> String {
    decoded("luks", image, &[("passphrase", PASSPHRASE)]).unwrap_err().message().to_owned()
}

#[test]
fn what_was_encrypted_is_decrypted_in_any_parts() {
    let data = sample(20_480);
    let next = open(&disk_of(image(&data)));
    assert_eq!(next.size().unwrap(), data.len() as u64);
    for (count, offset) in [(512, 0), (1, 0), (1, 511), (2, 511), (5000, 700), (512, 19_968)] {
        assert!(testing::read(&next, count, offset as u64) == data[offset..][..count]);
    }
    assert!(testing::read(&next, data.len(), 0) == data);
}

#[test]
fn what_is_written_is_encrypted_and_read_again() {
    let mut data = sample(10_240);
    let disk = disk_of(image(&data));
    let next = open(&disk);
    for (count, offset) in [(512, 512), (3, 1), (1, 511), (1000, 100), (3000, 2048), (10, 5115)] {
        let part: Vec<u8> = (0..count).map(|at| (at * 7 + offset) as u8).collect();
        next.pwrite(&part, offset as u64, Flags::empty()).unwrap();
        data[offset..][..count].copy_from_slice(&part);
    }
    assert!(testing::read(&next, data.len(), 0) == data);
    let stored = disk.data.lock().unwrap().clone();
    assert!(stored == image(&data), "it is stored encrypted, and nothing else has changed");
    disk.take_calls();
    next.pwrite(&[1; 1024], 1024, Flags::FUA).unwrap();
    assert_eq!(disk.take_calls(), [format!("pwrite 1024@{} FUA", PAYLOAD * 512 + 1024)]);
}

/// Each writes its own bytes of the same sectors, so all of them are read and written as a whole.
#[test]
fn writers_of_parts_of_a_sector_do_not_undo_each_others() {
    let disk = disk_of(image(&[0; 2048]));
    let layer = testing::layer(&disk, &["luks"], &[("passphrase", PASSPHRASE)]);
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let next = testing::open(&layer);
            scope.spawn(move || {
                for round in 1..=250 {
                    for sector in 0..4 {
                        let at = sector * 512 + writer * 128;
                        next.pwrite(&[round; 128], at, Flags::empty()).unwrap();
                    }
                }
            });
        }
    });
    assert!(testing::read(&testing::open(&layer), 2048, 0) == [250; 2048]);
}

#[test]
fn what_the_disk_can_do() {
    let next = open(&disk_of(image(&sample(1000))));
    assert!(next.can_write().unwrap() && next.can_flush().unwrap());
    assert!(!next.can_trim().unwrap() && !next.can_extents().unwrap());
    assert_eq!(next.can_zero().unwrap(), Zero::Emulate);
    assert!(!next.can_fast_zero().unwrap());
    assert_eq!(next.can_cache().unwrap(), Cache::Emulate);
    let size = next.block_size().unwrap();
    assert_eq!((size.minimum, size.preferred, size.maximum), (512, 512, u32::MAX));
}

#[test]
fn a_wrong_passphrase_and_disks_that_are_none_are_refused() {
    let image = image(&sample(1000));
    let wrong = decoded("luks", image.clone(), &[("passphrase", "wrong")]).unwrap_err();
    assert_eq!(wrong.message(), "LUKS passphrase is not correct, no key slot could be unlocked");
    assert_eq!(refusal(vec![1; 591]), "disk is too small to be LUKS-encrypted");
    assert_eq!(refusal(vec![0; 4096]), "this disk does not contain a LUKS header");
    let why = "bad LUKSv1 header: payload offset points beyond the end of the disk";
    assert_eq!(refusal(image[..PAYLOAD * 512 - 1].to_vec()), why);
    assert!(refusal(image[..MATERIAL * 512].to_vec()).contains("beyond the end of the disk"));
    let error = testing::config_error("luks", &[]);
    assert_eq!(error, "LUKS \"passphrase\" parameter is missing");
}

#[test]
fn headers_that_are_absurd_are_refused_at_once() {
    let good = image(&sample(1000));
    let slot = 208 + 48;
    for (at, bytes, why) in [
        (6, &[0, 3][..], "LUKS version 3"),
        (6, &[0, 2], "bad LUKSv2 header: both copies are damaged"),
        (8, b"twofish\0", "the cipher \"twofish\" is not supported"),
        (8, &[0xff; 32], "is not supported"),
        (40, b"ctr-plain64\0", "the mode \"ctr-plain64\" is not supported"),
        (40, b"cbc-essiv:sha1\0", "is not supported"),
        (72, b"md5\0", "the hash \"md5\" is not supported"),
        (104, &[0, 0, 0, 0], "payload offset points into the header"),
        (104, &[0xff; 4], "payload offset points beyond"),
        (108, &[0, 0, 0, 0], "no keys of 0 bytes"),
        (108, &[0xff; 4], "beyond the end of the disk"),
        (108, &[0, 0, 0, 24], "no keys of 24 bytes"),
        (164, &[0xff; 4], "4294967295 iterations"),
        (164, &[0; 4], "0 iterations"),
        (slot + 4, &[0xff; 4], "4294967295 iterations"),
        (slot + 4, &[0; 4], "0 iterations"),
        (slot + 40, &[0xff; 4], "key slot 1 points beyond"),
        (slot + 40, &[0; 4], "key slot 1 points beyond"),
        (slot + 44, &[0xff; 4], "key slot 1 has 4294967295 stripes"),
        (slot + 44, &[0; 4], "key slot 1 has 0 stripes"),
        (slot, &[0; 4], "no key slot could be unlocked"),
        (MATERIAL * 512, &[0; 16], "no key slot could be unlocked"),
    ] {
        let mut bad = good.clone();
        bad[at..][..bytes.len()].copy_from_slice(bytes);
        let message = refusal(bad);
        assert!(message.contains(why), "{why}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

/// Whatever single bit of header and key is wrong, the disk is as it was or is refused: the digest
/// of the key sees to that.
#[test]
fn damage_to_the_header_is_noticed() {
    let data = sample(512);
    let good = image(&data);
    let mut unharmed = 0;
    for at in 0..PAYLOAD * 512 {
        // Numbers of iterations that are allowed take time.
        if matches!(at, 164..168 | 260..264) {
            continue;
        }
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        match decoded("luks", bad, &[("passphrase", PASSPHRASE)]) {
            Ok(shown) => {
                assert!(shown == data || at / 4 == 104 / 4, "byte {at}: other data is shown");
                unharmed += 1;
            }
            Err(error) => assert_eq!(error.errno(), Errno::EINVAL, "{error}"),
        }
    }
    // Slots that are not in use, the uuid, what is between header, key and disk.
    assert!(unharmed > 1000 && unharmed < PAYLOAD * 512 - STRIPES * 32, "{unharmed}");
    assert_eq!(SECTOR, 512);
}

#[test]
fn the_key_is_derived_before_the_first_client_and_the_passphrase_wiped() {
    let data = sample(5000);
    let disk = disk_of(image(&data));
    let params = &[("passphrase", PASSPHRASE)];
    let stack = testing::try_stack(&disk, &["luks"], params).unwrap();
    // Asked before the layers are frozen, as a server does.
    let _ = stack.needs(false);
    let layer = stack.freeze();
    layer.after_fork().unwrap();
    disk.take_calls();
    assert!(testing::read(&testing::open(&layer), 5000, 0) == data);
    let calls = disk.take_calls();
    assert_eq!(calls[1..3], ["pread 592@0".to_owned(), format!("pread 4608@{}", PAYLOAD * 512)]);
    // Another disk has another key, for which the passphrase would be needed.
    disk.data.lock().unwrap()[140] ^= 1;
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert!(error.message().contains("restart"), "{error}");
}

/// The exitlast filter would stop the server.
#[test]
fn filters_below_that_notice_clients_are_not_opened_early() {
    let disk = disk_of(image(&sample(512)));
    for (filters, is_early) in [
        (&["luks", "exitlast"][..], false),
        (&["luks", "offset", "log"], false),
        (&["luks", "offset"], true),
    ] {
        let stack = testing::try_stack(&disk, filters, &[("passphrase", PASSPHRASE)]).unwrap();
        let _ = stack.needs(false);
        disk.take_calls();
        stack.freeze().after_fork().unwrap();
        assert_eq!(!disk.take_calls().is_empty(), is_early, "{filters:?}");
    }
}

#[test]
fn a_server_starts_without_its_disk_and_clients_learn_why() {
    let data = sample(512);
    let disk = disk_of(vec![0; 100]);
    let params = &[("passphrase", PASSPHRASE)];
    let stack = testing::try_stack(&disk, &["luks"], params).unwrap();
    let _ = stack.needs(false);
    let layer = stack.freeze();
    layer.after_fork().unwrap();
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert_eq!(error.message(), "disk is too small to be LUKS-encrypted");
    *disk.data.lock().unwrap() = image(&data);
    assert!(testing::read(&testing::open(&layer), 512, 0) == data);
}
