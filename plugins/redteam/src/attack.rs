//! The attacks by name.

#![forbid(unsafe_code)]

use nix::errno::Errno;

use nbdkit_api::paths::Opened;
use nix::fcntl::OFlag;

use crate::shared::Region;
use crate::{channel, code, disk, raw, shared, system};

/// Its result: `ok`, with more after a space; `errno NUMBER`; `unknown`.
pub(crate) fn carry_out(attack: &str, regions: &[Region], file: Option<&Opened>) -> String {
    let (name, argument) = attack.split_once('=').unwrap_or((attack, ""));
    let number = || argument.parse::<i64>().unwrap_or(0);
    let result = match name {
        // The kernel.
        "syscall" => raw::by_numbers(argument),
        "open" => system::open(argument),
        "connect" => system::connect(number() as u16),
        "connect-unix" => system::connect_unix(argument),
        "connect-abstract" => system::connect_abstract(argument),
        "exec" => system::exec(argument),
        "fork" => system::fork(),
        "mount" => system::mount(),
        "become-root" => system::become_root(),
        "fill-memory" => system::fill_memory(number() as usize),
        "fill-shared" => system::fill_shared(number() as usize),
        "fill-memfd" => system::fill_memfd(number() as u64),
        "fill-descriptors" => system::fill_descriptors(number() as usize),
        "raise-descriptors" => {
            system::raise_descriptors().and_then(|_| system::fill_descriptors(number() as usize))
        }
        "map-code" => code::map(),
        "make-code" => code::make(),
        "write-code" => code::write(),
        // Files, and the broker.
        "write-disk" => disk::write(file),
        "truncate-disk" => disk::truncate(file),
        "reopen-disk" => disk::reopen(file),
        "append-to-disk" => disk::append(file),
        "pass-disk" => disk::pass(file),
        "files" => disk::descriptors(),
        "open-for-writing" => disk::open_as(argument, OFlag::O_RDWR),
        "open-truncating" => disk::open_as(argument, OFlag::O_RDONLY | OFlag::O_TRUNC),
        "create" => disk::open_as(argument, OFlag::O_WRONLY | OFlag::O_CREAT),
        "truncate" => disk::truncate_path(argument),
        "say-to-broker" => disk::say_to_broker(argument, 0),
        "say-to-broker-with-descriptors" => disk::say_to_broker(argument, 2),
        "use-answer" => disk::use_answer(argument),
        "flood-broker" => disk::flood_broker(number() as usize),
        "fast-open" => disk::fast_open(number() as u16),
        "flood-connect" => disk::flood_connect(number() as usize),
        // Other processes.
        "signal" => system::signal(number() as i32),
        "trace" => system::trace(number() as i32),
        "read-memory" => system::read_memory(number() as i32),
        // The listener.
        "say" => channel::say(argument, 0),
        "say-with-descriptors" => channel::say(argument, 2),
        "say-much" => channel::say_zeroes(number() as usize),
        "flood" => channel::flood(number() as usize),
        "channels" => channel::channels(),
        // What clients share.
        "scribble" => shared::scribble(argument, regions),
        // Nothing forbidden.
        "allocate" => Ok(format!("ok {}", vec![1_u8; number() as usize].len())),
        "thread" => Ok(format!("ok {}", std::thread::spawn(|| 7).join().unwrap_or(0))),
        "log" => {
            nbdkit_api::error!("{argument}");
            Ok("ok".to_owned())
        }
        "print" => system::print(argument.as_bytes(), 1),
        "flood-stderr" => system::print(&[b'x'; 4096], number() as usize),
        "panic" => panic!("{argument}"),
        "abort" => std::process::abort(),
        "overflow-stack" => Ok(format!("ok {}", system::overflow_stack(1))),
        "fault" => raw::fault(),
        _ => return "unknown".to_owned(),
    };
    result.unwrap_or_else(|errno: Errno| format!("errno {}", errno as i32))
}
