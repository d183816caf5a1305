//! What scripts print: sizes, words, lists. Runs in the workers; every failure is an error.

use nbdkit_api::{
    BlockSize, Cache, Error, Exports, ExtentKind, Extents, Fua, Result, ThreadModel, parse, quoted,
};

use super::call::chomp;

/// UTF-8 or an error that shows the beginning.
pub(crate) fn utf8(output: &[u8]) -> Result<&str> {
    str::from_utf8(output).map_err(|_| {
        let shown = &output[..output.len().min(64)];
        Error::msg(format!("not UTF-8: {}", quoted(shown)))
    })
}

/// The size that `get_size` printed.
pub(crate) fn size(output: &[u8]) -> Result<u64> {
    parse::size(utf8(chomp(output))?)
}

/// What `block_size` printed: three sizes.
pub(crate) fn block_size(output: &[u8]) -> Result<BlockSize> {
    let mut sizes = utf8(output)?.split_ascii_whitespace().map(|word| {
        u32::try_from(parse::size(word)?)
            .map_err(|_| Error::msg(format!("size does not fit 32 bits: {word}")))
    });
    let mut next = || sizes.next().unwrap_or_else(|| Err(Error::msg("three sizes are expected")));
    Ok(BlockSize { minimum: next()?, preferred: next()?, maximum: next()? })
}

/// What `can_fua` printed.
pub(crate) fn fua(output: &[u8]) -> Option<Fua> {
    word(output, &[("none", Fua::None), ("emulate", Fua::Emulate), ("native", Fua::Native)])
}

/// What `can_cache` printed.
pub(crate) fn cache(output: &[u8]) -> Option<Cache> {
    word(output, &[("none", Cache::None), ("emulate", Cache::Emulate), ("native", Cache::Native)])
}

/// What `thread_model` printed.
pub(crate) fn thread_model(output: &[u8]) -> Option<ThreadModel> {
    (0..=3)
        .filter_map(ThreadModel::from_number)
        .find(|model| chomp(output).eq_ignore_ascii_case(model.as_str().as_bytes()))
}

fn word<T: Copy>(output: &[u8], words: &[(&str, T)]) -> Option<T> {
    let output = chomp(output);
    words.iter().find(|(word, _)| output.eq_ignore_ascii_case(word.as_bytes())).map(|(_, t)| *t)
}

/// How a list of exports is to be read.
enum Mode {
    Names,
    Interleaved,
    NamesThenDescriptions,
}

/// The exports that `list_exports` or `default_export` printed.
/// nbdkit-sh-plugin(3), "list_exports".
pub(crate) fn exports(output: &[u8], exports: &mut Exports) -> Result<()> {
    let text = utf8(output)?;
    // The mode is a line of its own: a bare `NAMES` without newline is a name.
    let (mode, text) = [
        ("NAMES\n", Mode::Names),
        ("INTERLEAVED\n", Mode::Interleaved),
        ("NAMES+DESCRIPTIONS\n", Mode::NamesThenDescriptions),
    ]
    .into_iter()
    .find_map(|(line, mode)| Some((mode, text.strip_prefix(line)?)))
    .unwrap_or((Mode::Names, text));
    let mut lines = text.split('\n').peekable();
    // What follows the last newline is a line only if there is something.
    let mut line = move || {
        let line = lines.next()?;
        (lines.peek().is_some() || !line.is_empty()).then_some(line)
    };
    let mut lines = std::iter::from_fn(&mut line);
    match mode {
        Mode::Names => {
            for name in lines {
                exports.add(name, None)?;
            }
        }
        Mode::Interleaved => {
            while let Some(name) = lines.next() {
                exports.add(name, lines.next().map(str::to_owned))?;
            }
        }
        Mode::NamesThenDescriptions => {
            let lines: Vec<&str> = lines.collect();
            let (names, descriptions) = lines.split_at(lines.len().div_ceil(2));
            let mut descriptions = descriptions.iter();
            for name in names {
                exports.add(*name, descriptions.next().map(|&text| text.to_owned()))?;
            }
        }
    }
    Ok(())
}

/// The extents that `extents` printed, one `OFFSET LENGTH [TYPE]` a line; blank lines and comments
/// are skipped.
pub(crate) fn extents(output: &[u8], extents: &mut Extents) -> Result<()> {
    for line in utf8(output)?.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(offset) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        let bad = |why: &str| Error::msg(format!("extents: cannot parse {line:?}: {why}"));
        let length = words.next().ok_or_else(|| bad("the length is missing"))?;
        let offset = parse::size(offset).map_err(|why| bad(why.message()))?;
        let length = parse::size(length).map_err(|why| bad(why.message()))?;
        extents.add(offset, length, extent_kind(words.next().unwrap_or("0")))?;
    }
    Ok(())
}

/// A number or a list of words. As in nbdkit an unknown word is not an error: it counts as "data",
/// which is always safe.
fn extent_kind(text: &str) -> ExtentKind {
    if let Ok(bits) = text.parse::<u32>() {
        return ExtentKind::from_bits_truncate(bits);
    }
    let kinds = text.split(',').map(|word| match word {
        "hole" => ExtentKind::HOLE,
        "zero" => ExtentKind::ZERO,
        _ => ExtentKind::DATA,
    });
    kinds.fold(ExtentKind::DATA, ExtentKind::union)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_in_every_mode() {
        type Named = (&'static str, Option<&'static str>);
        let cases: &[(&str, &[Named])] = &[
            ("a\nb\n", &[("a", None), ("b", None)]),
            ("NAMES\na\n", &[("a", None)]),
            ("NAMES", &[("NAMES", None)]),
            ("names\n", &[("names", None)]),
            ("INTERLEAVED\na\nda\nb\ndb\n", &[("a", Some("da")), ("b", Some("db"))]),
            ("INTERLEAVED\na\nda\nb\n", &[("a", Some("da")), ("b", None)]),
            ("NAMES+DESCRIPTIONS\na\nb\nda\ndb\n", &[("a", Some("da")), ("b", Some("db"))]),
            ("NAMES+DESCRIPTIONS\na\nb\nda\n", &[("a", Some("da")), ("b", None)]),
            ("\n", &[("", None)]),
            ("", &[]),
            ("NAMES\n", &[]),
            ("a\n\nb", &[("a", None), ("", None), ("b", None)]),
        ];
        for (output, expected) in cases {
            let mut list = Exports::new();
            exports(output.as_bytes(), &mut list).unwrap();
            let got: Vec<_> =
                list.iter().map(|e| (e.name.as_str(), e.description.as_deref())).collect();
            assert_eq!(got, *expected, "{output:?}");
        }
        assert!(exports(b"a\xff\n", &mut Exports::new()).is_err());
    }

    #[test]
    fn extents_are_read_with_comments_and_in_every_spelling() {
        for (output, expected) in [
            ("0 512\n", &[(0, 512, 0)][..]),
            (
                "\n# all\n  0   256   hole  \r\n256 256 zero,hole extra",
                &[(0, 256, 1), (256, 256, 3)],
            ),
            ("0 256 3\n256 1M 4\n", &[(0, 256, 3), (256, 256, 0)]),
            ("0 0.25k hole\n", &[]),
            ("0 512 hole,hole,foo", &[(0, 512, 1)]),
        ] {
            let mut list = Extents::new(0, 512);
            match extents(output.as_bytes(), &mut list) {
                Ok(()) => {
                    let got: Vec<_> =
                        list.iter().map(|e| (e.offset, e.length, e.kind.bits())).collect();
                    assert_eq!(got, expected, "{output:?}");
                }
                Err(why) => assert!(expected.is_empty(), "{output:?}: {why}"),
            }
        }
        for bad in ["0", "0 x", "x 0", "-1 5", "256 256\n", "0 1\n2 1\n"] {
            assert!(extents(bad.as_bytes(), &mut Extents::new(0, 512)).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_words_are_read() {
        assert_eq!(size(b"1M\n").unwrap(), 1 << 20);
        assert_eq!(size(b"\n 1M").unwrap(), 1 << 20);
        for bad in ["", "foo\n", "1M 2M", "-1", "9E", "1M\n2M\n"] {
            assert!(size(bad.as_bytes()).is_err(), "{bad}");
        }
        let sizes = block_size(b"1\n1k\n4294967295\n").unwrap();
        assert_eq!(sizes, BlockSize { minimum: 1, preferred: 1024, maximum: u32::MAX });
        for bad in ["", "1 512", "1 4096 -1", "1 4096 4G", "x y z"] {
            assert!(block_size(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(fua(b"Native\n"), Some(Fua::Native));
        assert_eq!(cache(b"emulate"), Some(Cache::Emulate));
        assert_eq!(cache(b"native "), None);
        assert_eq!(fua(b""), None);
        assert_eq!(thread_model(b"parallel\n"), Some(ThreadModel::Parallel));
        assert_eq!(thread_model(b"foo\n"), None);
    }
}
