//! Every command, with flags, sizes and states of the connection, and the route as text.

use nbd_protocol::constants::{CommandFlags, TransmissionFlags};

use super::*;
use crate::connection::input::CAPACITY;
use crate::connection::negotiated::Features;

const SIZE: u64 = 1 << 40;
const NONE: CommandFlags = CommandFlags::empty();
/// The length of a request that is copied, and of one that is spliced.
const SMALL: u64 = 4096;
const LARGE: u64 = SPLICE_FROM as u64;

fn rules(extended: bool) -> Rules {
    Rules {
        size: SIZE,
        flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
        features: Features { structured: true, extended, base_allocation: true },
    }
}

/// A connection over a local disk, with a pool that is idle and nothing in the input buffer.
fn state(rules: &Rules) -> State<'_> {
    State {
        rules,
        blocking: Blocking::Short,
        spliced: Spliced::new(true, None),
        serialized: false,
        shutting_down: false,
        available: 0,
        pool: PoolState::Idle,
        pipelined: false,
        in_flight: 0,
        quick: false,
        writes: Verdict::Inline,
    }
}

fn request(command: Command, flags: CommandFlags, length: u64) -> Request {
    Request { flags, command, cookie: 1, offset: 0, length }
}

/// The route as text: the attempt, and after "else" the executor.
fn describe(request: &Request, state: &State<'_>) -> String {
    let payload =
        crate::connection::validate::payload_length(request, state.rules.features.extended);
    let plan = match route(request, payload, state) {
        Route::Disconnect => return "disconnect".into(),
        Route::Violation => return "violation".into(),
        Route::Reject(error) => return format!("reject {:?}", error.errno()),
        Route::Execute(plan) => plan,
    };
    let attempt = match plan.attempt {
        Attempt::None => "",
        Attempt::WithoutWaiting => "without waiting, else ",
        Attempt::SpliceIn { drain: false } => "splice in, else ",
        Attempt::SpliceIn { drain: true } => "drain, splice in, else ",
    };
    let mut text = attempt.to_owned();
    if let Some(count) = plan.splice_out {
        assert_eq!(count as u64, request.length);
        text += "splice out, else ";
    }
    match plan.executor {
        Executor::Pool => text += "pool",
        Executor::Pipeline => text += "pipeline",
        Executor::Inline { drain, flush, timed } => {
            for (set, word) in [(drain, "drain, "), (flush, "flush, ")] {
                text += if set { word } else { "" };
            }
            text += match timed {
                Timed::No => "inline",
                Timed::Write => "timed inline",
                Timed::Call => "timed call",
            };
        }
    }
    text
}

/// Commands, flags and lengths over a local disk whose pool is idle, and over one whose pool is
/// busy.
#[test]
fn commands() {
    use CommandFlags as F;
    let fua = F::FUA;
    let past_end = SIZE + 1;
    for (command, flags, length, idle, busy) in [
        (Command::DISC, NONE, 0, "disconnect", "disconnect"),
        (
            Command::READ,
            NONE,
            SMALL,
            "without waiting, else flush, inline",
            "without waiting, else pool",
        ),
        (
            Command::READ,
            NONE,
            LARGE,
            "without waiting, else splice out, else flush, inline",
            "without waiting, else splice out, else pool",
        ),
        (
            Command::READ,
            NONE,
            SPLICE_UP_TO as u64 + 1,
            "without waiting, else flush, inline",
            "without waiting, else pool",
        ),
        (
            Command::READ,
            F::DF,
            SMALL,
            "without waiting, else flush, inline",
            "without waiting, else pool",
        ),
        (Command::READ, NONE, 0, "reject EINVAL", "reject EINVAL"),
        (Command::READ, NONE, past_end, "reject EINVAL", "reject EINVAL"),
        (Command::READ, NONE, u64::from(MAX_REQUEST) + 1, "reject ENOMEM", "reject ENOMEM"),
        (Command::READ, F::NO_HOLE, SMALL, "reject EINVAL", "reject EINVAL"),
        (Command::WRITE, NONE, SMALL, "flush, timed inline", "flush, timed inline"),
        (
            Command::WRITE,
            NONE,
            LARGE,
            "splice in, else flush, timed inline",
            "splice in, else flush, timed inline",
        ),
        (Command::WRITE, fua, SMALL, "flush, inline", "pool"),
        (Command::WRITE, fua, LARGE, "flush, inline", "pool"),
        (Command::WRITE, NONE, u64::from(MAX_REQUEST) + 1, "reject ENOMEM", "reject ENOMEM"),
        (Command::WRITE, NONE, MAX_SKIPPED_WRITE, "reject ENOMEM", "reject ENOMEM"),
        (Command::WRITE, NONE, MAX_SKIPPED_WRITE + 1, "violation", "violation"),
        (Command::FLUSH, NONE, 0, "pool", "pool"),
        (Command::FLUSH, NONE, SMALL, "reject EINVAL", "reject EINVAL"),
        (Command::TRIM, fua, SMALL, "pool", "pool"),
        (Command::WRITE_ZEROES, F::NO_HOLE | F::FAST_ZERO, SMALL, "pool", "pool"),
        (Command::WRITE_ZEROES, NONE, past_end, "reject ENOSPC", "reject ENOSPC"),
        (Command::CACHE, NONE, SMALL, "pool", "pool"),
        (Command::BLOCK_STATUS, F::REQ_ONE, SMALL, "flush, inline", "pool"),
        (Command::RESIZE, NONE, SMALL, "reject EINVAL", "reject EINVAL"),
        (Command(99), NONE, SMALL, "reject EINVAL", "reject EINVAL"),
    ] {
        let rules = rules(false);
        let request = request(command, flags, length);
        let idle_state = state(&rules);
        let busy_state = State { pool: PoolState::Busy, ..idle_state };
        assert_eq!(describe(&request, &idle_state), idle, "{request:?}, idle");
        assert_eq!(describe(&request, &busy_state), busy, "{request:?}, busy");
    }
}

/// States of the connection, and the routes of a small and a large read, a small and a large write.
#[test]
fn states() {
    type Change = fn(&mut State<'_>);
    let cases: [(&str, Change, [&str; 4]); 21] = [
        (
            "no pool, memory",
            |s| (s.pool, s.blocking) = (PoolState::Absent, Blocking::Never),
            ["inline", "splice out, else inline", "flush, inline", "splice in, else flush, inline"],
        ),
        (
            "no pool, local disk",
            |s| s.pool = PoolState::Absent,
            [
                "flush, inline",
                "splice out, else flush, inline",
                "flush, timed inline",
                "splice in, else flush, timed inline",
            ],
        ),
        (
            "no pool, slow disk",
            |s| (s.pool, s.writes) = (PoolState::Absent, Verdict::Pool),
            [
                "flush, inline",
                "splice out, else flush, inline",
                "flush, inline",
                "splice in, else flush, inline",
            ],
        ),
        (
            "network",
            |s| s.blocking = Blocking::Long,
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "pool",
                "splice in, else pool",
            ],
        ),
        (
            "program of this machine, idle",
            |s| s.blocking = Blocking::Peer,
            [
                "without waiting, else flush, inline",
                "without waiting, else splice out, else flush, inline",
                "flush, inline",
                "splice in, else flush, inline",
            ],
        ),
        (
            "program of this machine, busy",
            |s| (s.blocking, s.pool) = (Blocking::Peer, PoolState::Busy),
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "pool",
                "splice in, else pool",
            ],
        ),
        (
            "pipeline, one request",
            |s| (s.blocking, s.pipelined) = (Blocking::Peer, true),
            [
                "without waiting, else pipeline",
                "without waiting, else splice out, else pipeline",
                "pipeline",
                "splice in, else pipeline",
            ],
        ),
        (
            "pipeline, more requests in the buffer",
            |s| (s.blocking, s.pipelined, s.available) = (Blocking::Peer, true, 64 * 1024),
            [
                "without waiting, else pipeline",
                "without waiting, else splice out, else pipeline",
                "pipeline",
                "splice in, else pipeline",
            ],
        ),
        (
            "pipeline, requests in flight",
            |s| (s.blocking, s.pipelined, s.in_flight) = (Blocking::Peer, true, 1),
            [
                "without waiting, else pipeline",
                "without waiting, else splice out, else pipeline",
                "pipeline",
                "splice in, else pipeline",
            ],
        ),
        (
            "pipeline, requests in the pool",
            |s| (s.blocking, s.pipelined, s.pool) = (Blocking::Peer, true, PoolState::Busy),
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "pool",
                "splice in, else pool",
            ],
        ),
        (
            "plugin with quick calls, busy",
            |s| (s.blocking, s.pool, s.quick) = (Blocking::Long, PoolState::Busy, true),
            [
                "without waiting, else timed call",
                "without waiting, else splice out, else pool",
                "flush, timed call",
                "splice in, else pool",
            ],
        ),
        (
            "slow disk, idle",
            |s| s.writes = Verdict::Pool,
            [
                "without waiting, else flush, inline",
                "without waiting, else splice out, else flush, inline",
                "flush, inline",
                "flush, inline",
            ],
        ),
        (
            "slow disk, busy",
            |s| (s.pool, s.writes) = (PoolState::Busy, Verdict::Pool),
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "pool",
                "pool",
            ],
        ),
        (
            "disk that was slow",
            |s| (s.pool, s.writes) = (PoolState::Busy, Verdict::InlineAfterDrain),
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "drain, flush, timed inline",
                "drain, splice in, else drain, flush, timed inline",
            ],
        ),
        (
            "TLS",
            |s| s.spliced = Spliced::new(false, None),
            [
                "without waiting, else flush, inline",
                "without waiting, else flush, inline",
                "flush, timed inline",
                "flush, timed inline",
            ],
        ),
        (
            "never spliced",
            |s| s.spliced = Spliced::new(true, Some(Pin::Never)),
            [
                "without waiting, else flush, inline",
                "without waiting, else flush, inline",
                "flush, timed inline",
                "flush, timed inline",
            ],
        ),
        (
            "always spliced",
            |s| s.spliced = Spliced::new(true, Some(Pin::Always)),
            [
                "without waiting, else splice out, else flush, inline",
                "without waiting, else splice out, else flush, inline",
                "splice in, else flush, timed inline",
                "splice in, else flush, timed inline",
            ],
        ),
        (
            "serialized, no pool",
            |s| (s.serialized, s.pool) = (true, PoolState::Absent),
            [
                "flush, inline",
                "splice out, else flush, inline",
                "flush, timed inline",
                "flush, timed inline",
            ],
        ),
        (
            "more requests in the buffer",
            |s| s.available = 64 * 1024,
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "timed inline",
                "splice in, else flush, timed inline",
            ],
        ),
        (
            "buffer full",
            |s| s.available = CAPACITY,
            [
                "without waiting, else pool",
                "without waiting, else splice out, else pool",
                "timed inline",
                "timed inline",
            ],
        ),
        ("shutting down", |s| s.shutting_down = true, ["reject ESHUTDOWN"; 4]),
    ];
    let rules = rules(false);
    for (name, change, routes) in cases {
        let mut state = state(&rules);
        change(&mut state);
        let requests =
            [Command::READ, Command::WRITE].map(|c| [SMALL, LARGE].map(|n| request(c, NONE, n)));
        for (request, expected) in requests.as_flattened().iter().zip(routes) {
            assert_eq!(describe(request, &state), expected, "{name}: {request:?}");
        }
    }
}

#[test]
fn disconnect_and_violation_take_precedence_over_shutdown() {
    let rules = rules(false);
    let state = State { shutting_down: true, ..state(&rules) };
    assert_eq!(describe(&request(Command::DISC, NONE, 0), &state), "disconnect");
    let endless = request(Command::WRITE, NONE, u64::MAX);
    assert_eq!(describe(&endless, &state), "violation");
}

/// With extended headers a block status may have a payload, and any request a length of 64 bits.
#[test]
fn extended_headers() {
    let rules = rules(true);
    let state = state(&rules);
    let payload = CommandFlags::PAYLOAD_LEN;
    for (command, length, expected) in [
        (Command::BLOCK_STATUS, 24, "flush, inline"),
        (Command::BLOCK_STATUS, 4097, "reject EINVAL"),
        (Command::BLOCK_STATUS, u64::MAX, "violation"),
        (Command::READ, SMALL, "reject EINVAL"),
        (Command::WRITE, SMALL, "flush, timed inline"),
        (Command::TRIM, 1 << 33, "violation"),
    ] {
        let request = request(command, payload, length);
        assert_eq!(describe(&request, &state), expected, "{request:?}");
    }
    // The header behind the request makes the difference between one request and two.
    let read = request(Command::BLOCK_STATUS, NONE, 1 << 33);
    for (available, expected) in
        [(Request::EXTENDED_LENGTH - 1, "flush, inline"), (Request::EXTENDED_LENGTH, "pool")]
    {
        assert_eq!(describe(&read, &State { available, ..state }), expected, "{available}");
    }
}
