//! `--swap`: a worker that serves a disk to the kernel of its own machine must not need memory
//! while the kernel waits for it to take pages away. Counted, not timed: page faults of all its
//! threads, and what it has mapped, before and after a load. As memory is locked as soon as it is
//! mapped (mlockall(2), MCL_FUTURE), each page that is allocated is a fault.
//!
//! Root only: others may not lock enough.
#![expect(clippy::expect_used, reason = "a test ends where something goes wrong")]

use std::path::Path;
use std::time::{Duration, Instant};

use nbd_protocol::constants::{Rep, TransmissionFlags};
use nbdkit_tests::binary::Binary;
use nbdkit_tests::client::Transport;
use nbdkit_tests::processes::threads;
use nbdkit_tests::server::Builder;
use nbdkit_tests::tls::{Authority, KeyType};
use nbdkit_tests::{Ask, Client, Server};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Of every disk here, bytes.
const SIZE: u64 = 64 * MIB;

/// Whether this user may not lock memory without limit.
fn needs_root() -> bool {
    let ordinary = !nix::unistd::geteuid().is_root();
    if ordinary {
        eprintln!("SKIPPED: --swap needs root");
    }
    ordinary
}

/// What a process has cost the kernel so far.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    /// Page faults of each thread: its id, minor, major.
    faults: Vec<(String, u64, u64)>,
    /// VmData, VmStk, VmRSS and Threads of proc_pid_status(5), KiB and a number.
    memory: Vec<String>,
}

impl Cost {
    fn of(process: i32) -> Cost {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("it lives");
        let mut faults: Vec<_> = tasks
            .map(|task| {
                let path = task.expect("an entry").path();
                let text = std::fs::read_to_string(path.join("stat")).expect("a thread");
                // The fields after the name; the first is the third. proc_pid_stat(5)
                let fields = text.rsplit_once(") ").expect("a name").1.split(' ');
                let fields: Vec<&str> = fields.collect();
                let number = |field: usize| fields[field - 3].parse().expect("a number");
                (path.display().to_string(), number(10), number(12))
            })
            .collect();
        faults.sort();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
        let wanted = ["VmData:", "VmStk:", "VmRSS:", "Threads:"];
        let wanted = |line: &&str| wanted.iter().any(|name| line.starts_with(name));
        let memory = status.lines().filter(wanted).map(str::to_owned).collect();
        Cost { faults, memory }
    }

    /// When nothing has changed for a while: what follows the handshake is over.
    fn settled(process: i32) -> Cost {
        let end = Instant::now() + Duration::from_secs(60);
        let mut before = Cost::of(process);
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = Cost::of(process);
            if now == before {
                return now;
            }
            assert!(Instant::now() < end, "it does not come to rest: {before:?} {now:?}");
            before = now;
        }
    }
}

/// The process that serves the only client.
fn worker(server: &Server, shared: bool) -> i32 {
    if shared {
        return server.template();
    }
    *server.workers().first().expect("one client, one worker")
}

/// A disk of a file with data and holes.
fn file(path: &Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).expect("created");
    file.set_len(SIZE).expect("resized");
    for at in (0..SIZE).step_by(4 << 20) {
        file.write_all_at(&vec![7; 1 << 20], at).expect("written");
    }
}

fn server(arguments: &[&str]) -> Builder {
    let builder = Server::nbdkit(["--swap"]).args(arguments).binary(Binary::ours());
    file(&builder.dir().join("disk"));
    builder
}

fn open<T: Transport>(client: &mut Client<T>) {
    client.structured_replies().expect("a reply");
    client.set_meta_context("", &["base:allocation"]).expect("a reply");
    assert_eq!(client.go("", &[]).expect("a reply").end.reply, Rep::ACK);
}

/// Sends all, then takes all replies, none of which may be an error.
fn together<T: Transport>(client: &mut Client<T>, asks: &[Ask]) {
    for ask in asks {
        client.send(ask).expect("sent");
    }
    for _ in asks {
        assert_eq!(client.receive().expect("a reply").error, None);
    }
}

/// Every kind of request, from 4 to 512 KiB, 1 to 64 at a time. Reads and writes come in turns and
/// not mixed: this client does not take replies while it sends.
fn load<T: Transport>(client: &mut Client<T>) {
    for depth in [1, 4, 16, 64] {
        for length in [4 * KIB, 32 * KIB, 128 * KIB, 256 * KIB, 512 * KIB] {
            let places = || (0..depth).map(|n| (n * 7 * MIB + n * 4 * KIB) % (SIZE - length));
            let each = |ask: &dyn Fn(u64) -> Ask| places().map(ask).collect::<Vec<_>>();
            together(client, &each(&|at| Ask::write(at, vec![at as u8; length as usize])));
            together(client, &each(&|at| Ask::read(at, length)));
            if client.offers(TransmissionFlags::SEND_CACHE) {
                together(client, &each(&|at| Ask::cache(at, length)));
            }
            together(client, &each(&|at| Ask::trim(at, length)));
            together(client, &each(&|at| Ask::read(at, length)));
            together(client, &each(&|at| Ask::write_zeroes(at, length)));
            together(client, &each(&|at| Ask::block_status(at, length)));
        }
        together(client, &[Ask::flush(), Ask::block_status(0, SIZE)]);
    }
}

/// After so long a client's memory is given back otherwise.
const IDLE: Duration = Duration::from_secs(1);
/// And after so long threads end that have nothing to do.
const IDLE_THREADS: Duration = Duration::from_secs(6);

/// Serves one client, whose load, and the same again after a rest, must not cost the worker, which
/// has so many threads, a fault or a byte.
fn costs_nothing<T: Transport>(
    what: &str,
    server: &Server,
    mut client: Client<T>,
    most: u64,
    rest: Duration,
) {
    open(&mut client);
    let worker = worker(server, what.contains("shared"));
    let before = Cost::settled(worker);
    assert_eq!(threads(worker), most, "{what}: threads before the first request");
    load(&mut client);
    std::thread::sleep(rest);
    load(&mut client);
    let after = Cost::of(worker);
    assert_eq!(before, after, "{what}");
}

#[test]
fn a_load_causes_no_page_fault_and_takes_no_memory() {
    if needs_root() {
        return;
    }
    let stacks: [(&[&str], u64); 6] = [
        (&["file", "{dir}/disk"], 17),
        (&["-t", "3", "file", "{dir}/disk"], 4),
        // Nothing in it waits, so the thread that reads does everything.
        (&["memory", "64M", "allocator=malloc,mlock=true"], 1),
        (&["memory", "64M", "allocator=malloc"], 1),
        // And one that takes clients.
        (&["--isolation=shared", "memory", "64M", "allocator=malloc,mlock=true"], 2),
        (&["--isolation=shared", "file", "{dir}/disk"], 18),
    ];
    for (number, (stack, threads)) in stacks.into_iter().enumerate() {
        let server = server(stack).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        let rest = if number == 0 { IDLE_THREADS } else { IDLE };
        costs_nothing(&format!("{stack:?}"), &server, client, threads, rest);
    }
}

#[test]
fn nor_does_a_load_by_way_of_tls() {
    if needs_root() || !nbdkit_tests::tls::is_possible() {
        return;
    }
    let dir = nbdkit_tests::TempDir::new();
    let authority = Authority::new(&dir.join("ca"), "Test Authority");
    authority.issue_server(&dir.join("server"), KeyType::Ecdsa);
    let certificates = format!("--tls-certificates={}", dir.join("server").display());
    let server = server(&["--tls=require", &certificates, "file", "{dir}/disk"]).start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let client = client.starttls(authority.client_config(None)).expect("TLS");
    costs_nothing("TLS", &server, client, 17, IDLE);
}

/// Serving it would break the promise.
#[test]
fn a_client_for_whom_there_is_not_enough_memory_is_refused_with_a_line() {
    /// Enough for the server itself, and not for the buffers and threads of a client, bytes.
    const LIMIT: &str = "--memlock=50000000";
    if needs_root() {
        return;
    }
    let raised = std::process::Command::new("prlimit").args([LIMIT, "true"]).status();
    if !raised.is_ok_and(|status| status.success()) {
        eprintln!(
            "SKIPPED: the limit of locked memory cannot be set (no prlimit, or no CAP_SYS_RESOURCE)"
        );
        return;
    }
    let script = format!(
        "exec prlimit {LIMIT} setpriv --reuid nobody --regid nogroup --clear-groups \
         --bounding-set=-all --inh-caps=-all \"$0\" \"$@\""
    );
    let builder = server(&["-t", "64", "--filter=delay", "null", "64M"]).through_shell(&script);
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(builder.dir().path(), anybody).expect("ours");
    let server = builder.start();
    let mut client = server.connect();
    client.handshake().expect("a greeting");
    let _ = client.go("", &[]);
    let text = server.wait_for_stderr("ulimit -l");
    assert!(text.contains("--swap"), "{text}");
}

/// Pages of a file that are in the page cache: fincore(1).
fn cached_pages(path: &Path) -> u64 {
    let mut fincore = std::process::Command::new("fincore");
    let output = fincore.args(["-n", "-r", "-o", "PAGES"]).arg(path).output().expect("fincore");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// A machine that has no memory left cannot have a page for what is written.
#[test]
fn a_file_is_written_and_read_past_the_page_cache() {
    use std::os::unix::fs::OpenOptionsExt;
    const LENGTH: usize = 1 << 20;
    let swaps: &[&str] = if needs_root() { &[] } else { &["--swap"] };
    for (option, cache, past) in [
        (None, "cache=direct", true),
        (swaps.first().copied(), "fadvise=normal", !swaps.is_empty()),
        (swaps.first().copied(), "cache=default", false),
    ] {
        let builder = Server::nbdkit(option).binary(Binary::ours());
        let path = builder.dir().join("disk");
        std::fs::write(&path, vec![1; 2 * LENGTH + 100]).expect("written");
        let mut direct = std::fs::File::options();
        let direct = direct.read(true).custom_flags(nix::libc::O_DIRECT).open(&path);
        let server = builder.args(["file", "{dir}/disk", cache]).start();
        let mut client = server.connect();
        client.handshake().expect("a greeting");
        let end = client.go("", &[]).expect("a reply").end;
        if direct.is_err() && past {
            // On this file system.
            let _ = server.wait_for_stderr("no O_DIRECT, only through the page cache");
            assert_eq!(end.reply == Rep::ACK, cache != "cache=direct");
            continue;
        }
        assert_eq!(end.reply, Rep::ACK, "{cache}");
        std::fs::File::open(&path).expect("there").sync_all().expect("synced");
        let drop_pages = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let file = std::fs::File::open(&path).expect("there");
        nix::fcntl::posix_fadvise(&file, 0, 0, drop_pages).expect("dropped");
        assert_eq!(cached_pages(&path), 0, "{cache}: before");
        let data: Vec<u8> = (0..LENGTH).map(|at| (at / 4096 + at) as u8).collect();
        together(&mut client, &[Ask::write(4096, data.clone())]);
        client.send(&Ask::read(4096, LENGTH as u64)).expect("sent");
        assert!(client.receive().expect("a reply").data == data, "{cache}: what was written");
        assert_eq!(cached_pages(&path) == 0, past, "{cache}: {} pages", cached_pages(&path));
        // What is no whole block, and the end of the file, are no less right.
        let edges = [(4000, 200), (4096 + LENGTH as u64 - 10, 30), (2 * LENGTH as u64 + 1, 99)];
        let mut mirror = std::fs::read(&path).expect("read");
        for (at, length) in edges {
            let data = vec![at as u8; length];
            mirror[at as usize..][..length].copy_from_slice(&data);
            together(&mut client, &[Ask::write(at, data)]);
        }
        together(&mut client, &[Ask::flush()]);
        client.send(&Ask::read(0, mirror.len() as u64)).expect("sent");
        assert!(client.receive().expect("a reply").data == mirror, "{cache}: edges");
        assert!(std::fs::read(&path).expect("read") == mirror, "{cache}: the file");
    }
}
