use std::sync::Arc;

use nbdkit_api::{Errno, Flags, Next};

use super::example::PASSPHRASE;
use super::example2::{COPY, MATERIAL, OTHER, PAYLOAD, SECTOR, image, image_of, text};
use super::luks2::field;
use crate::testing::{self, Disk, decoded, disk_of, sample};

fn open(disk: &Arc<Disk>) -> Next {
    testing::backend(disk, &["luks"], &[("passphrase", PASSPHRASE)])
}

fn read(image: Vec<u8>, passphrase: &str) -> nbdkit_api::Result<Vec<u8>> {
    decoded("luks", image, &[("passphrase", passphrase)])
}

/// Why a disk with this text is refused to those who have no passphrase of it.
fn refusal(text: &str) -> String {
    let error = read(image_of([(text, 1), (text, 1)], &sample(SECTOR)), "wrong").unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    let message = error.message().to_owned();
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.len() < 500, "{message}");
    message
}

/// The text with one thing changed.
fn changed(from: &str, to: &str) -> String {
    let text = text();
    assert!(text.contains(from), "{from}");
    text.replace(from, to)
}

#[test]
fn either_passphrase_opens_a_luks2_disk() {
    let data = sample(5 * SECTOR);
    assert!(read(image(&data), PASSPHRASE).unwrap() == data);
    assert!(read(image(&data), OTHER).unwrap() == data);
    let error = read(image(&data), "wrong").unwrap_err();
    assert_eq!(error.message(), "LUKS passphrase is not correct, no key slot could be unlocked");
}

#[test]
fn what_is_written_to_large_sectors_is_read_again() {
    let mut data = sample(6 * SECTOR);
    let disk = disk_of(image(&data));
    let next = open(&disk);
    for (count, offset) in [(4096, 4096), (3, 1), (1, 4095), (9000, 100), (8192, 8192), (10, 8187)]
    {
        let part: Vec<u8> = (0..count).map(|at| (at * 7 + offset) as u8).collect();
        next.pwrite(&part, offset as u64, Flags::empty()).unwrap();
        data[offset..][..count].copy_from_slice(&part);
    }
    for (count, offset) in [(data.len(), 0), (1, 4095), (2, 4095), (5000, 3000), (512, 512)] {
        assert!(testing::read(&next, count, offset as u64) == data[offset..][..count]);
    }
    assert!(*disk.data.lock().unwrap() == image(&data), "nothing else has changed");
    disk.take_calls();
    next.pwrite(&[1; 10], 5000, Flags::FUA).unwrap();
    let at = PAYLOAD + 4096;
    assert_eq!(disk.take_calls(), [format!("pread 4096@{at}"), format!("pwrite 4096@{at} FUA")]);
    let size = next.block_size().unwrap();
    assert_eq!((size.minimum, size.preferred), (4096, 4096));
}

#[test]
fn the_newer_copy_of_the_header_counts_and_a_damaged_one_does_not() {
    let data = sample(SECTOR);
    let (good, other) = (text(), changed("\"iv_tweak\":\"3\"", "\"iv_tweak\":\"4\""));
    let is_good = |image: Vec<u8>| read(image, PASSPHRASE).map(|shown| shown == data);
    for (first, second, expected) in [
        ((&good, 7), (&other, 7), true),
        ((&good, 8), (&other, 7), true),
        ((&good, 7), (&other, 8), false),
        ((&other, 7), (&good, 8), true),
    ] {
        let copies = [(first.0.as_str(), first.1), (second.0.as_str(), second.1)];
        assert_eq!(is_good(image_of(copies, &data)).unwrap(), expected);
        // Text, number, checksum, size, place, magic, version.
        for damage in [4096, 23, 448, 13, 260, 1, 7] {
            let mut bad = image_of(copies, &data);
            bad[damage] ^= 1;
            assert_eq!(is_good(bad.clone()).unwrap_or(false), second.0 == &good, "{damage}");
            bad[COPY + damage] ^= 1;
            let error = is_good(bad).unwrap_err();
            let why = ["both copies are damaged", "does not contain a LUKS header", "version 3"];
            assert!(why.iter().any(|why| error.message().contains(why)), "{damage}: {error}");
        }
        for damage in [4096, 23, 448, 13, 260, 1, 7] {
            let mut bad = image_of(copies, &data);
            bad[COPY + damage] ^= 1;
            assert_eq!(is_good(bad).unwrap(), first.0 == &good, "{damage}");
        }
    }
}

#[test]
fn checksums_of_other_kinds_are_checked() {
    use sha2::Digest;
    type Sum = fn(&[u8]) -> Vec<u8>;
    let kinds: [(&[u8], Sum); 2] = [
        (b"sha1\0\0", |bytes| sha1::Sha1::digest(bytes).to_vec()),
        (b"sha512", |bytes| sha2::Sha512::digest(bytes).to_vec()),
    ];
    for (name, sum) in kinds {
        let mut image = image(&sample(SECTOR));
        image[COPY..2 * COPY].fill(0);
        let copy = &mut image[..COPY];
        copy[field::ALGORITHM][..6].copy_from_slice(name);
        copy[field::CHECKSUM].fill(0);
        let sum = sum(copy);
        copy[field::CHECKSUM][..sum.len()].copy_from_slice(&sum);
        assert!(read(image.clone(), PASSPHRASE).unwrap() == sample(SECTOR));
        image[field::CHECKSUM][sum.len() - 1] ^= 1;
        let error = read(image, PASSPHRASE).unwrap_err();
        assert!(error.message().contains("its checksum differs"), "{error}");
    }
}

#[test]
fn what_the_filter_does_not_have_is_refused_with_one_line() {
    let long = "x".repeat(1000);
    let segments = r#""segments":{"1":{"type":"linear","offset":"0","size":"512"},"#;
    let objects = (0..40).map(|number| format!(r#""{number}":{{"type":"a","keyslots":[]}}"#));
    let objects = format!(r#""tokens":{{{}}}"#, objects.collect::<Vec<_>>().join(","));
    let nested = format!(r#""tokens":{}1{}"#, "[".repeat(5000), "]".repeat(5000));
    for (from, to, why) in [
        (
            r#""config":{"#,
            r#""config":{"requirements":{"mandatory":["online-reencrypt-v2"]},"#,
            "the requirement \"online-reencrypt-v2\" is not supported",
        ),
        (r#""segments":{"#, segments, "the disk has 2 segments, not one"),
        (r#""segments":["0"]"#, r#""segments":[]"#, "no key belongs to the segment"),
        (r#""type":"crypt","#, r#""type":"crypt","integrity":{},"#, "integrity protection"),
        (r#""type":"crypt""#, r#""type":"linear""#, "the segment \"linear\" is not supported"),
        (r#""type":"luks2""#, r#""type":"reencrypt""#, "the type \"reencrypt\" is not supported"),
        (r#""keyslots":["0","1"]"#, r#""keyslots":[]"#, "key slot 1 belongs to no segment"),
        (r#""type":"luks2""#, r#""priority":0,"type":"luks2""#, "key slot 0 is to be ignored"),
        (r#""type":"raw""#, r#""type":"datashift""#, "the area \"datashift\" is not supported"),
        ("aes-xts-plain64", "serpent-xts-plain64", "the cipher \"serpent\" is not supported"),
        ("aes-xts-plain64", "aes-xts-random", "the mode \"xts-random\" is not supported"),
        ("aes-xts-plain64", "aes", "the mode \"\" is not supported"),
        ("aes-xts-plain64", &long, "the cipher \"xxxx"),
        ("aes-xts-plain64", "\\n\\u001b[2J-x", "the cipher \"\\n\\u{1b}[2J\" is not"),
        (r#""sector_size":4096"#, r#""sector_size":8192"#, "sectors of 8192 bytes"),
        (r#""sector_size":4096"#, r#""sector_size":0"#, "sectors of 0 bytes"),
        (r#""sector_size":4096"#, r#""sector_size":1000"#, "sectors of 1000 bytes"),
        (r#""offset":"49152""#, r#""offset":"18446744073709551615""#, "payload offset points bey"),
        (r#""offset":"49152""#, r#""offset":"32767""#, "payload offset points into the header"),
        (r#""offset":"49152""#, r#""offset":"32768""#, "a key slot is in the segment"),
        (r#""size":"dynamic""#, r#""size":"8192""#, "the size of the segment is malformed"),
        (r#""size":"dynamic""#, r#""size":"100""#, "the size of the segment is malformed"),
        (r#""size":"dynamic""#, r#""size":"-4096""#, "the size of the segment is malformed"),
        (r#""offset":"32768""#, r#""offset":"32767""#, "key slot 0: it points beyond"),
        (r#""offset":"32768""#, r#""offset":"18446744073709551104""#, "key slot 0: it points bey"),
        (r#""size":"4096""#, r#""size":"1000""#, "key slot 0: it points beyond"),
        (r#""stripes":40"#, r#""stripes":0"#, "the number of stripes is wrong"),
        (r#""stripes":40"#, r#""stripes":4000000000"#, "the number of stripes is wrong"),
        (r#""key_size":32,"#, r#""key_size":24,"#, "aes-xts-plain64 has no keys of 24 bytes"),
        (r#""key_size":32}"#, r#""key_size":24}"#, "aes-xts-plain64 has no keys of 24 bytes"),
        (r#""key_size":32,"#, r#""key_size":4000000000,"#, "the size of the key is wrong"),
        (r#""iterations":3"#, r#""iterations":0"#, "0 iterations, where 1 to"),
        (r#""iterations":3"#, r#""iterations":100000001"#, "100000001 iterations, where"),
        (r#""iterations":5"#, r#""iterations":100000001"#, "not correct, no key slot"),
        (r#""salt":"AwMD"#, r#""salt":"****"#, "a salt is malformed"),
        (r#""digest":""#, r#""digest":"="#, "a digest is malformed"),
        (r#""hash":"sha512""#, r#""hash":"md5""#, "the hash \"md5\" is not supported"),
        (r#""0":{"type":"pbkdf2""#, r#""0":{"type":"crc""#, "the digest \"crc\" is not supported"),
        (r#""tokens":{}"#, &objects, "the metadata is malformed at line"),
        (r#""tokens":{}"#, &nested, "the metadata is malformed at line"),
        (r#""tokens":{}"#, r#""tokens":{"a\n":{}}"#, "the metadata is malformed at line"),
        (r#""1":{"#, r#""0":{"#, "the metadata is malformed at line"),
        (r#""tokens":{}"#, "", "the metadata is malformed at line"),
    ] {
        let message = refusal(&changed(from, to));
        assert!(message.contains(why), "{why}: {message}");
    }
    assert!(refusal("").contains("the metadata is malformed"));
}

/// Argon2's numbers are limits, too: both slots are refused, or the sum of them.
#[test]
fn argon2_has_bounds() {
    let both = changed(
        r#""type":"pbkdf2","hash":"sha1","iterations":5"#,
        r#""type":"argon2i","time":2,"memory":16,"cpus":2"#,
    );
    for (from, to, why) in [
        (r#""memory":16"#, r#""memory":4194305"#, "4194305 KiB of memory for Argon2, where 4 GiB"),
        (r#""memory":16"#, r#""memory":15"#, "15 KiB of memory for Argon2"),
        (r#""memory":16"#, r#""memory":4294967295"#, "4294967295 KiB of memory"),
        (r#""time":2"#, r#""time":0"#, "Argon2 has no pass"),
        (r#""time":2"#, r#""time":4294967295"#, "passes of Argon2 over 16 KiB would take hours"),
        (r#""time":2,"memory":16"#, r#""time":64,"memory":4194304"#, "Argon2 would take hours"),
        (r#""cpus":2"#, r#""cpus":0"#, "Argon2 has 1 to 16 lanes"),
        (r#""cpus":2"#, r#""cpus":17"#, "Argon2 has 1 to 16 lanes"),
        (r#""type":"argon2i""#, r#""type":"scrypt""#, "the key derivation function \"scrypt\""),
    ] {
        assert!(both.contains(from), "{from}");
        // One slot that is refused says why when the other one is not opened.
        let message = refusal(&both.replace(from, to));
        assert!(message.contains(why), "{why}: {message}");
    }
}

/// A slot that cannot be used does not keep others from being tried, and is named if none opens.
#[test]
fn slots_of_other_kinds_are_passed_over() {
    let data = sample(SECTOR);
    let text = changed(r#""type":"argon2id""#, r#""type":"scrypt""#);
    let image = image_of([(&text, 1), (&text, 1)], &data);
    assert!(read(image.clone(), PASSPHRASE).unwrap() == data);
    let error = read(image, OTHER).unwrap_err();
    let why = "(key slot 0: the key derivation function \"scrypt\" is not supported)";
    assert!(error.message().contains(why), "{error}");
    let text = changed(
        r#""tokens":{}"#,
        r#""tokens":{"0":{"type":"systemd-tpm2","keyslots":["0","1"],"x":[{}]}}"#,
    );
    let error = read(image_of([(&text, 1), (&text, 1)], &data), "wrong").unwrap_err();
    let why = "key slot 1 is that of a token, \"systemd-tpm2\"";
    assert!(error.message().contains(why), "{error}");
}

/// The slot with the highest priority is read first.
#[test]
fn priorities_are_an_order() {
    let disk = disk_of(image(&sample(SECTOR)));
    let of_slots = |disk: &Arc<Disk>| {
        disk.take_calls();
        drop(open(disk));
        let at = |call: &String| MATERIAL.iter().position(|at| call.ends_with(&format!("@{at}")));
        disk.take_calls().iter().filter_map(at).collect::<Vec<_>>()
    };
    assert_eq!(of_slots(&disk), [0, 1]);
    let area = format!(r#""offset":"{}""#, MATERIAL[1]);
    let text = changed(
        &format!(r#""area":{{"type":"raw",{area}"#),
        &format!(r#""priority":2,"area":{{"type":"raw",{area}"#),
    );
    *disk.data.lock().unwrap() = image_of([(&text, 1), (&text, 1)], &sample(SECTOR));
    assert_eq!(of_slots(&disk), [1]);
}

#[test]
fn a_segment_may_be_shorter_than_the_disk() {
    let data = sample(3 * SECTOR);
    let text = changed(r#""size":"dynamic""#, r#""size":"8192""#);
    assert!(read(image_of([(&text, 1), (&text, 1)], &data), PASSPHRASE).unwrap() == data[..8192]);
    let mut image = image(&data);
    image.truncate(PAYLOAD + 2 * SECTOR + 4095);
    assert!(read(image.clone(), PASSPHRASE).unwrap() == data[..8192], "whole sectors");
    image.truncate(PAYLOAD - 1);
    let error = read(image, PASSPHRASE).unwrap_err();
    assert!(error.message().contains("payload offset points beyond"), "{error}");
}

#[test]
fn only_a_disk_that_allows_it_is_trimmed_and_only_whole_sectors() {
    let data = sample(4 * SECTOR);
    let next = open(&disk_of(image(&data)));
    assert!(!next.can_trim().unwrap());
    let text =
        changed(r#""config":{"#, r#""config":{"flags":["same-cpu-crypt","allow-discards"],"#);
    let disk = disk_of(image_of([(&text, 1), (&text, 1)], &data));
    let next = open(&disk);
    assert!(next.can_trim().unwrap());
    assert_eq!(next.can_zero().unwrap(), nbdkit_api::Zero::Emulate);
    disk.take_calls();
    for (count, offset) in [(4096, 4096), (9000, 1), (4095, 4096), (8191, 1), (16384, 0)] {
        next.trim(count, offset, Flags::FUA).unwrap();
    }
    let at = |offset| PAYLOAD + offset;
    assert_eq!(
        disk.take_calls(),
        [
            format!("trim 4096@{} FUA", at(4096)),
            format!("trim 4096@{} FUA", at(4096)),
            format!("trim 4096@{} FUA", at(4096)),
            format!("trim 16384@{} FUA", at(0)),
        ]
    );
}

/// Whatever bit of a copy is wrong, the other one is used; whatever bit of a key is wrong, the disk
/// is as it was or is refused.
#[test]
fn damage_to_a_luks2_disk_is_noticed() {
    let data = sample(SECTOR);
    let good = image(&data);
    let step = 61;
    for at in (0..4096 + 2048).step_by(step).chain((MATERIAL[1]..MATERIAL[1] + 1280).step_by(step))
    {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        match read(bad, PASSPHRASE) {
            Ok(shown) => assert!(shown == data, "byte {at}: other data is shown"),
            Err(error) => assert!(at >= MATERIAL[1], "byte {at}: {error}"),
        }
    }
    for length in [0, 591, 592, 4095, 4096, COPY, 2 * COPY, MATERIAL[1] + 1] {
        let error = read(good[..length].to_vec(), PASSPHRASE).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{length}: {error}");
    }
}

/// As of LUKS1: workers have the key, and not the passphrase. Copies that say the same are one.
#[test]
fn the_key_of_a_luks2_disk_is_derived_before_the_first_client() {
    let data = sample(SECTOR);
    let disk = disk_of(image(&data));
    let params = &[("passphrase", PASSPHRASE)];
    let stack = testing::try_stack(&disk, &["luks"], params).unwrap();
    assert_eq!(stack.needs(false).memory_at_start, 4 << 30);
    let layer = stack.freeze();
    layer.after_fork().unwrap();
    disk.take_calls();
    assert!(testing::read(&testing::open(&layer), SECTOR, 0) == data);
    let read_by_client = disk.take_calls();
    assert!(!read_by_client.iter().any(|call| call.contains("@32768")), "{read_by_client:?}");
    let other = changed(r#""iv_tweak":"3""#, r#""iv_tweak":"4""#);
    *disk.data.lock().unwrap() = image_of([(&other, 1), (&other, 1)], &data);
    let error = testing::try_open(&layer, "", false).unwrap_err();
    assert!(error.message().contains("restart"), "{error}");
}

/// What is below and need not wait for is decrypted by the thread that asks.
#[test]
fn reads_that_need_not_wait_do_not() {
    let data = sample(40 * SECTOR);
    let next = open(&disk_of(image(&data)));
    for (count, offset) in [(4096, 0), (1, 5000), (5000, 3000), (65_536, 512)] {
        let mut buf = vec![0; count];
        next.try_pread(&mut buf, offset as u64).unwrap().unwrap();
        assert!(buf == data[offset..][..count]);
    }
    assert!(next.try_pread(&mut [0; 65_537], 0).is_none(), "other processors help");
}
