//! The data format by examples: what nbdkit 1.32.5 serves for each text, and what is ours alone.

use nbdkit_api::{Connection, Extents, Flags, Open, Plugin, Result, Value};

use super::Data;

/// Parameter `data=` and what nbdkit 1.32.5 makes of it, in hexadecimal; `$foo` is `0x55 0xaa`.
#[rustfmt::skip]
const SMALL: &[(&str, &str)] = &[
    ("0 1 2 3", "00010203"),
    ("0 1 2 3 @0x1fe 0x55 0xaa", "00010203000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000055aa"),
    ("0 1 2 3 @^0x200 @-2 le16:0xaa55", "00010203000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000055aa"),
    (" be32:0x1 ", "00000001"),
    ("08", "0008"),
    ("0x", "00"),
    ("00 010 0377 0xFF 255", "0008ffffff"),
    ("@0x10 1", "0000000000000000000000000000000001"),
    ("@4", "00000000"),
    ("@+2 1 @-1 2", "000002"),
    ("1 @-1 2", "02"),
    ("@^8 1 @^8", "0100000000000000"),
    ("1 @^8", "0100000000000000"),
    ("1 @^ 8", "0100000000000000"),
    ("1*4", "01010101"),
    ("(1 2)*3", "010201020102"),
    ("(1 2) * 0", ""),
    ("1*0x10", "01010101010101010101010101010101"),
    ("1*010", "0101010101010101"),
    ("1 *2", "0101"),
    ("1* 2", "0101"),
    ("( ( 1 ) * 3 ) * 2", "010101010101"),
    ("1*2*3", "010101010101"),
    ("1 2*0 3", "0103"),
    ("()*5", ""),
    ("((((1))))", "01"),
    (r#""hello"[1:3]"#, "656c"),
    (r#""hello"[:3]"#, "68656c"),
    (r#""hello"[2:]"#, "6c6c6f"),
    (r#""hello"[:]"#, "68656c6c6f"),
    (r#""hello"[1:1]"#, ""),
    (r#""hello" [0:5]*2"#, "68656c6c6f68656c6c6f"),
    (r#""abcdefghijkl"[010:]"#, "696a6b6c"),
    ("(1 2 3)[1:] 4", "020304"),
    ("(1*5)[1:3]", "0101"),
    ("(1 2)[:1]*3", "010101"),
    (r#""\a\b\f\n\r\t\v\"\\\'\?""#, "07080c0a0d090b225c273f"),
    (r#""\x00\xff\x414\q\e""#, "00ff41347165"),
    ("\"a b\tc\"", "6120620963"),
    (r#""é""#, "c3a9"),
    (r#""a""b""#, "6162"),
    (r#"1"b"2"#, "016202"),
    ("le16:0x1234 be16:0x1234", "34121234"),
    ("le16:1 2", "010002"),
    ("be32:010", "00000008"),
    ("be64:0xffffffffffffffff", "ffffffffffffffff"),
    ("le64:0x123456789abcdef0", "f0debc9a78563412"),
    (r#"1 -> \x \x"#, "01"),
    (r#"1 2 -> \x \x"#, "0102"),
    (r#"(1 2) -> \x \x \x"#, "01020102"),
    (r#"1->\x\x"#, "01"),
    (r#"1 -> \a-b_9 \a-b_9"#, "01"),
    (r#"1 -> \1 \1"#, "01"),
    (r#"1 -> \a \a -> \b 2 -> \a \b"#, "01"),
    (r#"1 -> \a (\a 2 -> \a \a) \a"#, "010201"),
    (r#"1 -> \a \a[0:1]*2"#, "0101"),
    (r#"(1 2)->\q \q*2 -> \z \z"#, "01020102"),
    (r#"\x -> \y 1"#, "01"),
    (r#"<nofile -> \x 1"#, "01"),
    ("<nofile*0", ""),
    (r#"(\x)*0"#, ""),
    ("1 2 3 @0 (@2)", "000003"),
    ("1 2 3 @0 (@^4)", "010203"),
    ("1 2 3 4 5 6 @1 (7 8)*2", "010708070806"),
    ("(1 2 3 4)*4 @3 9*7", "01020309090909090909030401020304"),
    ("(1 2 3 4)*4 @3 (5 6 7)*3", "01020305060705060705060701020304"),
    ("@2 (@^4 1 @^4) 7", "00000100000007"),
    ("1 (@5 @2 1) 2", "01000001000002"),
    ("(@5 @2 1)", "0000010000"),
    ("(@4 1) (@4 2)", "00000000010000000002"),
    ("(@4)*2 1", "000000000000000001"),
    ("@1 (1)*2 @0 5", "050101"),
    ("@10 @0", "00000000000000000000"),
    ("1 @0", "01"),
    ("</dev/zero[2:4]", "0000"),
    ("(</dev/zero)[:10]", "00000000000000000000"),
    ("</dev/null", ""),
    ("<(printf abc)", "616263"),
    (r#"<(printf "%s" "(a)")*2"#, "286129286129"),
    ("<(yes)[:5]", "790a790a79"),
    ("(<(yes))[:5]", "790a790a79"),
    ("<(exit 3)[:0]", ""),
    ("<(printf abc; exit 3)[:3]", "616263"),
    ("<(printf abc)[:4]", "616263"),
    ("<(true)", ""),
    ("1#c", "01"),
    ("$foo", "55aa"),
    ("$foo*2", "55aa55aa"),
    ("$foo[1:2]", "aa"),
    ("$foo$foo", "55aa55aa"),
    ("1$foo", "0155aa"),
    ("$DATA_TEST_ENV 1", "1020102001"),
    ("(1 2 $foo 3)[1:4]", "0255aa"),
    ("(((1 @8 2)*3)[3:20]*2)[1:]", "000000000201000000000000000201000000000000020100000000000000020100"),
    ("((1 2 3 4 5 6 7 8 9 (1 @12) 5)[2:])*2", "03040506070809010000000000000000000000050304050607080901000000000000000000000005"),
    ("1(2)", "0102"),
    ("(1)2", "0102"),
    ("1@5 2", "010000000002"),
    ("1 # hi\n2", "0102"),
    ("\"a\nb\"", "610a62"),
    ("1\t2\r\n3", "010203"),
    ("1 -> \\a\n\\a", "01"),
    ("", ""),
];

/// Longer ones: `data=`, `size=` (if not empty), the length and the FNV-1a hash of what nbdkit
/// 1.32.5 serves.
#[rustfmt::skip]
const LARGE: &[(&str, &str, usize, u64)] = &[
    (" ( 0x55 0xAA )*2048 ", "", 4096, 0x5d7a959530ef3325),
    (r#" ( "Hello" )*2000 "#, "8192", 8192, 0x2951f3e22e5479ea),
    ("\n  @0x1be    # MBR first partition entry\n    0           # Partition status\n    0 2 0       # CHS start\n    0x83        # Partition type (Linux)\n    0x20 0x20 0 # CHS last sector\n    le32:1      # LBA first sector\n    le32:0x7ff  # LBA number of sectors\n  @0x1fe    # Boot signature\n    0x55 0xaa\n", "1M", 1048576, 0x2ed852d664228440),
    (" <( i=0\n                             while :; do\n                                 printf \"%04d\" $i; i=$((i+1))\n                             done )[:32768] ", "", 32768, 0xfcc1d6daeb947941),
    ("( 0x55 0xAA ) * 256", "", 512, 0x537aa8fe7e03c525),
    ("( 0x55 0xAA ) -> \\boot-signature\n                          ( @0x1fe \\boot-signature ) -> \\sector\n                          \\sector \\sector", "", 1024, 0xb191abf1cb868739),
    ("((1 2 3)*1000 @5000 7)*11", "60000", 60000, 0x4fbe6d02161144fc),
    ("(1 @9 2 @20000 3 4 5*70000)[5:80000]*3 @40000 (9 8 7 6 5 4 3 2 1 0 1 2 3)*777", "", 239985, 0x632659425154aaee),
    ("1", "100000", 100000, 0xfcc05725b3a45d24),
    (r#"("abc"*7 @30 "xyz"*9)*1000 @4095 (1 2 3)*9999"#, "", 57000, 0x4137e0e07bef5fb6),
    ("(((1 2 3)*3 @11 4)*5 6)*1234", "", 75274, 0x39c44a3c018cb065),
];

/// Texts that nbdkit 1.32.5 refuses too, with our message: nbdkit's but for some of the offsets and
/// the last.
#[rustfmt::skip]
const REFUSED: &[(&str, &str)] = &[
    ("256", "data parameter BYTE must be in the range 0..255"),
    ("0400", "data parameter BYTE must be in the range 0..255"),
    ("08 0x1g", "data parameter: parsing error at offset 6"),
    (r#""abc"#, "data parameter: unterminated string"),
    (r#""\x4""#, "data: \\xNN must be followed by exactly two hexadecimal characters"),
    (r#""\x4"#, "data parameter: unterminated string"),
    ("le16:65536", "data: could not parse number: \"65536\": Numerical result out of range"),
    ("le16:-1", "data: negative numbers are not allowed"),
    ("le8:1", "data parameter: expected \"le16/32/64:\" or \"be16/32/64:\" at offset 0"),
    ("le16:0x1g", "data: could not parse number: \"0x1g\": trailing garbage"),
    ("-1", "data parameter: parsing error at offset 1"),
    ("+1", "data parameter: parsing error at offset 0"),
    ("x", "data parameter: parsing error at offset 0"),
    ("1,2", "data parameter: parsing error at offset 1"),
    ("@", "data parameter: parsing error at offset 1"),
    ("@+", "data parameter: parsing error at offset 2"),
    ("@ 5", "data parameter: parsing error at offset 1"),
    ("@--4", "data parameter after @- must not be negative"),
    ("@^-8", "data parameter after @^ must not be negative"),
    ("@^3 1", "data parameter @^3 must be a power of 2"),
    ("@^0", "data parameter @^0 must be a power of 2"),
    ("@-1 2", "data parameter @-1 must not be larger than the current offset 0"),
    ("1 @-1 @-1", "data parameter @-1 must not be larger than the current offset 0"),
    ("1*", "*N not numeric"),
    ("1[0:1", "data parameter: parsing error at offset 5"),
    ("1[a:b]", "enclosed pattern (...)[N:M] not numeric"),
    ("1[]", "enclosed pattern (...)[N:M] not numeric"),
    ("1[0]", "data parameter: parsing error at offset 3"),
    (r#""hello"[:9]"#, "[N:M] does not describe a valid slice"),
    (r#""hello"[3:2]"#, "[N:M] does not describe a valid slice"),
    (r#""hello"[9:]"#, "[N:M] does not describe a valid slice"),
    (r#"-> \x"#, "-> must follow an expression"),
    ("*3", "*N must follow an expression"),
    ("[1:2]", "[N:M] must follow an expression"),
    ("@4*2", "*N cannot be applied to this type of expression"),
    ("1 @+4[0:1]", "[N:M] cannot be applied to this type of expression"),
    (r#"@4 -> \a 1"#, "-> cannot be applied to this type of expression"),
    ("1 -> x", "data parameter: parsing error at offset 5"),
    ("1 ->", "data parameter: parsing error at offset 4"),
    ("(1 2", "unmatched '(' in data string"),
    ("1 2)", "unmatched ')' in data string"),
    (r#"\x"#, "\\x not defined"),
    (r#"(1 -> \a \a) \a"#, "\\a not defined"),
    (r#"\"#, "data parameter: parsing error at offset 1"),
    ("$", "data parameter: parsing error at offset 1"),
    ("${foo}", "data parameter: parsing error at offset 1"),
    ("$nonexistent", "$nonexistent: variable not found"),
    ("<", "data parameter <FILE not a filename"),
    ("< f1", "data parameter <FILE not a filename"),
    ("<(printf abc", "data parameter: parsing error at offset 2"),
    ("<(exit 1)", "data: <(SCRIPT): external command failed: exit status: 1"),
];

fn open(parameters: &[(&str, &str)]) -> Result<Box<dyn Connection>> {
    let mut plugin = Data::default();
    for (key, value) in parameters {
        plugin.config(key, Value::new(*value))?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    plugin.open(&Open { client: None, readonly: false, export: "", tls: false })
}

fn bytes(parameters: &[(&str, &str)]) -> Result<Vec<u8>> {
    let disk = open(parameters)?;
    let mut bytes = vec![0; disk.size()? as usize];
    if !bytes.is_empty() {
        disk.pread(&mut bytes, 0)?;
    }
    Ok(bytes)
}

fn refusal(text: &str) -> String {
    match open(&[("data", text)]) {
        Err(error) => error.message().to_owned(),
        Ok(disk) => panic!("{text} was accepted, {} bytes", disk.size().unwrap()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[test]
fn small_disks_are_those_of_nbdkit() {
    for (text, expected) in SMALL {
        // The test must not change the environment of the others, so it is a parameter here.
        let parameters =
            [("data", *text), ("foo", "0x55 0xaa"), ("DATA_TEST_ENV", "(0x10 0x20)*2")];
        match bytes(&parameters) {
            Ok(bytes) => assert_eq!(hex(&bytes), *expected, "{text}"),
            Err(error) => panic!("{text}: {error}"),
        }
    }
}

#[test]
fn large_disks_are_those_of_nbdkit() {
    for (text, size, length, hash) in LARGE {
        let mut parameters = vec![("data", *text)];
        if !size.is_empty() {
            parameters.push(("size", *size));
        }
        let bytes = bytes(&parameters).unwrap();
        assert_eq!((bytes.len(), fnv1a(&bytes)), (*length, *hash), "{text}");
    }
}

#[test]
fn mistakes_are_explained() {
    for (text, message) in REFUSED {
        assert_eq!(refusal(text), *message, "{text}");
    }
}

#[test]
fn variables_come_from_the_environment() {
    // PATH is not in the data format, and the message shows that it was found.
    assert!(refusal("$PATH").starts_with("$PATH: data parameter: parsing error at offset"));
}

#[test]
fn what_nbdkit_1_32_did_not_know_yet_works() {
    for (text, expected) in [
        (r#""\0\101\1018\u00e9\U0001F600""#, "00414138c3a9f09f9880"),
        ("base64:MTIz*2 base64:/+8=[1:]", "313233313233ef"),
        ("le16:1*2 le16:2->\\x", "01000100"),
        ("(@1K @-1022 1 @-3b 2 @+1s @^1K)[:4]", "02000100"),
        ("@4be16:1", "000000000001"),
    ] {
        match bytes(&[("data", text)]) {
            Ok(bytes) => assert_eq!(hex(&bytes), expected, "{text}"),
            Err(error) => panic!("{text}: {error}"),
        }
    }
    assert_eq!(open(&[("data", "@4M 1")]).unwrap().size().unwrap(), (4 << 20) + 1);
}

#[test]
fn enormous_disks_are_sparse() {
    for (text, size) in [
        ("@0x7fffffffffffffff", i64::MAX as u64),
        ("((0)*1000000)*1000000", 1_000_000_000_000),
        ("((1*1000000)*1000000)[5:8]", 3),
        ("((1 @100000)*1000000*1000000)[:100000]", 100_000),
        ("(1 2 3)*0x1000000000 @0 0*0x3000000000", 0x30_0000_0000),
    ] {
        assert_eq!(open(&[("data", text)]).unwrap().size().unwrap(), size, "{text}");
    }
    let disk = open(&[("data", "(1*1000000*1000000*1000000)"), ("size", "1M")]).unwrap();
    let mut extents = Extents::new(0, 1 << 20);
    disk.extents(1 << 20, 0, Flags::empty(), &mut extents).unwrap();
    assert_eq!(extents.len(), 1);
}

#[test]
fn what_no_machine_can_hold_is_refused() {
    for (text, message) in [
        ("( ( ( 1 ) * 1000000 ) * 1000000 )*1000", "more than this machine's memory"),
        ("((1 @100000)*1000000)*1000000", "more than this machine's memory"),
        ("(1)*0x4000000000000000*2", "overflows"),
        ("1 @0x7fffffffffffffff 1", "larger than"),
        ("@0x8000000000000000", "larger than"),
        ("@99999999999999999999", "too large"),
        ("@+9223372036854775807 @+1", "larger than"),
        ("1 @^0x4000000000000000 1 @^0x4000000000000000", "larger than"),
        ("</dev/zero", "take a slice"),
    ] {
        let why = refusal(text);
        assert!(why.contains(message), "{text}: {why}");
    }
}

#[test]
fn recursion_ends() {
    let deep = |open: &str, close: &str, n: usize| open.repeat(n) + "1" + &close.repeat(n);
    assert_eq!(bytes(&[("data", &deep("(", ")", 190))]).unwrap(), [1]);
    for text in [
        deep("(", ")", 60_000),
        "(".repeat(100_000),
        deep("", "*1", 60_000),
        deep("(", "*1)", 20_000),
        deep("", "[0:]", 30_000),
    ] {
        assert!(refusal(&text).contains("nested"), "{}", &text[..10]);
    }
    let why = open(&[("data", "$a"), ("a", "1 ($a)")]).err().unwrap();
    assert!(why.message().contains("nested"), "{why}");
    let bomb = [("data", "$a$a$a$a"), ("a", "$b$b$b$b$b$b$b$b"), ("b", "$c$c$c$c$c$c$c$c")];
    let more = [
        ("c", "$d$d$d$d$d$d$d$d"),
        ("d", "$e$e$e$e$e$e$e$e$e"),
        ("e", "1 1*100 1*7 $f$f"),
        ("f", "$g$g$g$g$g$g$g"),
        ("g", "1 1*2"),
    ];
    let why = open(&[&bomb[..], &more[..]].concat()).err().unwrap();
    assert!(why.message().contains("to evaluate"), "{why}");
    let grow = "1 -> \\a ".to_owned() + &"(\\a 1) -> \\a ".repeat(300) + "\\a";
    assert_eq!(bytes(&[("data", &grow)]).unwrap(), [1; 301]);
    let grow = "1 -> \\a ".to_owned() + &"(\\a 1) -> \\a ".repeat(9_000) + "\\a";
    assert!(refusal(&grow).contains("nested"));
    let double = "1 -> \\a ".to_owned() + &"(\\a \\a) -> \\a ".repeat(20) + "\\a";
    assert_eq!(bytes(&[("data", &double)]).unwrap(), vec![1; 1 << 20]);
}

#[test]
fn raw_and_base64_and_size() {
    assert_eq!(bytes(&[("raw", "Hello, world!")]).unwrap(), b"Hello, world!");
    assert_eq!(bytes(&[("base64", "MTIz"), ("size", "5")]).unwrap(), b"123\0\0");
    assert_eq!(bytes(&[("data", "1 2 3"), ("size", "2")]).unwrap(), [1, 2]);
    assert_eq!(bytes(&[("raw", "")]).unwrap(), []);
    for (parameters, message) in [
        (&[("size", "5")][..], "raw|base64|data parameter was not specified"),
        (&[("data", "1"), ("raw", "")], "raw|base64|data parameter must be specified exactly once"),
        (&[("base64", "M=")], "base64: Base64 decoding error."),
        (&[("data", "1"), ("allocator", "foo")], "unknown allocator \"foo\""),
    ] {
        assert_eq!(open(parameters).err().unwrap().message(), message);
    }
}

#[test]
fn files_are_read_relative_to_the_working_directory() {
    let name = "Cargo.toml";
    let manifest = std::fs::read(name).unwrap();
    let text = format!("<{name}[10:] 0xff <{name} @^512 <{name}[:1000000]");
    let mut expected = [&manifest[10..], &[0xff], &manifest].concat();
    expected.resize(expected.len().next_multiple_of(512), 0);
    expected.extend_from_slice(&manifest);
    assert_eq!(bytes(&[("data", &text)]).unwrap(), expected);
    assert_eq!(refusal("<nofile"), "data: open: nofile: No such file or directory");
    let random = bytes(&[("data", "</dev/urandom[:512]*16")]).unwrap();
    assert_eq!(random[..512].repeat(16), random);
}

#[test]
fn what_is_written_is_seen_by_the_next_client() {
    let mut plugin = Data::default();
    plugin.config("data", Value::new("1 2 3")).unwrap();
    plugin.config_complete().unwrap();
    plugin.get_ready().unwrap();
    let open = Open { client: None, readonly: false, export: "", tls: false };
    plugin.open(&open).unwrap().pwrite(&[9], 1, Flags::FUA).unwrap();
    let mut bytes = [0; 3];
    plugin.open(&open).unwrap().pread(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [1, 9, 3]);
}
