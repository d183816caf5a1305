use crate::testing::{damage, decoded, made_by, sample};

fn bzip2(arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    made_by("bzip2", &[&["--stdout"], arguments].concat(), data)
}

#[test]
fn all_streams_of_a_file_are_one_disk() {
    let data = sample(400_000);
    for arguments in [&["-1"], &["-9"]] {
        let Some(image) = bzip2(arguments, &data) else { return };
        assert!(decoded("bzip2", image, &[]).unwrap() == data, "{arguments:?}");
    }
    let streams: Vec<Vec<u8>> = [&data[..100_000], &[], &data[100_000..]]
        .iter()
        .map(|part| bzip2(&[], part).unwrap())
        .collect();
    let image = streams.concat();
    assert!(decoded("bzip2", image.clone(), &[]).unwrap() == data);
    for end in [&[0; 1000][..], b"B", b"garbage"] {
        assert!(decoded("bzip2", [&image[..], end].concat(), &[]).unwrap() == data, "{end:?}");
    }
}

#[test]
fn damage_is_noticed() {
    let data = sample(1500);
    let Some(image) = bzip2(&[], &data) else { return };
    // The size of a block, and the bits behind the last one.
    let unharmed = damage("bzip2", &image, &data);
    assert!(unharmed <= 3, "{unharmed}");
    let error = decoded("bzip2", data, &[]).unwrap_err();
    assert_eq!(error.message(), "bzip2: not a bzip2 file");
}
