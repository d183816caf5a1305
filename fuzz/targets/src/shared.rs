//! Memory that several processes share: what a hostile worker may write there, and what a disk must
//! keep.

use std::sync::Arc;

use nbdkit_api::client::Peer;
use nbdkit_api::{Client, ExtentKind, Extents, Flags, Next, Open, Stack, Value};
use nbdkit_filters::fuzz::{Place, Shared};
use nbdkit_plugins::allocator::{Kind, Strategy};

use crate::input::Input;

/// Of the disks, bytes: several blocks and pages, and a last one that is short.
const SIZE: u64 = 160_001;
/// Operations of one run.
const MAX_OPERATIONS: usize = 64;

/// A range of the disk, not empty.
fn range(input: &mut Input<'_>) -> (u64, u64) {
    let offset = u64::from(input.u32()) % SIZE;
    let count = u64::from(input.u16()).clamp(1, SIZE - offset);
    (offset, count)
}

/// An allocator against an array; the first byte picks it.
///
/// # Panics
/// If it does, fails, or forgets.
pub fn allocator(data: &[u8]) {
    let mut input = Input(data);
    let first = input.u8();
    let kind = match first % 3 {
        0 => Kind::Sparse,
        1 => Kind::Zstd,
        _ => Kind::Malloc { mlock: false },
    };
    // A limit that is never reached, where each write is looked at all the same.
    let strategy = Strategy { kind, max: (first / 3 % 2 == 1).then_some(2 * SIZE) };
    let mut disk = strategy.create("fuzz").expect("memory");
    disk.set_size(SIZE).expect("memory");
    let mut model = vec![0; SIZE as usize];
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let kind = input.u8();
        let (offset, count) = range(&mut input);
        let part = offset as usize..(offset + count) as usize;
        match kind % 5 {
            0 => {
                let mut bytes = vec![0xaa; count as usize];
                disk.read(&mut bytes, offset).expect("read");
                assert!(bytes == model[part], "{strategy:?}: {count} bytes at {offset}");
            }
            1 => {
                let seed = input.u8();
                model[part.clone()]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(at, byte)| *byte = seed.wrapping_mul(at as u8));
                disk.write(&model[part], offset).expect("written");
            }
            2 => {
                let byte = input.u8();
                disk.fill(byte, count, offset).expect("filled");
                model[part].fill(byte);
            }
            3 => {
                disk.zero(count, offset).expect("zeroed");
                model[part].fill(0);
            }
            _ => {
                let one = kind & 0x80 != 0;
                let mut extents = Extents::new(offset, offset + count);
                disk.extents(count, offset, one, &mut extents).expect("described");
                assert!(!extents.is_empty(), "{strategy:?}: no extents");
                for extent in extents.iter().filter(|it| it.kind.contains(ExtentKind::ZERO)) {
                    let hole = &model[extent.offset as usize..extent.end() as usize];
                    assert!(hole.iter().all(|byte| *byte == 0), "{strategy:?}: {extent:?}");
                }
            }
        }
    }
}

/// The cow filter on a disk in memory while a hostile worker scribbles on what they share. Requests
/// may fail.
///
/// # Panics
/// If the filter does.
pub fn cow(data: &[u8]) {
    let mut input = Input(data);
    let (shared, backend) = open_cow();
    let mut buffer = vec![0x5a; 1 << 16];
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        let kind = input.u8();
        if kind & 1 != 0 {
            let (place, word) = (input.u8(), input.u64());
            let place = match kind >> 1 & 7 {
                0 => Place::Free,
                1 => Place::Counts(place.into()),
                2 => Place::Exports(u64::from(place) * 8),
                4 => Place::Accounts((place % 2).into()),
                5 => Place::Moves(place.into()),
                _ => Place::Table(u64::from(place) % SIZE.div_ceil(4096)),
            };
            let _ = shared.scribble(place, word);
            continue;
        }
        let (offset, count) = range(&mut input);
        let buffer = &mut buffer[..count as usize];
        let none = Flags::empty();
        let _ = match kind >> 1 & 7 {
            0 => backend.pread(buffer, offset),
            1 => backend.pwrite(buffer, offset, none),
            2 => backend.trim(count, offset, none),
            3 => backend.zero(count, offset, none),
            4 => backend.cache(count, offset),
            5 => backend.extents(count, offset, none, &mut Extents::new(offset, offset + count)),
            6 => backend.try_pread(buffer, offset).unwrap_or(Ok(())),
            // Another client, who may find the list of exports changed.
            _ => shared_open(&shared).map(drop),
        };
    }
}

fn open_cow() -> (Shared, Next) {
    let shared = Shared::new(4096).expect("memory and a file");
    let backend = shared_open(&shared).expect("nothing was changed yet");
    (shared, backend)
}

fn shared_open(shared: &Shared) -> nbdkit_api::Result<Next> {
    let mut plugin = nbdkit_plugins::load("memory").expect("it is there");
    plugin.config("size", Value::new(&SIZE.to_string()))?;
    plugin.config_complete()?;
    plugin.get_ready()?;
    let layer = Stack::new(vec![shared.filter()], plugin).freeze();
    let client = Client::new(1, Peer::default(), None, Box::new(|| {}));
    let open = Open { client: Some(&client), readonly: false, export: "", tls: false };
    let backend = Arc::clone(&layer).open(&open)?;
    backend.prepare()?;
    Ok(backend)
}
