//! What plugins and filters share between processes, while a hostile worker scribbles on it.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nbdkit_api::client::Peer;
use nbdkit_api::shared::{
    BlockLocks, BlockState, RangeLock, Rate, SharedBlockMap, SharedBlockMaps, SharedEvent,
    SharedOnce, Sharing, TokenBucket,
};
use nbdkit_api::{Client, Errno, Error, Result};

use crate::input::Input;

/// Operations of one run.
const MAX_OPERATIONS: usize = 64;

/// A client that has gone: what would wait for a hostile worker gives up at once.
fn gone() -> Arc<Client> {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    drop(theirs);
    Client::new(1, Peer::default(), Some(Arc::new(OwnedFd::from(ours))), Box::new(|| {}))
}

/// One of the primitives; the first byte picks it.
///
/// # Panics
/// If it does, or breaks what it promises in spite of scribbles.
pub fn target(data: &[u8]) {
    let mut input = Input(data);
    let primitive = match input.u8() % 5 {
        0 => maps,
        1 => once,
        2 => ranges,
        3 => bucket,
        _ => event,
    };
    primitive(&mut input);
}

/// A state of which half of the words are nonsense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Even(u64);

impl BlockState for Even {
    const ABSENT: Even = Even(0);

    fn encode(self) -> u64 {
        self.0
    }

    fn decode(word: u64) -> Result<Even> {
        let even = word.is_multiple_of(2).then_some(Even(word));
        even.ok_or_else(|| Error::new(Errno::EIO, "an odd word"))
    }
}

fn maps(input: &mut Input<'_>) {
    let maps = SharedBlockMaps::new("fuzz", 4096).expect("memory");
    let locks = BlockLocks::new().expect("memory");
    let mut map: Option<SharedBlockMap<Even>> = None;
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let (kind, number, word) = (input.u8(), u64::from(input.u16()), input.u64());
        match kind % 8 {
            0 => {
                // Few names and sizes, so that they come again.
                let size = [0, 1, 1 << 20, 1 << 62, i64::MAX as u64, u64::MAX];
                let size = size[number as usize % size.len()];
                if let Ok((_, opened)) = maps.open(["", "a", "b"][word as usize % 3], size) {
                    map = Some(opened);
                }
            }
            1 => map = maps.get(word as usize).ok().or(map),
            2 => drop(maps.scribble_list(number * 8, word)),
            3 => maps.scribble_counts(number as usize, word),
            4 => drop(maps.scribble_map(number, word)),
            5 => locks.scribble(number as usize, word),
            _ => {
                let Some(map) = &map else { continue };
                let mut cursor = map.cursor();
                for block in [number, word] {
                    if let Ok((_, holds)) = cursor.load(block) {
                        assert!(holds > 0 && block + holds <= map.blocks());
                    }
                }
                let present = map.present().take(1000).filter_map(Result::ok);
                assert!(present.map(|(block, _)| block).is_sorted(), "{map:?}");
                if number >= map.blocks() {
                    assert!(cursor.store(number, Even(word)).is_err());
                    continue;
                }
                let lock = locks.lock(map, number, |left| _ = maps.word_at(left.position));
                let state = Even(word & !1);
                lock.change(word, || cursor.store(number, state), |_| {}).expect("stored");
                assert_eq!(cursor.load(number).expect("what was stored").0, state);
            }
        }
    }
}

fn once(input: &mut Input<'_>) {
    let once = SharedOnce::<2>::new("fuzz").expect("memory");
    let client = gone();
    let mut known = None;
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let (kind, word) = (input.u8(), input.u64());
        match kind % 4 {
            0 | 1 => once.scribble(kind.into(), word),
            2 => known = known.or(once.get()),
            _ => {
                let work = || match kind & 4 {
                    0 => Ok([word, !word]),
                    _ => Err(Error::silent(Errno::ENOSPC)),
                };
                known = known.or(once.get_or_do(Some(&client), work).ok());
            }
        }
        if known.is_some() {
            assert_eq!(once.get_or_do(Some(&client), || Ok([0, 0])).ok(), known);
        }
    }
}

fn ranges(input: &mut Input<'_>) {
    let lock = RangeLock::new().expect("memory");
    let client = gone();
    let mut held = Vec::new();
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let (kind, number, word) = (input.u8(), input.u16(), input.u64());
        match kind % 4 {
            0 => lock.scribble(number.into(), word),
            1 if !held.is_empty() => drop(held.swap_remove(usize::from(number) % held.len())),
            _ => {
                let sharing = if kind & 4 == 0 { Sharing::Shared } else { Sharing::Exclusive };
                let end = word.saturating_add(u64::from(number));
                held.extend(lock.lock(Some(&client), word..end, sharing));
            }
        }
    }
}

fn bucket(input: &mut Input<'_>) {
    let bucket = TokenBucket::new().expect("memory");
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let (kind, word) = (input.u8(), input.u64());
        if kind % 3 == 0 {
            bucket.scribble(word);
            continue;
        }
        let per_second = NonZeroU64::new(input.u32().into()).unwrap_or(NonZeroU64::MIN);
        let rate = Rate { per_second, capacity: input.u32().into(), owed: input.u32().into() };
        if kind % 3 == 1 {
            bucket.give_back(word, rate);
            continue;
        }
        let tokens = u128::from(word) + u128::from(rate.owed);
        let nanoseconds = tokens * 1_000_000_000 / u128::from(per_second.get());
        let most = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        assert!(bucket.take(word, rate).expect("a clock") <= most);
    }
}

fn event(input: &mut Input<'_>) {
    let event = SharedEvent::new().expect("memory");
    let client = gone();
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        match input.u8() % 3 {
            0 => event.scribble(input.u32()),
            1 => event.signal(),
            _ => {
                let mut asked = 0;
                let waited = event.wait_until(Some(&client), || {
                    asked += 1;
                    Ok(None::<()>)
                });
                assert_eq!(waited.expect_err("the client has gone").errno(), Errno::ESHUTDOWN);
                assert_eq!(asked, 2);
            }
        }
    }
}
