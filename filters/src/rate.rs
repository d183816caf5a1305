//! nbdkit-rate-filter(1): limits the bandwidth of the server, and of each connection.
//!
//! The buckets of the server are in shared memory, and so are those of each address and each
//! export; every worker takes from them. Those of a connection are its worker's own. Reads and
//! writes have buckets of their own.

mod address;
mod limit;

use std::sync::Arc;
use std::time::Duration;

use nbdkit_api::shared::{Rate, SharedWords, TokenBucket, TokenBuckets};
use nbdkit_api::{
    Blocking, Client, DataPath, Direction, Error, Filter, Flags, Needs, Next, NextConfig, Open,
    OpenLayer, Result, Slot, ThreadModel, Value, client,
};

use address::Address;
use limit::{Limit, Source};

/// The filter: its parameters and, once ready, the buckets of the server.
#[derive(Debug)]
pub struct RateLimit {
    sources: [Source; SCOPES.len()],
    /// Seconds: how long after a pause a client may exceed the rate by as much again.
    burstiness: f64,
    shared: Option<Arc<Shared>>,
}

/// What all workers have in common.
#[derive(Debug)]
struct Shared {
    server: Pair<TokenBucket>,
    addresses: Pair<TokenBuckets>,
    exports: Pair<TokenBuckets>,
    /// The last rate of each scope's file, bits per second, 0 for none: for workers that begin
    /// after a file was deleted.
    last: SharedWords,
}

/// What has a limit: all connections together, each one, those from one address, those to one
/// export. The position in arrays of parameters, limits and last rates.
#[derive(Debug, Clone, Copy)]
enum Scope {
    Server,
    Connection,
    Address,
    Export,
}

const SCOPES: [Scope; 4] = [Scope::Server, Scope::Connection, Scope::Address, Scope::Export];

/// The parameters' names, with `-file` for files.
const NAMES: [&str; SCOPES.len()] = ["rate", "connection-rate", "address-rate", "export-rate"];

/// For reads and for writes.
#[derive(Debug)]
struct Pair<T> {
    read: T,
    write: T,
}

impl<T> Pair<T> {
    fn new(make: impl Fn() -> Result<T>) -> Result<Pair<T>> {
        Ok(Pair { read: make()?, write: make()? })
    }

    fn of(&self, direction: Direction) -> &T {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit { sources: Default::default(), burstiness: 2.0, shared: None }
    }
}

impl Filter for RateLimit {
    fn name(&self) -> &str {
        "rate"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit rate filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "rate=BITSPERSEC                Limit total bandwidth.\n\
             connection-rate=BITSPERSEC     Limit per-connection bandwidth.\n\
             rate-file=FILENAME             Dynamically adjust total bandwidth.\n\
             connection-rate-file=FILENAME  Dynamically adjust per-connection bandwidth.\n\
             address-rate=BITSPERSEC        Limit bandwidth of each client address.\n\
             address-rate-file=FILENAME     Dynamically adjust bandwidth of each address.\n\
             export-rate=BITSPERSEC         Limit bandwidth of each export.\n\
             export-rate-file=FILENAME      Dynamically adjust bandwidth of each export.\n\
             burstiness=SECS                Bucket capacity in seconds (default 2.0).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let name = key.strip_suffix("-file").unwrap_or(key);
        if let Some(scope) = NAMES.iter().position(|known| *known == name) {
            let source = &mut self.sources[scope];
            if name == key {
                source.set_rate(key, value)?;
            } else {
                source.path = Some(value.absolute_path()?);
            }
            return Ok(());
        }
        match key {
            "burstiness" => {
                let seconds = value.str()?.parse().ok();
                self.burstiness =
                    seconds.filter(|s: &f64| s.is_finite() && *s >= 0.0).ok_or_else(|| {
                        Error::msg("burstiness must be a floating point number (seconds)")
                    })?;
            }
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, _: ThreadModel) -> Result<()> {
        if self.sources.iter().any(Source::may_limit) {
            self.shared = Some(Arc::new(Shared {
                server: Pair::new(TokenBucket::new)?,
                addresses: Pair::new(TokenBuckets::new)?,
                exports: Pair::new(TokenBuckets::new)?,
                last: SharedWords::new(SCOPES.len())?,
            }));
        }
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        self.sources.iter().filter_map(Source::declared).fold(below, Needs::declare)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let Some(shared) = &self.shared else { return Ok(Box::new(Unlimited)) };
        Ok(Box::new(Handle {
            client: open.client.map(Arc::clone),
            address: open.client.map(|client| Address::of(client.peer())).unwrap_or_default(),
            export: open.export.to_owned(),
            limits: self.sources.each_ref().map(|source| Limit::new(source, self.burstiness)),
            own: Pair::new(|| Ok(TokenBucket::private()))?,
            shared: Arc::clone(shared),
        }))
    }
}

/// No limit was asked for.
struct Unlimited;

impl OpenLayer for Unlimited {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

/// By scope, the rate at which something was taken, if there is a limit.
type Rates = [Option<Rate>; SCOPES.len()];

struct Handle {
    client: Option<Arc<Client>>,
    address: Address,
    export: String,
    limits: [Limit; SCOPES.len()],
    /// Those of this connection.
    own: Pair<TokenBucket>,
    shared: Arc<Shared>,
}

impl Handle {
    /// Takes bits from the bucket of a scope.
    fn take(&self, scope: Scope, way: Direction, bits: u64, rate: Rate) -> Result<Duration> {
        match scope {
            Scope::Server => self.shared.server.of(way).take(bits, rate),
            Scope::Connection => self.own.of(way).take(bits, rate),
            Scope::Address => self.shared.addresses.of(way).take(&self.address, bits, rate),
            Scope::Export => self.shared.exports.of(way).take(&self.export, bits, rate),
        }
    }

    /// Takes bits from the bucket of a scope if they need not be waited for.
    fn try_take(&self, scope: Scope, way: Direction, bits: u64, rate: Rate) -> Result<bool> {
        match scope {
            Scope::Server => self.shared.server.of(way).try_take(bits, rate),
            Scope::Connection => self.own.of(way).try_take(bits, rate),
            Scope::Address => self.shared.addresses.of(way).try_take(&self.address, bits, rate),
            Scope::Export => self.shared.exports.of(way).try_take(&self.export, bits, rate),
        }
    }

    fn give_back(&self, scope: Scope, way: Direction, bits: u64, rate: Rate) {
        match scope {
            Scope::Server => self.shared.server.of(way).give_back(bits, rate),
            Scope::Connection => self.own.of(way).give_back(bits, rate),
            Scope::Address => self.shared.addresses.of(way).give_back(&self.address, bits, rate),
            Scope::Export => self.shared.exports.of(way).give_back(&self.export, bits, rate),
        }
    }

    fn give_all_back(&self, way: Direction, bits: u64, rates: Rates) {
        for (scope, rate) in SCOPES.into_iter().zip(rates) {
            if let Some(rate) = rate {
                self.give_back(scope, way, bits, rate);
            }
        }
    }

    /// Takes the bits of so many bytes from all buckets, and waits until all have earned them.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone or the server stops. The bits are given back.
    fn wait(&self, direction: Direction, bytes: usize) -> Result<()> {
        let bits = bytes as u64 * 8;
        let mut rates = Rates::default();
        let mut delay = Duration::ZERO;
        for scope in SCOPES {
            let at = scope as usize;
            if let Some(rate) = self.limits[at].now(&self.shared.last[at]) {
                delay = delay.max(self.take(scope, direction, bits, rate)?);
                rates[at] = Some(rate);
            }
        }
        if delay.is_zero() {
            return Ok(());
        }
        client::sleep(self.client.as_deref(), delay)
            .inspect_err(|_| self.give_all_back(direction, bits, rates))
    }

    /// Takes the bits from all buckets if none of them has to earn them first, and by which rates.
    /// `None`: nothing was taken.
    fn try_all(&self, direction: Direction, bits: u64) -> Option<Rates> {
        let mut rates = Rates::default();
        for scope in SCOPES {
            let at = scope as usize;
            let try_take =
                |rate| self.try_take(scope, direction, bits, rate).is_ok_and(|taken| taken);
            match self.limits[at].known() {
                Some(None) => {}
                Some(Some(rate)) if try_take(rate) => rates[at] = Some(rate),
                _ => {
                    self.give_all_back(direction, bits, rates);
                    return None;
                }
            }
        }
        Some(rates)
    }
}

impl OpenLayer for Handle {
    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.wait(Direction::Read, buf.len())?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.wait(Direction::Write, buf.len())?;
        next.pwrite(buf, offset, flags)
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }

    /// While there are tokens.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let bits = buf.len() as u64 * 8;
        let rates = self.try_all(Direction::Read, bits)?;
        let result = next.try_pread(buf, offset);
        if result.is_none() {
            self.give_all_back(Direction::Read, bits, rates);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    fn took(what: impl FnOnce()) -> f64 {
        let start = Instant::now();
        what();
        start.elapsed().as_secs_f64()
    }

    /// 2000 bytes are 0.2 seconds of this rate.
    const PARAMS: [(&str, &str); 2] = [("rate", "80000"), ("burstiness", "0.1")];

    #[test]
    fn reads_and_writes_have_buckets_of_their_own_and_zeroes_are_free() {
        let disk = Arc::new(Disk::new(1 << 20));
        let backend = testing::backend(&disk, &["rate"], &PARAMS);
        assert!(took(|| drop(testing::read(&backend, 3000, 0))) >= 0.2);
        // The bucket for writes is still full.
        disk.take_calls();
        let long = [0; 1000];
        let start = Instant::now();
        backend.pwrite(&long, 0, Flags::empty()).unwrap();
        backend.zero(1 << 20, 0, Flags::empty()).unwrap();
        backend.trim(1 << 20, 0, Flags::empty()).unwrap();
        assert!(start.elapsed() < Duration::from_secs(50), "a megabyte takes 104 seconds");
        assert_eq!(disk.take_calls(), ["pwrite 1000@0", "zero 1048576@0", "trim 1048576@0"]);
        assert!(took(|| backend.pwrite(&long, 0, Flags::empty()).unwrap()) < 50.0);
    }

    #[test]
    fn connections_share_the_rate_of_the_server_and_have_one_each() {
        let disk = Arc::new(Disk::new(1 << 20));
        let scopes =
            [("rate", 0.3), ("connection-rate", 0.1), ("address-rate", 0.3), ("export-rate", 0.3)];
        for (name, least) in scopes {
            let layer = testing::layer(&disk, &["rate"], &[(name, "80000"), PARAMS[1]]);
            let (one, two) = (testing::open(&layer), testing::open(&layer));
            let read = |next| took(|| drop(testing::read(next, 2000, 0)));
            let waited = read(&one) + read(&two);
            assert!(waited >= least, "{name}: {waited}");
        }
    }

    #[test]
    fn reads_need_not_wait_while_there_are_tokens_and_an_attempt_takes_none() {
        let disk = Arc::new(Disk { blocking: Blocking::Short, ..Disk::new(1 << 20) });
        // Two buckets, the second of which has 100 bytes and earns one in a second.
        let params = [("rate", "1G"), ("connection-rate", "8"), ("burstiness", "100")];
        let backend = testing::backend(&disk, &["rate"], &params);
        let now = |count: usize| backend.try_pread(&mut vec![0; count], 0).is_some();
        disk.cached.store(false, Ordering::Relaxed);
        assert!((0..10).all(|_| !now(90)));
        disk.cached.store(true, Ordering::Relaxed);
        assert_eq!([101, 40, 90, 60, 20].map(now), [false, true, false, true, false]);
    }

    #[test]
    fn without_a_limit_reads_pass() {
        let disk = Arc::new(Disk::new(512));
        let backend = testing::backend(&disk, &["rate"], &[]);
        assert_eq!(backend.passes_to(Direction::Read, 512, 0), Some(0));
        let backend = testing::backend(&disk, &["rate"], &[("connection-rate", "1G")]);
        assert_eq!(backend.passes_to(Direction::Read, 512, 0), None);
        assert_eq!(backend.blocking(), Blocking::Long);
    }

    #[test]
    fn bad_parameters_are_refused() {
        for (key, bad) in [
            ("rate", "0"),
            ("connection-rate", "0"),
            ("rate", "-1"),
            ("burstiness", "-1"),
            ("burstiness", "nan"),
            ("burstiness", "inf"),
            ("burstiness", "2x"),
            ("burstiness", ""),
        ] {
            testing::config_error("rate", &[(key, bad)]);
        }
    }
}
