use nbd_protocol::handshake::{encode_option_error, encode_option_reply};

use super::*;

/// A server that has written all its bytes beforehand.
struct Script<'a> {
    bytes: &'a [u8],
    sent: Vec<u8>,
    is_tls: bool,
}

impl Stream for Script<'_> {
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(buf.len())
            .ok_or_else(|| Error::new(Errno::ESHUTDOWN, "the end"))?;
        buf.copy_from_slice(taken);
        self.bytes = rest;
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.sent.extend_from_slice(bytes);
        Ok(())
    }

    fn start_tls(&mut self) -> Result<()> {
        self.is_tls = true;
        Ok(())
    }
}

fn run<T>(
    bytes: &[u8],
    tls: TlsMode,
    then: impl FnOnce(Greeted<'_, Script<'_>>) -> Result<T>,
) -> Result<(T, bool)> {
    let mut script = Script { bytes, sent: Vec::new(), is_tls: false };
    let done = then(greet(&mut script, tls)?)?;
    Ok((done, script.is_tls))
}

fn go(bytes: &[u8], tls: TlsMode) -> Result<Facts> {
    let go = |greeted: Greeted<'_, Script<'_>>| match greeted {
        Greeted::Newstyle(haggling) => haggling.go("disk"),
        Greeted::Oldstyle(facts) => Ok(facts),
    };
    run(bytes, tls, go).map(|(facts, _)| facts)
}

fn newstyle(fixed: bool) -> Vec<u8> {
    let mut flags = HandshakeFlags::NO_ZEROES;
    flags.set(HandshakeFlags::FIXED_NEWSTYLE, fixed);
    Greeting::encode_newstyle(flags).to_vec()
}

fn ack(bytes: &mut Vec<u8>, option: Opt) {
    encode_option_reply(bytes, option, Rep::ACK, b"");
}

fn unsupported(bytes: &mut Vec<u8>, option: Opt) {
    encode_option_error(bytes, option, Rep::ERR_UNSUP, "");
}

fn info(bytes: &mut Vec<u8>, option: Opt, info: Info<'_>) {
    let mut payload = Vec::new();
    info.encode(&mut payload);
    encode_option_reply(bytes, option, Rep::INFO, &payload);
}

const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS.union(TransmissionFlags::SEND_TRIM);
const EXPORT: Info<'_> = Info::Export { size: 4096, flags: FLAGS };

/// What a server says that has everything, up to the reply to NBD_OPT_GO.
fn capable() -> Vec<u8> {
    let mut bytes = newstyle(true);
    ack(&mut bytes, Opt::EXTENDED_HEADERS);
    let mut context = Vec::new();
    MetaContextReply { id: 7, name: BASE_ALLOCATION }.encode(&mut context);
    encode_option_reply(&mut bytes, Opt::SET_META_CONTEXT, Rep::META_CONTEXT, &context);
    ack(&mut bytes, Opt::SET_META_CONTEXT);
    bytes
}

#[test]
fn everything_that_a_server_has_is_asked_for() {
    let mut bytes = capable();
    let sizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 25 };
    for it in [EXPORT, Info::Name("disk"), Info::Description("a disk"), Info::BlockSize(sizes)] {
        info(&mut bytes, Opt::GO, it);
    }
    info(&mut bytes, Opt::GO, Info::Unknown { info: InfoType(77), payload: b"?" });
    ack(&mut bytes, Opt::GO);
    let facts = Facts {
        size: 4096,
        flags: FLAGS,
        form: Form::Extended,
        context: Some(7),
        block_sizes: Some(sizes),
        description: Some("a disk".to_owned()),
    };
    assert_eq!(go(&bytes, TlsMode::Off).unwrap(), facts);
}

#[test]
fn a_server_that_has_little_is_taken_as_it_is() {
    let mut bytes = newstyle(true);
    unsupported(&mut bytes, Opt::STARTTLS);
    unsupported(&mut bytes, Opt::EXTENDED_HEADERS);
    ack(&mut bytes, Opt::STRUCTURED_REPLY);
    unsupported(&mut bytes, Opt::SET_META_CONTEXT);
    unsupported(&mut bytes, Opt::GO);
    ExportNameReply { size: 4096, flags: FLAGS }.encode(&mut bytes, true);
    let facts = go(&bytes, TlsMode::On).unwrap();
    assert_eq!((facts.size, facts.form, facts.context), (4096, Form::Structured, None));

    let mut bytes = newstyle(false);
    ExportNameReply { size: 4096, flags: FLAGS }.encode(&mut bytes, true);
    assert_eq!(go(&bytes, TlsMode::On).unwrap().form, Form::Simple);

    let bytes = Greeting::encode_oldstyle(4096, FLAGS);
    let facts = go(&bytes, TlsMode::On).unwrap();
    assert_eq!((facts.size, facts.flags, facts.form), (4096, FLAGS, Form::Simple));
    // Flags of a server that says nothing about flags.
    let bytes = Greeting::encode_oldstyle(4096, TransmissionFlags::READ_ONLY);
    assert_eq!(go(&bytes, TlsMode::Off).unwrap().flags, TransmissionFlags::empty());
}

#[test]
fn tls_is_begun_where_the_server_has_it() {
    let mut bytes = newstyle(true);
    ack(&mut bytes, Opt::STARTTLS);
    for tls in [TlsMode::On, TlsMode::Require] {
        assert!(run(&bytes, tls, |_| Ok(())).unwrap().1);
    }
    assert!(!run(&bytes, TlsMode::Off, |_| Ok(())).unwrap().1);
}

#[test]
fn a_server_without_tls_is_refused_where_it_is_required() {
    let mut refuses = newstyle(true);
    unsupported(&mut refuses, Opt::STARTTLS);
    for bytes in [refuses, newstyle(false), Greeting::encode_oldstyle(1, FLAGS).to_vec()] {
        let why = go(&bytes, TlsMode::Require).unwrap_err();
        assert!(why.message().starts_with("handshake: server refused TLS"), "{}", why.message());
    }
}

#[test]
fn refusals_have_an_errno_and_the_words_of_the_server() {
    for (rep, errno, message) in [
        (Rep::ERR_UNKNOWN, Errno::ENOENT, "handshake: NBD_OPT_GO: no such export: no\\nway"),
        (
            Rep::ERR_POLICY,
            Errno::EACCES,
            "handshake: NBD_OPT_GO: server policy prevents it: no\\nway",
        ),
        (
            Rep::ERR_SHUTDOWN,
            Errno::ESHUTDOWN,
            "handshake: NBD_OPT_GO: server is shutting down: no\\nway",
        ),
        (
            Rep(0x8123_4567),
            Errno::EIO,
            "handshake: NBD_OPT_GO: server replied with an error (0x81234567): no\\nway",
        ),
    ] {
        let mut bytes = capable();
        encode_option_error(&mut bytes, Opt::GO, rep, "no\nway");
        let why = go(&bytes, TlsMode::Off).unwrap_err();
        assert_eq!((why.errno(), why.message()), (errno, message));
    }
    let mut bytes = newstyle(true);
    encode_option_error(&mut bytes, Opt::EXTENDED_HEADERS, Rep::ERR_TLS_REQD, "");
    let why = go(&bytes, TlsMode::Off).unwrap_err();
    assert_eq!(why.errno(), Errno::EACCES);
}

#[test]
fn exports_are_listed_with_their_descriptions() {
    let list = |bytes: &[u8]| {
        run(bytes, TlsMode::Off, |greeted| match greeted {
            Greeted::Newstyle(haggling) => haggling.list(),
            Greeted::Oldstyle(_) => unreachable!(),
        })
        .map(|(list, _)| list)
    };
    let entry = |bytes: &mut Vec<u8>, name: &str| {
        let mut payload = Vec::new();
        ServerReply { name, description: "text" }.encode(&mut payload);
        encode_option_reply(bytes, Opt::LIST, Rep::SERVER, &payload);
    };
    let mut bytes = newstyle(true);
    entry(&mut bytes, "a");
    entry(&mut bytes, "");
    ack(&mut bytes, Opt::LIST);
    let names = list(&bytes).unwrap();
    assert_eq!(names.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a", ""]);
    assert_eq!(names[0].description, "text");

    let mut endless = newstyle(true);
    (0..=MAX_EXPORTS).for_each(|_| entry(&mut endless, "x"));
    let why = list(&endless).unwrap_err();
    assert!(why.message().contains("NBD_OPT_LIST: more than"), "{}", why.message());

    let long = "n".repeat(4096);
    let mut huge = newstyle(true);
    (0..MAX_EXPORTS).for_each(|_| entry(&mut huge, &long));
    let why = list(&huge).unwrap_err();
    assert!(why.message().contains("NBD_OPT_LIST: too many bytes"), "{}", why.message());
}

/// A case: what it is, and what the server says in place of its reply to NBD_OPT_GO.
type Lie = (&'static str, fn(&mut Vec<u8>));

#[test]
fn what_a_correct_server_never_replies_ends_the_handshake() {
    const LIES: &[Lie] = &[
        ("bad magic", |bytes| bytes.extend([0; 20])),
        ("another option", |bytes| ack(bytes, Opt::LIST)),
        ("an endless reply", |bytes| {
            let (option, reply) = (Opt::GO, Rep::INFO);
            bytes.extend(OptionReplyHeader { option, reply, length: u32::MAX }.encode());
        }),
        ("endless replies", |bytes| (0..1000).for_each(|_| info(bytes, Opt::GO, EXPORT))),
        ("success without an export", |bytes| ack(bytes, Opt::GO)),
        ("success with data", |bytes| encode_option_reply(bytes, Opt::GO, Rep::ACK, b"x")),
        ("another kind of reply", |bytes| encode_option_reply(bytes, Opt::GO, Rep::SERVER, b"")),
        ("half an export", |bytes| encode_option_reply(bytes, Opt::GO, Rep::INFO, b"\0\0\0")),
        ("no type", |bytes| encode_option_reply(bytes, Opt::GO, Rep::INFO, b"")),
        ("a huge disk", |bytes| {
            info(bytes, Opt::GO, Info::Export { size: 1 << 63, flags: FLAGS });
            ack(bytes, Opt::GO);
        }),
        ("a name that is no text", |bytes| {
            encode_option_reply(bytes, Opt::GO, Rep::INFO, b"\0\x01\xff");
        }),
    ];
    for (name, lie) in LIES {
        let mut bytes = capable();
        lie(&mut bytes);
        let why = go(&bytes, TlsMode::Off).unwrap_err();
        let message = why.message();
        assert!(message.starts_with("the NBD server violates the protocol"), "{name}: {message}");
    }
    let mut context = Vec::new();
    MetaContextReply { id: 7, name: "qemu:x" }.encode(&mut context);
    let mut bytes = newstyle(true);
    ack(&mut bytes, Opt::EXTENDED_HEADERS);
    encode_option_reply(&mut bytes, Opt::SET_META_CONTEXT, Rep::META_CONTEXT, &context);
    assert!(go(&bytes, TlsMode::Off).unwrap_err().message().contains("not asked for"));
    assert!(go(&[7; 200], TlsMode::Off).unwrap_err().message().contains("not an NBD server"));
}

/// Wherever the connection ends, that is an error and nothing else.
#[test]
fn a_handshake_that_is_cut_is_an_error() {
    let mut bytes = capable();
    info(&mut bytes, Opt::GO, EXPORT);
    ack(&mut bytes, Opt::GO);
    assert!(go(&bytes, TlsMode::Off).is_ok());
    for end in 0..bytes.len() {
        assert_eq!(go(&bytes[..end], TlsMode::Off).unwrap_err().errno(), Errno::ESHUTDOWN);
    }
}
