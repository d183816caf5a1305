//! One measurement: one workload, one server, one round. The server is started for it and stopped
//! after it.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbd_protocol::constants::Command;

use crate::client::Client;
use crate::failure::Failure;
use crate::fixtures::{FRAGMENTED_STEP, Fixtures, IN_DIRECTORY_SIZE, drop_cache};
use crate::libnbd;
use crate::load::{Access, Load, Tally, run_together};
use crate::map;
use crate::pattern::Pattern;
use crate::plan::{Export, FILE_MIB, Kind, LARGE_MIB};
use crate::process_tree::{SyscallCounter, cpu_time, pss_kib};
use crate::processors::Apart;
use crate::replies::{Check, Replies};
use crate::server::Server;
use crate::unit::Unit;
use crate::workload::{Job, Workload};

/// How much of an export is compared byte for byte before the first timed run.
const VERIFIED: u64 = 8 << 20;

/// Starts of one round, of which the median counts.
const STARTS: usize = 5;

/// What holds for all measurements of a run.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Our server.
    pub(crate) ours: PathBuf,
    pub(crate) fixtures: Fixtures,
    /// Of each timed run.
    pub(crate) time: Duration,
    /// Whether clients ask for structured replies.
    pub(crate) structured: bool,
}

/// What one measurement gave.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measurement {
    /// In the workload's unit.
    pub(crate) value: f64,
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    /// Of the server's whole process tree, during the timed run.
    pub(crate) cpu: Duration,
    /// Of the server's whole process tree, after the timed run, clients still connected where they
    /// are ours.
    pub(crate) pss_kib: u64,
    /// Per request; counted in a run of its own, in the first round.
    pub(crate) syscalls: Option<f64>,
    /// Requests of the slowest of several clients, divided by those of the fastest.
    pub(crate) fairness: Option<f64>,
}

impl Measurement {
    /// Nanoseconds of server CPU time per request.
    pub(crate) fn cpu_per_operation(&self) -> Option<f64> {
        (self.operations > 0).then(|| self.cpu.as_secs_f64() * 1e9 / self.operations as f64)
    }

    /// Milliseconds of server CPU time per gigabyte (10^9 bytes).
    pub(crate) fn cpu_per_gigabyte(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.cpu.as_secs_f64() * 1e3 / (self.bytes as f64 / 1e9))
    }
}

/// Measures once. `first` asks for what is not timed: full verification and counting of system
/// calls.
pub(crate) fn measure(
    workload: &Workload,
    kind: Kind,
    setting: &Setting,
    first: bool,
) -> Result<Measurement, Failure> {
    if workload.job == Job::Startup {
        return startup(workload, kind, setting);
    }
    let Setting { ours, fixtures, .. } = setting;
    let apart = matches!(workload.job, Job::Shares(..)).then(Apart::for_server).transpose()?;
    let server = Server::start(kind, ours, workload.export, workload.transport, fixtures)?;
    let run = Run { workload, setting, first };
    let result = match workload.job {
        Job::Load(access) => run.load(&server, access),
        Job::Cold(access) => run.cold(&server, access),
        Job::Many(access, clients) => run.many(&server, access, clients),
        Job::Shares(access, clients) => {
            apart.as_ref().map_or(Ok(()), Apart::move_client)?;
            run.many(&server, access, clients)
        }
        Job::Fio(access) => run.with_libnbd(&server, |uri| libnbd::fio(uri, access, setting.time)),
        Job::Copy => run.with_libnbd(&server, |uri| libnbd::copy(uri, LARGE_MIB << 20)),
        Job::CopyAs(access) => {
            run.with_libnbd(&server, |uri| libnbd::copy_as(uri, FILE_MIB << 20, access))
        }
        Job::LibnbdConnects(processes) => {
            run.timed(&server, || libnbd::connects(&server.uri(), processes, setting.time))
        }
        Job::Connects(clients) => run.connects(&server, clients),
        Job::ConnectsBeside(idle) => run.connects_beside(&server, idle),
        Job::Connected(clients) => run.memory(&server, clients, SETTLE),
        Job::Idle(clients) => run.memory(&server, clients, IDLE),
        Job::Wake => run.wake(&server),
        Job::Map => run.map(&server),
        Job::Maps => run.maps(&server),
        Job::Lists(exports) => run.lists(&server, exports),
        Job::Startup => startup(workload, kind, setting),
    };
    result.map_err(|failure| match failure {
        Failure::Unavailable(_) => Failure::Unavailable(server.complaint(&failure)),
        Failure::Wrong(_) => failure,
    })
}

/// What the jobs have in common.
struct Run<'a> {
    workload: &'a Workload,
    setting: &'a Setting,
    first: bool,
}

impl Run<'_> {
    fn pattern(&self) -> Pattern {
        self.workload.export.pattern()
    }

    fn connect(&self, server: &Server) -> Result<Client, Failure> {
        server.connect(self.setting.structured, matches!(self.workload.job, Job::Map | Job::Maps))
    }

    /// Does the job and takes what it cost the server.
    fn timed(
        &self,
        server: &Server,
        job: impl FnOnce() -> Result<Tally, Failure>,
    ) -> Result<Measurement, Failure> {
        let before = cpu_time(server.pid);
        let tally = job()?;
        let cpu = cpu_time(server.pid).saturating_sub(before);
        Ok(Measurement {
            value: value(self.workload.unit, &tally),
            operations: tally.operations,
            bytes: tally.bytes,
            cpu,
            pss_kib: pss_kib(server.pid),
            ..Measurement::default()
        })
    }

    fn load(&self, server: &Server, access: Access) -> Result<Measurement, Failure> {
        let mut load = Load::new(self.connect(server)?, access, 1)?;
        let check = Check::Ends(self.pattern());
        if self.workload.export == Export::Memory && server.file.is_none() {
            load.fill()?;
        }
        if self.first && !access.write {
            load.verify(self.pattern(), VERIFIED)?;
        }
        load.run(self.setting.time / 5, check)?;
        let mut measurement = self.timed(server, || load.run(self.setting.time, check))?;
        if self.first
            && let Some(counter) = SyscallCounter::start(server.pid)
        {
            let tally = load.run(self.setting.time / 5, check)?;
            let calls = counter.stop().filter(|_| tally.operations > 0);
            measurement.syscalls = calls.map(|calls| calls as f64 / tally.operations as f64);
        }
        if access.write {
            load.verify_written()?;
        }
        Ok(measurement)
    }

    fn cold(&self, server: &Server, access: Access) -> Result<Measurement, Failure> {
        let mut load = Load::new(self.connect(server)?, access, 1)?;
        let Some(file) = &server.file else {
            return Err(Failure::Unavailable("no file that could be cold".to_owned()));
        };
        drop_cache(file)?;
        self.timed(server, || load.run(self.setting.time, Check::Ends(Pattern::Hashed)))
    }

    fn many(
        &self,
        server: &Server,
        access: Access,
        clients: usize,
    ) -> Result<Measurement, Failure> {
        let check = Check::Ends(self.pattern());
        // With many clients each has less verified, so that it does not take minutes.
        let share = clients.div_ceil(8) as u64;
        let mut loads = Vec::new();
        for seed in 0..clients {
            let mut load = Load::new(self.connect(server)?, access, seed as u64)?;
            if self.first {
                load.verify(self.pattern(), VERIFIED / share)?;
            }
            loads.push(load);
        }
        // All at once, for the first may have been idle while the others came, and a worker that
        // was idle has given memory back, which its next requests pay for.
        run_together(&mut loads, self.setting.time / 5, check)?;
        let mut tallies = Vec::new();
        let mut measurement = self.timed(server, || {
            let start = Instant::now();
            tallies = run_together(&mut loads, self.setting.time, check)?;
            let operations = tallies.iter().map(|tally| tally.operations).sum();
            let bytes = tallies.iter().map(|tally| tally.bytes).sum();
            Ok(Tally { operations, bytes, elapsed: start.elapsed() })
        })?;
        let slowest = tallies.iter().map(|tally| tally.operations).min().unwrap_or(0);
        let fastest = tallies.iter().map(|tally| tally.operations).max().unwrap_or(0);
        measurement.fairness = (fastest > 0).then(|| slowest as f64 / fastest as f64);
        Ok(measurement)
    }

    fn with_libnbd(
        &self,
        server: &Server,
        job: impl FnOnce(&str) -> Result<Tally, Failure>,
    ) -> Result<Measurement, Failure> {
        let uri = server.uri();
        if self.first {
            let size = if self.workload.export == Export::Large { LARGE_MIB } else { FILE_MIB };
            libnbd::verify(&uri, self.pattern(), size << 20)?;
        }
        self.timed(server, || job(&uri))
    }

    fn connects(&self, server: &Server, clients: usize) -> Result<Measurement, Failure> {
        let count = Mutex::new(0);
        let size = match self.workload.export {
            Export::Directory(_) => IN_DIRECTORY_SIZE,
            _ => FILE_MIB << 20,
        };
        self.timed(server, || {
            let start = Instant::now();
            parallel(0..clients, |_| {
                let mut mine = 0;
                while start.elapsed() < self.setting.time {
                    let mut client = self.connect(server)?;
                    if client.size != size {
                        return Err(Failure::Wrong(format!("export size: {}", client.size)));
                    }
                    client.send(Command::DISC, 0, 0)?;
                    mine += 1;
                }
                *count.lock().unwrap_or_else(PoisonError::into_inner) += mine;
                Ok(())
            })?;
            let operations = *count.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Tally { operations, bytes: 0, elapsed: start.elapsed() })
        })
    }

    fn connects_beside(&self, server: &Server, idle: usize) -> Result<Measurement, Failure> {
        let idle: Result<Vec<Client>, Failure> = (0..idle).map(|_| self.connect(server)).collect();
        let idle = idle?;
        let measurement = self.connects(server, 1)?;
        for mut client in idle {
            first_block(&mut client)?;
        }
        Ok(measurement)
    }

    fn memory(
        &self,
        server: &Server,
        clients: usize,
        after: Duration,
    ) -> Result<Measurement, Failure> {
        let clients: Result<Vec<Client>, Failure> =
            (0..clients).map(|_| self.connect(server)).collect();
        let clients = clients?;
        std::thread::sleep(after);
        let mut measurement = self.timed(server, || Ok(Tally::default()))?;
        measurement.value = measurement.pss_kib as f64 / 1024.0;
        // Each is still there and answers.
        for mut client in clients {
            first_block(&mut client)?;
        }
        Ok(measurement)
    }

    fn wake(&self, server: &Server) -> Result<Measurement, Failure> {
        const CLIENTS: usize = 20;
        let clients: Result<Vec<Client>, Failure> =
            (0..CLIENTS).map(|_| self.connect(server)).collect();
        let mut clients = clients?;
        for client in &mut clients {
            first_block(client)?;
        }
        std::thread::sleep(IDLE);
        let mut times = Vec::new();
        let mut measurement = self.timed(server, || {
            for client in &mut clients {
                let start = Instant::now();
                first_block(client)?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(Tally { operations: CLIENTS as u64, ..Tally::default() })
        })?;
        times.sort_by(f64::total_cmp);
        measurement.value = times[CLIENTS / 2];
        Ok(measurement)
    }

    fn map(&self, server: &Server) -> Result<Measurement, Failure> {
        let mut client = self.connect(server)?;
        self.timed(server, || map::map(&mut client, FRAGMENTED_STEP))
    }

    fn maps(&self, server: &Server) -> Result<Measurement, Failure> {
        let mut client = self.connect(server)?;
        let Pattern::Pieces(step) = self.pattern() else {
            return Err(Failure::Unavailable("the export has no pieces".to_owned()));
        };
        map::map(&mut client, step)?;
        self.timed(server, || map::map_for(&mut client, step, self.setting.time))
    }

    fn lists(&self, server: &Server, exports: u64) -> Result<Measurement, Failure> {
        self.timed(server, || {
            let start = Instant::now();
            let mut operations = 0;
            while operations == 0 || start.elapsed() < self.setting.time {
                let came = Client::list(&server.address)?;
                if came != exports {
                    let what = format!("NBD_OPT_LIST: {came} of {exports} names came");
                    return Err(Failure::Unavailable(what));
                }
                operations += came;
            }
            Ok(Tally { operations, bytes: 0, elapsed: start.elapsed() })
        })
    }
}

/// Before the memory of clients is measured that have been at work a moment ago.
const SETTLE: Duration = Duration::from_secs(1);
/// And of those that are idle: longer than it takes until a server does something about it.
const IDLE: Duration = Duration::from_secs(7);

fn startup(workload: &Workload, kind: Kind, setting: &Setting) -> Result<Measurement, Failure> {
    let mut times = Vec::new();
    let mut last = Measurement::default();
    for _ in 0..STARTS {
        let Setting { ours, fixtures, .. } = setting;
        let mut server = Server::launch(kind, ours, workload.export, workload.transport, fixtures)?;
        let mut client = server.wait_for(|server| server.connect(setting.structured, false))?;
        first_block(&mut client)?;
        times.push(server.started.elapsed().as_secs_f64() * 1e3);
        let (cpu, pss_kib) = (cpu_time(server.pid), pss_kib(server.pid));
        last = Measurement { operations: 1, cpu, pss_kib, ..Measurement::default() };
    }
    times.sort_by(f64::total_cmp);
    Ok(Measurement { value: times[STARTS / 2], ..last })
}

/// Reads the first block of the hashed pattern.
fn first_block(client: &mut Client) -> Result<(), Failure> {
    let mut replies = Replies::new(1, Check::All(Pattern::Hashed));
    replies.slots[0].begin(0, 4096);
    client.send(Command::READ, 0, 4096)?;
    client.wait(&mut replies, &mut [0; 8192])
}

/// Does something for each item in a thread of its own. The first failure counts.
fn parallel<T: Send>(
    items: impl Iterator<Item = T>,
    job: impl Fn(T) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.map(|item| scope.spawn(|| job(item))).collect();
        let results: Vec<_> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Failure::Wrong("a client panicked".to_owned())))
            })
            .collect();
        results.into_iter().collect()
    })
}

fn value(unit: Unit, tally: &Tally) -> f64 {
    let seconds = tally.elapsed.as_secs_f64().max(1e-9);
    match unit {
        Unit::KiloOps => tally.operations as f64 / seconds / 1e3,
        Unit::Megabytes => tally.bytes as f64 / seconds / 1e6,
        Unit::Connections => tally.operations as f64 / seconds,
        Unit::Milliseconds => seconds * 1e3,
        Unit::Mebibytes => 0.0,
    }
}
