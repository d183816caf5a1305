use crate::testing::{self, damage, decoded, disk_of, made_by, sample};

fn lzip(arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    made_by("lzip", &[&["--stdout"], arguments].concat(), data)
}

#[test]
fn any_part_of_all_members_is_read() {
    let data = sample(600_000);
    for arguments in [&["-0"][..], &["-9"], &["-1", "--member-size=100000"]] {
        let Some(image) = lzip(arguments, &data) else { return };
        let next = testing::backend(&disk_of(image), &["lzip"], &[("lzip-max-depth", "1")]);
        assert!(testing::read(&next, data.len(), 0) == data, "{arguments:?}");
        for (count, offset) in [(1, 0), (200_000, 90_000), (1, 599_999), (3, 99_998)] {
            assert!(testing::read(&next, count, offset as u64) == data[offset..][..count]);
        }
    }
    let members: Vec<Vec<u8>> =
        [&data[..1000], &[], &data[1000..]].iter().map(|part| lzip(&[], part).unwrap()).collect();
    assert!(decoded("lzip", members.concat(), &[]).unwrap() == data);
}

#[test]
fn damage_is_noticed() {
    let data = sample(2500);
    let Some(image) = lzip(&[], &data) else { return };
    // The size of the dictionary, if the data do not reach so far back.
    let unharmed = damage("lzip", &image, &data);
    assert!(unharmed <= 2, "{unharmed}");
}

#[test]
fn trailers_that_lie_are_errors() {
    let Some(image) = lzip(&[], &[0; 1 << 20]) else { return };
    let sizes = image.len() - 16;
    let lie = |at: usize, number: u64| {
        let mut image = image.clone();
        image[at..at + 8].copy_from_slice(&number.to_le_bytes());
        decoded("lzip", image, &[]).unwrap_err().message().to_owned()
    };
    // No more than that is decompressed.
    assert!(lie(sizes, 1000).starts_with("lzip: "));
    assert!(lie(sizes, 2 << 20).starts_with("lzip: "));
    assert!(lie(sizes, 1 << 62).contains("the largest block has 4611686018427387904 bytes"));
    assert_eq!(lie(sizes, u64::MAX), "lzip: the decompressed size is too large");
    for length in [0, 25, image.len() as u64 + 1, u64::MAX] {
        assert_eq!(lie(sizes + 8, length), "lzip: not an lzip file");
    }
    let error = decoded("lzip", Vec::new(), &[]).unwrap_err();
    assert_eq!(error.message(), "lzip: not an lzip file");
    let error = decoded("lzip", image, &[("lzip-max-block", "1000000")]).unwrap_err();
    assert!(error.message().contains("lzip-max-block=1000000"), "{error}");
}
