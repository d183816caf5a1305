//! Every request, with and without structured replies, in range and out of it.

use nbd_protocol::constants::{Command, CommandFlags};
use nbd_protocol::transmission::Request;
use nbdkit_tests::Ask;
use nbdkit_tests::differential::Row;
use nbdkit_tests::row_name;
use nbdkit_tests::transcript::Session;

const MEMORY: &[&str] = &["memory", "1M"];
const MIB: u64 = 1 << 20;

/// Every command in range.
fn every_command(s: &mut Session) {
    s.read(0, 512);
    s.write(65536, 65536, 0x55);
    s.read(65000, 1000);
    s.ask(&Ask::flush());
    s.ask(&Ask::write(0, [1, 2, 3]).flags(CommandFlags::FUA));
    s.read(0, 8);
    s.ask(&Ask::trim(65536, 32768));
    s.ask(&Ask::trim(98304, 100).flags(CommandFlags::FUA));
    s.ask(&Ask::write_zeroes(98304, 32768));
    s.ask(&Ask::write_zeroes(0, 100).flags(CommandFlags::FUA | CommandFlags::NO_HOLE));
    s.ask(&Ask::cache(0, 512));
    s.read(0, MIB);
}

#[test]
fn every_command_with_simple_replies() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.go("");
        every_command(s);
        s.disconnect();
    });
}

#[test]
fn every_command_with_structured_replies() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        every_command(s);
        s.ask(&Ask::read(0, 4096).flags(CommandFlags::DF));
        s.disconnect();
    });
}

#[test]
fn ranges_beyond_the_end() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        for (offset, length) in
            [(MIB, 1), (MIB - 1, 2), (0, MIB + 1), (u64::MAX, 1), (u64::MAX - 511, 512)]
        {
            s.read(offset, length);
            s.ask(&Ask::trim(offset, length));
            s.ask(&Ask::write_zeroes(offset, length));
            s.ask(&Ask::cache(offset, length));
            s.block_status(offset, length);
        }
        s.write(MIB, 1, 1);
        s.write(MIB - 1, 2, 1);
        s.write(u64::MAX, 1, 1);
        s.read(MIB - 1, 1);
        s.disconnect();
    });
}

#[test]
fn requests_of_no_length() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.read(0, 0);
        s.write(0, 0, 0);
        s.ask(&Ask::trim(0, 0));
        s.ask(&Ask::write_zeroes(0, 0));
        s.ask(&Ask::cache(0, 0));
        s.block_status(0, 0);
        s.ask(&Ask::flush());
        s.read(0, 1);
        s.disconnect();
    });
}

#[test]
fn flush_with_a_range() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.ask(&Ask::new(Command::FLUSH, 512, 0));
        s.ask(&Ask::new(Command::FLUSH, 0, 512));
        s.disconnect();
    });
}

#[test]
fn unknown_commands() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        for command in [Command::RESIZE, Command(9), Command(0xffff)] {
            s.ask(&Ask::new(command, 0, 512));
        }
        s.read(0, 1);
        s.disconnect();
    });
}

#[test]
fn flags_on_every_command() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        let asks = [
            Ask::read(0, 512),
            Ask::write(0, [0; 8]),
            Ask::flush(),
            Ask::trim(0, 512),
            Ask::cache(0, 512),
            Ask::write_zeroes(0, 512),
            // Where nothing is written: whether a zeroed page is a hole is each server's own
            // affair.
            Ask::block_status(65536, 512),
        ];
        for ask in asks {
            for bit in [0, 1, 2, 3, 4, 5, 15] {
                s.ask(&ask.clone().flags(CommandFlags::from_bits_retain(1 << bit)));
            }
        }
        s.disconnect();
    });
}

#[test]
fn dont_fragment_without_structured_replies() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.connect();
        s.go("");
        s.ask(&Ask::read(0, 512).flags(CommandFlags::DF));
        s.read(0, 1);
        s.disconnect();
    });
}

#[test]
fn block_status_of_written_and_unwritten_parts() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.block_status(0, MIB);
        s.write(131_072, 65536, 1);
        s.write(262_144, 65536, 2);
        s.block_status(0, MIB);
        s.block_status(131_072, 131_072);
        s.ask(&Ask::block_status(0, MIB).flags(CommandFlags::REQ_ONE));
        s.ask(&Ask::block_status(131_072, MIB - 131_072).flags(CommandFlags::REQ_ONE));
        s.ask(&Ask::trim(131_072, 65536));
        s.block_status(0, MIB);
        s.disconnect();
    });
}

#[test]
fn read_only_refuses_every_change() {
    Row::new(row_name!(), &["-r", "memory", "1M"]).compare(|s| {
        s.open();
        s.write(0, 512, 1);
        s.ask(&Ask::trim(0, 512));
        s.ask(&Ask::write_zeroes(0, 512));
        s.ask(&Ask::flush());
        s.read(0, 512);
        s.disconnect();
    });
}

#[test]
fn requests_above_the_largest_payload() {
    Row::new(row_name!(), &["memory", "1G"]).compare(|s| {
        s.open();
        s.read(0, 64 * MIB + 1);
        s.read(0, 1);
        s.write(0, 64 * (1 << 20) + 1, 0);
        s.read(0, 1);
        s.ask(&Ask::write_zeroes(0, 1 << 30));
        s.ask(&Ask::trim(0, 1 << 30));
        s.ask(&Ask::cache(0, 1 << 30));
        s.block_status(0, 1 << 30);
        s.disconnect();
    });
}

#[test]
fn a_write_too_long_to_be_drained() {
    Row::new(row_name!(), &["memory", "1G"]).compare(|s| {
        s.open();
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::WRITE,
            cookie: 5,
            offset: 0,
            length: 0xffff_ffff,
        };
        s.raw("header of a 4 GiB write", &request.encode());
        s.expect_close();
    });
}

#[test]
fn wrong_request_magic_ends_the_session() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.raw("28 zeroes", &[0; 28]);
        s.expect_close();
        s.open();
        s.read(0, 1);
        s.disconnect();
    });
}

#[test]
fn many_requests_at_once() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.step("100 writes at once", |client| {
            for number in 0..100u8 {
                client.send(&Ask::write(u64::from(number) * 512, [number; 512]))?;
            }
            let mut failed = 0;
            for _ in 0..100 {
                failed += usize::from(client.receive()?.error.is_some());
            }
            Ok(format!("{failed} failed"))
        });
        s.step("100 reads at once", |client| {
            for number in 0..100 {
                client.send(&Ask::read(number * 512, 512))?;
            }
            let mut replies = Vec::new();
            for _ in 0..100 {
                let reply = client.receive()?;
                replies.push((reply.request.offset, reply.to_string()));
            }
            replies.sort();
            let texts: Vec<String> = replies.into_iter().map(|(_, text)| text).collect();
            Ok(texts.join(" | "))
        });
        s.disconnect();
    });
}

#[test]
fn half_closed_clients_get_their_replies() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.step("10 reads, then no more", |client| {
            for number in 0..10 {
                client.send(&Ask::read(number * 512, 512))?;
            }
            client.half_close()?;
            for _ in 0..10 {
                client.receive()?;
            }
            client.expect_close().map(|()| "10 replies")
        });
    });
}

#[test]
fn goodbye_with_requests_outstanding() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.step("10 writes, then goodbye", |client| {
            for number in 0..10u64 {
                client.send(&Ask::write(number * 512, [9; 512]))?;
            }
            client.disconnect()?;
            for _ in 0..10 {
                client.receive()?;
            }
            client.expect_close().map(|()| "10 replies")
        });
    });
}

#[test]
fn hanging_up_inside_a_request() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        for cut in [1, 4, 27] {
            s.open();
            let request = Request {
                flags: CommandFlags::empty(),
                command: Command::WRITE,
                cookie: 5,
                offset: 0,
                length: 512,
            };
            s.raw(&format!("{cut} bytes of a header"), &request.encode()[..cut]);
            s.open();
            s.raw("a header and half its payload", &[&request.encode(), &[1; 256][..]].concat());
        }
        s.open();
        s.read(0, 512);
        s.disconnect();
    });
}

#[test]
fn clients_see_each_others_writes() {
    Row::new(row_name!(), MEMORY).compare(|s| {
        s.open();
        s.write(0, 512, 1);
        s.disconnect();
        s.open();
        s.read(0, 1024);
        s.disconnect();
    });
}

/// A flag that the server did not offer; the null plugin below a filter that hides the feature.
#[test]
fn a_fast_zero_that_was_not_offered() {
    let arguments = ["--filter=nozero", "memory", "1M", "zeromode=plugin", "fastzeromode=none"];
    Row::new(row_name!(), &arguments).compare(|s| {
        s.open();
        s.ask(&Ask::write_zeroes(0, 512).flags(CommandFlags::FAST_ZERO));
        s.read(0, 1);
        s.disconnect();
    });
}
