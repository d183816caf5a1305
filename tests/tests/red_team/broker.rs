//! Attacks on the broker: what a worker says on its channel. There is no layer to leave out: the
//! checks are the code.

use nbdkit_tests::Server;
use nbdkit_tests::red_team::attack;

use crate::bystander::{Bystander, Work};
use crate::confinement::CALLS;
use crate::server;

/// With a disk that is `{dir}/disk`.
fn with_disk(options: &[&str]) -> Server {
    let builder = server(options).args(["redteam", "disk={dir}/disk"]);
    std::fs::write(builder.dir().join("disk"), [7; 4096]).expect("written");
    builder.start()
}

/// `Open`, in hexadecimal: path, a child's name, access.
fn open(path: u32, name: Option<&str>, access: u32) -> String {
    let hexadecimal =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let number = |number: u32| hexadecimal(&number.to_le_bytes());
    let name = name.map_or("00".to_owned(), |name| {
        format!(
            "0100000000{}{}",
            hexadecimal(&(name.len() as u64).to_le_bytes()),
            hexadecimal(name.as_bytes())
        )
    });
    format!("00000000{}{name}{}", number(path), number(access))
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const LIST: u32 = 2;

/// `Opened`, and with a descriptor.
fn opened(writable: bool) -> String {
    format!("00000000{:02x}00+1", u8::from(writable))
}

/// `Refused`, and without one.
fn refused(errno: i32) -> String {
    format!("01000000{errno:02x}000000+0")
}

#[test]
fn the_broker_opens_what_was_declared_and_nothing_else() {
    let eacces = refused(nix::libc::EACCES);
    let questions = [
        (open(0, None, READ), opened(false), opened(false)),
        (open(0, None, WRITE), opened(true), opened(false)),
        (open(1, None, READ), eacces.clone(), eacces.clone()),
        (open(0, Some("passwd"), READ), eacces.clone(), eacces.clone()),
        (open(0, Some("../../etc/passwd"), READ), eacces.clone(), eacces.clone()),
        (open(0, None, LIST), eacces.clone(), eacces),
    ];
    for read_only in [false, true] {
        let server = with_disk(if read_only { &["-r"] } else { &[] });
        let packets: Vec<_> = questions.iter().map(|(question, ..)| question.as_str()).collect();
        let expected: Vec<_> = questions
            .iter()
            .map(|(_, writable, not)| if read_only { not.as_str() } else { writable.as_str() })
            .collect();
        let outcome = attack(&server, &format!("say-to-broker={}", packets.join(",")));
        assert_eq!(outcome, Some(format!("ok {}", expected.join(","))));
    }
}

/// What comes from the broker is for reading if the stack is, and never to be truncated.
#[test]
fn what_the_broker_opens_is_not_writable_in_a_stack_that_only_reads() {
    use nix::libc::{EACCES, EBADF, EINVAL};
    let question = format!("use-answer={}", open(0, None, WRITE));
    for (options, written, truncated) in
        [(&[][..], 0, EACCES), (&["-r"], EBADF, EINVAL), (&["--filter=cow"], EBADF, EINVAL)]
    {
        let server = with_disk(options);
        let outcome = attack(&server, &question).expect("it lives");
        assert!(
            outcome == format!("ok {written} {truncated}")
                // Before Linux 6.2 Landlock does not know truncation.
                || (options.is_empty() && outcome == "ok 0 0"),
            "{options:?}: {outcome}"
        );
    }
}

#[test]
fn a_channel_that_breaks_the_rules_is_closed_and_nobody_is_the_worse_for_it() {
    let good = open(0, None, READ);
    for (what, text, line) in [
        ("noise", "say-to-broker=ffffffffffff".to_owned(), "not a message of this channel"),
        ("another channel's message", "say-to-broker=05000000".to_owned(), "not a message"),
        ("something behind it", format!("say-to-broker={good}00"), "not a message"),
        (
            "a name longer than the packet",
            "say-to-broker=000000000000000001000000001000000000000000".to_owned(),
            "not a message",
        ),
        (
            "descriptors",
            format!("say-to-broker-with-descriptors={good}"),
            "descriptors where none belong",
        ),
    ] {
        // A worker sends no descriptors; what the broker makes of them shows without the filter.
        let skip = if what == "descriptors" { CALLS } else { 0 };
        let server = with_disk(&["-D", &format!("nbdkit.skip={skip}")]);
        let bystander = Bystander::start(&server, what, Work::Writes(0));
        assert_eq!(attack(&server, &text).as_deref(), Some("ok closed"), "{what}");
        let line = server.wait_for_stderr(&format!(
            "sent an invalid message to the broker, its channel is closed: {line}"
        ));
        println!("{what}: {line}");
        bystander.finish();
        assert_eq!(
            attack(&server, &format!("say-to-broker={good}")),
            Some(format!("ok {}", opened(false)))
        );
    }
}

#[test]
fn a_worker_asks_for_eight_channels_to_the_broker_at_most() {
    let server = with_disk(&[]);
    let bystander = Bystander::start(&server, "nine channels", Work::Writes(0));
    let nine = ["0500000000000000"; 9].join(",");
    let outcome = attack(&server, &format!("say={nine}"));
    let line = server.wait_for_stderr("protocol violation by worker");
    assert!(line.contains("a channel to the broker more often"), "{line}");
    println!("{outcome:?}: {line}");
    bystander.finish();
}

#[test]
fn a_worker_that_asks_without_end_waits_and_others_do_not() {
    let server = with_disk(&[]);
    let bystander = Bystander::start(&server, "2000 questions", Work::Writes(0));
    let started = std::time::Instant::now();
    let flood = std::thread::scope(|scope| {
        let flood = scope.spawn(|| attack(&server, "flood-broker=1000"));
        let _ = server.wait_for_stderr("has files opened too often and has to wait");
        let good = format!("say-to-broker={}", open(0, None, READ));
        let asked = std::time::Instant::now();
        assert_eq!(attack(&server, &good), Some(format!("ok {}", opened(false))));
        println!("another is answered within {:?}", asked.elapsed());
        assert!(!flood.is_finished(), "the flood still waits");
        flood.join().expect("it was served")
    });
    assert_eq!(flood.as_deref(), Some("ok"));
    assert!(started.elapsed() > std::time::Duration::from_secs(3), "some 740 at 5 ms each");
    bystander.finish();
}

/// A slot belongs to one client.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_worker_has_one_description_of_the_disk() {
    // And the plugin's own memory, which is a file too.
    let [with, without] = ["disk={dir}/disk", "path=/etc/hostname"].map(|parameter| {
        let builder = server(&["redteam", parameter]);
        std::fs::write(builder.dir().join("disk"), [7; 4096]).expect("written");
        let outcome = attack(&builder.start(), "files").expect("it lives");
        outcome.strip_prefix("ok ").and_then(|count| count.parse::<u32>().ok()).expect("a number")
    });
    assert_eq!(with, without + 1);
}
