//! nbdkit-rate-filter(1): limits the bandwidth of the server, and of each connection.
//!
//! The buckets of the server are in shared memory; every worker takes from them. Those of a
//! connection are its worker's own. Reads and writes have buckets of their own.

mod limit;

use std::sync::Arc;
use std::time::Duration;

use nbdkit_api::shared::{SharedWords, TokenBucket};
use nbdkit_api::{
    Blocking, Client, DataPath, Direction, Error, Filter, Flags, Needs, Next, NextConfig, Open,
    OpenLayer, Result, Slot, ThreadModel, Value, client,
};

use limit::{Limit, Source};

/// The filter: its parameters and, once ready, the buckets of the server.
#[derive(Debug)]
pub struct RateLimit {
    server: Source,
    connection: Source,
    /// Seconds: how long after a pause a client may exceed the rate by as much again.
    burstiness: f64,
    shared: Option<Arc<Shared>>,
}

/// What all workers have in common.
#[derive(Debug)]
struct Shared {
    buckets: Buckets,
    /// The last rate of the server's file, and that of the connections' file, bits per second, 0
    /// for none: for workers that begin after a file was deleted.
    last: SharedWords,
}

/// The indices of `Shared::last`.
const SERVER: usize = 0;
const CONNECTION: usize = 1;

#[derive(Debug)]
struct Buckets {
    read: TokenBucket,
    write: TokenBucket,
}

impl Buckets {
    fn of(&self, direction: Direction) -> &TokenBucket {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        let none = Source::default();
        RateLimit { server: none.clone(), connection: none, burstiness: 2.0, shared: None }
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
             burstiness=SECS                Bucket capacity in seconds (default 2.0).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "rate" => self.server.set_rate(key, value)?,
            "connection-rate" => self.connection.set_rate(key, value)?,
            "rate-file" => self.server.path = Some(value.absolute_path()?),
            "connection-rate-file" => self.connection.path = Some(value.absolute_path()?),
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
        if self.server.may_limit() || self.connection.may_limit() {
            let buckets = Buckets { read: TokenBucket::new()?, write: TokenBucket::new()? };
            let last = SharedWords::new(2)?;
            self.shared = Some(Arc::new(Shared { buckets, last }));
        }
        Ok(())
    }

    fn needs(&self, below: Needs) -> Needs {
        let declared = self.server.declared().into_iter().chain(self.connection.declared());
        declared.fold(below, Needs::declare)
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let Some(shared) = &self.shared else { return Ok(Box::new(Unlimited)) };
        Ok(Box::new(Handle {
            client: open.client.map(Arc::clone),
            server: Limit::new(&self.server, self.burstiness),
            connection: Limit::new(&self.connection, self.burstiness),
            own: Buckets { read: TokenBucket::private(), write: TokenBucket::private() },
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

struct Handle {
    client: Option<Arc<Client>>,
    server: Limit,
    connection: Limit,
    /// Those of this connection.
    own: Buckets,
    shared: Arc<Shared>,
}

impl Handle {
    /// Takes the bits of so many bytes from both buckets, and waits until both have earned them.
    ///
    /// # Errors
    /// ESHUTDOWN: the client has gone or the server stops. The bits are given back.
    fn wait(&self, direction: Direction, bytes: usize) -> Result<()> {
        let bits = bytes as u64 * 8;
        let buckets = [
            (&self.server, SERVER, &self.shared.buckets),
            (&self.connection, CONNECTION, &self.own),
        ];
        let mut taken = Vec::with_capacity(buckets.len());
        let mut delay = Duration::ZERO;
        for (limit, index, buckets) in buckets {
            if let Some(rate) = limit.now(&self.shared.last[index]) {
                let bucket = buckets.of(direction);
                delay = delay.max(bucket.take(bits, rate)?);
                taken.push((bucket, rate));
            }
        }
        if delay.is_zero() {
            return Ok(());
        }
        client::sleep(self.client.as_deref(), delay)
            .inspect_err(|_| taken.iter().for_each(|(bucket, rate)| bucket.give_back(bits, *rate)))
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};
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
        for (name, least) in [("rate", 0.3), ("connection-rate", 0.1)] {
            let layer = testing::layer(&disk, &["rate"], &[(name, "80000"), PARAMS[1]]);
            let (one, two) = (testing::open(&layer), testing::open(&layer));
            let read = |next| took(|| drop(testing::read(next, 2000, 0)));
            let waited = read(&one) + read(&two);
            assert!(waited >= least, "{name}: {waited}");
        }
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
