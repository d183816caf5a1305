use crate::testing::{self, damage, decoded, disk_of, made_by, sample};

fn zstd(arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    made_by("zstd", &[&["--stdout", "--quiet"], arguments].concat(), data)
}

/// A table of frames, compressed and decompressed bytes of each.
fn table(frames: &[(usize, usize)], with_sums: bool) -> Vec<u8> {
    let mut entries = Vec::new();
    for (compressed, data) in frames {
        entries.extend((*compressed as u32).to_le_bytes());
        entries.extend((*data as u32).to_le_bytes());
        entries.extend(&[0xee; 4][..if with_sums { 4 } else { 0 }]);
    }
    let mut table = 0x184d_2a5e_u32.to_le_bytes().to_vec();
    table.extend((entries.len() as u32 + 9).to_le_bytes());
    table.extend(entries);
    table.extend((frames.len() as u32).to_le_bytes());
    table.push(if with_sums { 0x80 } else { 0 });
    table.extend(0x8f92_eab1_u32.to_le_bytes());
    table
}

/// Compressed and decompressed bytes of each frame.
type Sizes = Vec<(usize, usize)>;

/// A file of a frame for each part of `data`, without the table, and the table's entries.
fn frames(data: &[u8], part: usize) -> Option<(Vec<u8>, Sizes)> {
    let (mut file, mut entries) = (Vec::new(), Vec::new());
    for part in data.chunks(part) {
        let frame = zstd(&["--check"], part)?;
        entries.push((frame.len(), part.len()));
        file.extend(frame);
    }
    Some((file, entries))
}

#[test]
fn all_frames_of_a_file_are_one_disk() {
    let data = sample(400_000);
    for arguments in [&["-1"][..], &["-19"], &["--no-check"], &["--long=27"]] {
        let Some(image) = zstd(arguments, &data) else { return };
        assert!(decoded("zstd", image, &[]).unwrap() == data, "{arguments:?}");
    }
    let Some((image, _)) = frames(&data, 70_000) else { return };
    assert!(decoded("zstd", image, &[]).unwrap() == data);
    let error = decoded("zstd", Vec::new(), &[]).unwrap_err();
    assert_eq!(error.message(), "zstd: not a zstd file");
    assert!(decoded("zstd", data, &[]).unwrap_err().message().starts_with("zstd: "));
}

#[test]
fn a_file_with_a_seek_table_is_read_frame_by_frame() {
    let data = sample(400_000);
    for with_sums in [false, true] {
        let Some((mut image, entries)) = frames(&data, 70_000) else { return };
        image.extend(table(&entries, with_sums));
        let disk = disk_of(image);
        let next = testing::backend(&disk, &["zstd"], &[("zstd-max-depth", "1")]);
        assert!(testing::read(&next, data.len(), 0) == data);
        testing::read(&next, 1, 399_999);
        disk.take_calls();
        assert!(testing::read(&next, 50, 100_000) == data[100_000..100_050]);
        let (first, second) = (entries[0].0, entries[1].0);
        assert_eq!(disk.take_calls(), [format!("pread {second}@{first}")]);
        assert!(next.file_range(10, 0).is_none());
    }
}

#[test]
fn a_seek_table_that_lies_is_an_error() {
    let data = sample(2000);
    let Some((image, entries)) = frames(&data, 1000) else { return };
    let lie = |table: Vec<u8>| {
        let error = decoded("zstd", [&image[..], &table].concat(), &[]).unwrap_err();
        error.message().to_owned()
    };
    let changed = |at: usize, entry: (usize, usize)| {
        let mut entries = entries.clone();
        entries[at] = entry;
        table(&entries, false)
    };
    let damaged = "zstd: the seek table is damaged";
    assert_eq!(lie(changed(0, (entries[0].0 + 1, 1000))), damaged);
    assert_eq!(
        lie(changed(0, (u32::MAX as usize, 1000))),
        "zstd: a block lies outside of the file"
    );
    let size = "zstd: a frame has another size than in the seek table";
    assert_eq!(lie(changed(0, (entries[0].0, 999))), size);
    assert_eq!(lie(changed(1, (entries[1].0, 1001))), size);
    assert!(lie(changed(1, (entries[1].0, u32::MAX as usize))).contains("zstd-max-block"));
    assert_eq!(lie(table(&entries[..1], false)), damaged);
    let good = table(&entries, false);
    // The magic and the size of the frame that the table is, the number of frames, the descriptor.
    for (from_end, byte, why) in [
        (33, 0, damaged),
        (29, 0xff, damaged),
        (9, 3, damaged),
        (6, 0xff, damaged),
        (5, 4, "zstd: the seek table is of an unknown kind"),
    ] {
        let mut bad = good.clone();
        let at = bad.len() - from_end;
        bad[at] = byte;
        assert_eq!(lie(bad), why);
    }
}

#[test]
fn damage_is_noticed() {
    let data = sample(1500);
    let Some(image) = zstd(&["--check"], &data) else { return };
    // Bits of headers that are not used, or by which no byte of the data changes: see the sum.
    let unharmed = damage("zstd", &image, &data);
    assert!(unharmed <= 4, "{unharmed}");
    let Some((mut image, entries)) = frames(&data, 1500) else { return };
    image.extend(table(&entries, false));
    // Without the magic of the seek table, the file is expanded.
    let unharmed = damage("zstd", &image, &data);
    assert!(unharmed <= 40, "{unharmed}");
}
