//! The corpus, and a bounded number of mutations of it, on any toolchain: what was found once stays
//! found. `NBDKIT_FUZZ_SEED` (a number) makes other mutations, `NBDKIT_FUZZ_MUTATIONS` more of
//! them.

use std::path::Path;
use std::time::{Duration, Instant};

use nbdkit_fuzz::TARGETS;

const SEED: u64 = 0x4e42_444d_4147_4943;
/// Of each target.
const MUTATIONS: u64 = 400;
/// No input of a few kilobytes may take this long, even on a slow machine.
const LONGEST: Duration = Duration::from_secs(20);

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 32) as usize % limit.max(1)
    }
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has a corpus");
    files
}

fn mutate(random: &mut Random, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.next() as u8),
            4 => {
                let other = &corpus[random.below(corpus.len())].1;
                let from = random.below(other.len());
                let to = from + random.below(other.len() - from + 1);
                drop(bytes.splice(at..at, other[from..to].iter().copied()));
            }
            _ => {
                let edge = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
                let end = bytes.len().min(at + random.below(9));
                bytes[at.min(end)..end].fill(edge);
            }
        }
    }
    bytes
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect(name))
}

#[test]
fn the_corpus_and_its_neighbours_harm_nobody() {
    let seed = number("NBDKIT_FUZZ_SEED", SEED);
    let mutations = number("NBDKIT_FUZZ_MUTATIONS", MUTATIONS);
    std::thread::scope(|scope| {
        for (index, (name, target)) in TARGETS.iter().enumerate() {
            let run = move || {
                let started = Instant::now();
                let corpus = corpus(name);
                for (path, bytes) in &corpus {
                    attempt(name, *target, bytes, path);
                }
                let mut random = Random((seed ^ index as u64) | 1);
                for _ in 0..mutations {
                    let bytes = mutate(&mut random, &corpus);
                    attempt(name, *target, &bytes, "a mutation");
                }
                let count = corpus.len();
                println!("{name}: {count} files, {mutations} mutations, {:.1?}", started.elapsed());
            };
            std::thread::Builder::new()
                .name((*name).to_owned())
                .spawn_scoped(scope, run)
                .expect("a thread");
        }
    });
}

fn attempt(name: &str, target: nbdkit_fuzz::Target, bytes: &[u8], what: &str) {
    let started = Instant::now();
    let result = std::panic::catch_unwind(|| target(bytes));
    assert!(result.is_ok(), "{name}: {what}: {}", bytes.escape_ascii());
    assert!(started.elapsed() < LONGEST, "{name}: {what} takes too long: {}", bytes.escape_ascii());
}
