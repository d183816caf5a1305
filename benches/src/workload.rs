//! What is measured, and what the results should be: one line per workload.
#![forbid(unsafe_code)]

use crate::load::Access;
use crate::loaded::Loaded;
use crate::plan::{Export, Transport};
use crate::stack::{self, Stack};
use crate::target::Target;
use crate::unit::Unit;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Our load generator on one connection.
    Load(Access),
    /// Our load generator on files that are not in the page cache.
    Cold(Access),
    /// Our load generator on several connections at once.
    Many(Access, usize),
    /// The same, with processors of their own for server and clients: what each client gets.
    Shares(Access, usize),
    /// fio with libnbd.
    Fio(Access),
    /// nbdcopy of the whole export, over several connections.
    Copy,
    /// nbdcopy of the whole export with one connection and these requests.
    CopyAs(Access),
    /// Connections, so many at a time.
    Connects(usize),
    /// Connections, one at a time, beside so many idle ones.
    ConnectsBeside(usize),
    /// Connections by libnbd, so many at a time.
    LibnbdConnects(usize),
    /// Memory with so many connections, a second after the last request.
    Connected(usize),
    /// Memory with so many connections that have been idle for several seconds.
    Idle(usize),
    /// The first request of a connection that has been idle for several seconds.
    Wake,
    /// From the start of the program to the first block read.
    Startup,
    /// Block status of the whole export.
    Map,
    /// The same again and again; a request is one extent of a reply.
    Maps,
    /// Connections that ask for the names of all exports, so many of them; a request is one name.
    Lists(u64),
}

/// One line of the results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Which plot it belongs to.
    pub(crate) family: &'static str,
    pub(crate) unit: Unit,
    pub(crate) export: Export,
    pub(crate) transport: Transport,
    pub(crate) job: Job,
    pub(crate) targets: &'static [Target],
    /// Whether the quick run has it.
    pub(crate) quick: bool,
}

/// The families in the order of the plots, with their titles.
pub(crate) const FAMILIES: [(&str, &str); 11] = [
    ("small", "4 KiB requests, file in the page cache, Unix socket"),
    ("memory", "4 KiB reads without a file, Unix socket"),
    ("large", "256 KiB requests, Unix socket"),
    ("filters", "Filters over a file in the page cache, Unix socket"),
    ("forwarded", "The nbd plugin in front of qemu-nbd, and qemu-nbd itself, Unix socket"),
    ("loaded", "Debian's file plugin, and a script in Python, in one process, Unix socket"),
    ("tcp", "TCP"),
    ("tls", "TLS over TCP, client libnbd"),
    ("connections", "Connections per second"),
    ("cost", "Memory of connections, time to wake, to start, to map"),
    ("cold", "4 KiB random reads, file not in the page cache"),
];

const fn small(depth: usize, batched: bool) -> Access {
    Access { write: false, block: 4096, depth, random: true, batched }
}

const fn large(write: bool) -> Access {
    Access { write, block: 256 * 1024, depth: 8, random: false, batched: true }
}

const fn writing(access: Access) -> Access {
    Access { write: true, ..access }
}

const fn workload(name: &'static str, family: &'static str, export: Export, job: Job) -> Workload {
    Workload {
        name,
        family,
        unit: Unit::KiloOps,
        export,
        transport: Transport::Unix,
        job,
        targets: &[],
        quick: false,
    }
}

/// Random reads of 4 KiB through filters.
const fn filtered_small(name: &'static str, stack: &'static Stack) -> Workload {
    workload(name, "filters", Export::Filtered(stack), Load(small(16, true))).want(&[Nbdkit(1.0)])
}

/// Reads of 256 KiB through filters, in order.
const fn filtered_large(name: &'static str, stack: &'static Stack) -> Workload {
    workload(name, "filters", Export::Filtered(stack), Load(large(false)))
        .unit(Unit::Megabytes)
        .want(&[Nbdkit(1.0)])
}

/// What the nbd plugin passes on, beside what the upstream server serves itself.
const fn forwarded(name: &'static str, access: Access) -> Workload {
    workload(name, "forwarded", Export::Forwarded(access.write), Load(access))
        .want(&[Nbdkit(1.0), Best(0.7)])
}

/// A plugin in a file, in one process for all clients.
const fn loaded(name: &'static str, plugin: Loaded, job: Job) -> Workload {
    workload(name, "loaded", Export::Loaded(plugin), job).want(&[Nbdkit(1.1)])
}

/// A row of growth, whose parameter is the end of its name.
const fn growing(name: &'static str, export: Export, job: Job) -> Workload {
    workload(name, "growth", export, job)
}

/// Names that nbdkit's interface allows in a list of exports: of more files, these are the first.
const MOST_LISTED: u64 = 10_000;

/// The largest export: 8 EiB, less a block, for offsets have 63 bits.
const MOST: u64 = (1 << 63) - 4096;

impl Workload {
    const fn over(self, transport: Transport) -> Workload {
        Workload { transport, ..self }
    }

    const fn unit(self, unit: Unit) -> Workload {
        Workload { unit, ..self }
    }

    const fn want(self, targets: &'static [Target]) -> Workload {
        Workload { targets, ..self }
    }

    const fn quick(self) -> Workload {
        Workload { quick: true, ..self }
    }
}

use Job::{
    Cold, Connected, Connects, ConnectsBeside, Copy as CopyAll, CopyAs, Fio, Idle, LibnbdConnects,
    Lists, Load, Many, Map, Maps, Shares, Startup, Wake,
};
use Target::{Best, Cpu, CpuPerByte, Fair, Floor, Most, Nbdkit};
use Transport::{Certificates, Psk, Tcp};

/// Every workload, in the order of the table.
pub(crate) const WORKLOADS: &[Workload] = &[
    workload("4k-read-d1", "small", Export::File, Load(small(1, true)))
        .want(&[Nbdkit(1.25)])
        .quick(),
    workload("4k-read-d16", "small", Export::File, Load(small(16, true)))
        .want(&[Nbdkit(2.5), Floor(0.8), Cpu(1.3)])
        .quick(),
    workload("4k-read-d64", "small", Export::File, Load(small(64, true)))
        .want(&[Nbdkit(2.5), Floor(0.8), Cpu(1.3)])
        .quick(),
    workload("4k-read-single-d16", "small", Export::File, Load(small(16, false)))
        .want(&[Nbdkit(2.0)])
        .quick(),
    workload("4k-read-single-d64", "small", Export::File, Load(small(64, false))),
    workload("4k-read-libnbd-d16", "small", Export::File, Fio(small(16, false)))
        .want(&[Best(1.5)])
        .quick(),
    workload("4k-write-d16", "small", Export::Writable, Load(writing(small(16, true))))
        .want(&[Nbdkit(2.0)])
        .quick(),
    workload("4k-write-single-d16", "small", Export::Writable, Load(writing(small(16, false)))),
    workload("clients-8-d1", "small", Export::File, Many(small(1, true), 8)),
    workload("clients-8-d8", "small", Export::File, Many(small(8, true), 8))
        .want(&[Nbdkit(2.0)])
        .quick(),
    workload("shares-8-d8", "small", Export::File, Shares(small(8, true), 8))
        .want(&[Nbdkit(1.0), Fair(0.8)])
        .quick(),
    workload("memory-d1", "memory", Export::Memory, Load(small(1, true))),
    workload("memory-d16", "memory", Export::Memory, Load(small(16, true))),
    workload("memory-d64", "memory", Export::Memory, Load(small(64, true))),
    workload("null-d1", "memory", Export::Null, Load(small(1, true))),
    workload("null-d16", "memory", Export::Null, Load(small(16, true))),
    workload("null-d64", "memory", Export::Null, Load(small(64, true)))
        .want(&[Nbdkit(4.0), Best(2.5)])
        .quick(),
    workload("256k-read-d8", "large", Export::File, Load(large(false)))
        .unit(Unit::Megabytes)
        .want(&[Best(1.5), CpuPerByte(1.0 / 3.0)])
        .quick(),
    workload("256k-write-d8", "large", Export::Writable, Load(large(true)))
        .unit(Unit::Megabytes)
        .want(&[Best(1.2)])
        .quick(),
    workload("nbdcopy-1g", "large", Export::Large, CopyAll)
        .unit(Unit::Megabytes)
        .want(&[Best(1.6)])
        .quick(),
    filtered_small("offset-4k", &stack::OFFSET).quick(),
    filtered_large("offset-256k", &stack::OFFSET),
    filtered_small("partition-4k", &stack::PARTITION),
    filtered_large("partition-256k", &stack::PARTITION),
    filtered_small("blocksize-4k", &stack::BLOCKSIZE),
    filtered_large("blocksize-256k", &stack::BLOCKSIZE),
    filtered_small("cache-miss-4k", &stack::CACHE_MISS),
    filtered_large("cache-miss-256k", &stack::CACHE_MISS),
    filtered_small("cache-hit-4k", &stack::CACHE_HIT),
    filtered_large("cache-hit-256k", &stack::CACHE_HIT),
    filtered_small("cow-4k", &stack::COW).quick(),
    filtered_large("cow-256k", &stack::COW),
    filtered_large("readahead-256k", &stack::READAHEAD),
    filtered_small("luks-4k", &stack::LUKS),
    filtered_large("luks-256k", &stack::LUKS),
    filtered_small("xz-4k", &stack::XZ),
    filtered_large("xz-256k", &stack::XZ),
    filtered_small("gzip-4k", &stack::GZIP),
    filtered_large("gzip-256k", &stack::GZIP),
    filtered_small("qcow2-4k", &stack::QCOW2).want(&[Best(1.0)]),
    filtered_large("qcow2-256k", &stack::QCOW2).want(&[Best(1.0)]),
    filtered_small("qcow2-zlib-4k", &stack::COMPRESSED_QCOW2).want(&[Best(1.0)]),
    filtered_large("qcow2-zlib-256k", &stack::COMPRESSED_QCOW2).want(&[Best(1.0)]),
    forwarded("nbd-4k-read-d1", small(1, true)),
    forwarded("nbd-4k-read-d16", small(16, true)).quick(),
    forwarded("nbd-4k-read-single-d16", small(16, false)),
    forwarded("nbd-4k-write-d16", writing(small(16, true))),
    forwarded("nbd-256k-read-d8", large(false)).unit(Unit::Megabytes),
    forwarded("nbd-256k-write-d8", large(true)).unit(Unit::Megabytes),
    loaded("so-4k-read-d1", Loaded::File, Load(small(1, true))),
    loaded("so-4k-read-d16", Loaded::File, Load(small(16, true))).quick(),
    loaded("so-clients-8-d8", Loaded::File, Many(small(8, true), 8)),
    loaded("python-4k-read-d16", Loaded::Python, Load(small(16, true))),
    loaded("python-clients-8-d8", Loaded::Python, Many(small(8, true), 8)),
    workload("tcp-4k-read-d16", "tcp", Export::File, Load(small(16, true)))
        .over(Tcp)
        .want(&[Best(2.0)])
        .quick(),
    workload("tcp-256k-read-d8", "tcp", Export::File, Load(large(false)))
        .over(Tcp)
        .unit(Unit::Megabytes)
        .want(&[Best(1.15)])
        .quick(),
    workload("tls-4k-read-d16", "tls", Export::File, CopyAs(small(16, false)))
        .over(Certificates)
        .want(&[Best(1.6)])
        .quick(),
    workload("tls-256k-read-d8", "tls", Export::File, CopyAs(large(false)))
        .over(Certificates)
        .unit(Unit::Megabytes)
        .want(&[Best(1.15)])
        .quick(),
    workload("psk-4k-read-d16", "tls", Export::File, CopyAs(small(16, false)))
        .over(Psk)
        .want(&[Best(3.0)]),
    workload("psk-256k-read-d8", "tls", Export::File, CopyAs(large(false)))
        .over(Psk)
        .unit(Unit::Megabytes)
        .want(&[Best(3.0)]),
    workload("connects-1", "connections", Export::File, Connects(1))
        .unit(Unit::Connections)
        .want(&[Nbdkit(1.5)])
        .quick(),
    workload("connects-8", "connections", Export::File, Connects(8))
        .unit(Unit::Connections)
        .want(&[Nbdkit(2.0)])
        .quick(),
    workload("tls-connects-1", "connections", Export::File, LibnbdConnects(1))
        .over(Certificates)
        .unit(Unit::Connections),
    workload("tls-connects-8", "connections", Export::File, LibnbdConnects(8))
        .over(Certificates)
        .unit(Unit::Connections),
    workload("psk-connects-1", "connections", Export::File, LibnbdConnects(1))
        .over(Psk)
        .unit(Unit::Connections)
        .want(&[Nbdkit(1.5)]),
    workload("psk-connects-8", "connections", Export::File, LibnbdConnects(8))
        .over(Psk)
        .unit(Unit::Connections)
        .want(&[Nbdkit(1.5)]),
    workload("connected-100", "cost", Export::File, Connected(100)).unit(Unit::Mebibytes),
    workload("connected-1000", "cost", Export::File, Connected(1000)).unit(Unit::Mebibytes),
    workload("idle-1000", "cost", Export::File, Idle(1000))
        .unit(Unit::Mebibytes)
        .want(&[Nbdkit(2.0)])
        .quick(),
    workload("idle-wake", "cost", Export::File, Wake).unit(Unit::Milliseconds).want(&[Most(1.0)]),
    workload("start-up", "cost", Export::File, Startup)
        .unit(Unit::Milliseconds)
        .want(&[Most(5.0), Nbdkit(0.4)])
        .quick(),
    workload("map-10g", "cost", Export::Fragmented, Map)
        .unit(Unit::Milliseconds)
        .want(&[Nbdkit(1.8)])
        .quick(),
    workload("cold-d1", "cold", Export::Large, Cold(small(1, true))),
    workload("cold-d16", "cold", Export::Large, Cold(small(16, true))),
    workload("cold-d64", "cold", Export::Large, Cold(small(64, true))),
    growing("growth-clients-1", Export::File, Many(small(8, true), 1)),
    growing("growth-clients-2", Export::File, Many(small(8, true), 2)),
    growing("growth-clients-4", Export::File, Many(small(8, true), 4)),
    growing("growth-clients-8", Export::File, Many(small(8, true), 8)),
    growing("growth-clients-64", Export::File, Many(small(8, true), 64)),
    growing("growth-clients-512", Export::File, Many(small(8, true), 512)),
    growing("growth-connects-1", Export::File, Connects(1)).unit(Unit::Connections),
    growing("growth-connects-2", Export::File, Connects(2)).unit(Unit::Connections),
    growing("growth-connects-4", Export::File, Connects(4)).unit(Unit::Connections),
    growing("growth-connects-8", Export::File, Connects(8)).unit(Unit::Connections),
    growing("growth-connects-64", Export::File, Connects(64)).unit(Unit::Connections),
    growing("growth-beside-0", Export::File, ConnectsBeside(0)).unit(Unit::Connections),
    growing("growth-beside-8", Export::File, ConnectsBeside(8)).unit(Unit::Connections),
    growing("growth-beside-64", Export::File, ConnectsBeside(64)).unit(Unit::Connections),
    growing("growth-beside-512", Export::File, ConnectsBeside(512)).unit(Unit::Connections),
    growing("growth-filters-0", Export::Layers(0), Load(small(16, true))),
    growing("growth-filters-1", Export::Layers(1), Load(small(16, true))),
    growing("growth-filters-2", Export::Layers(2), Load(small(16, true))),
    growing("growth-filters-3", Export::Layers(3), Load(small(16, true))),
    growing("growth-filters-4", Export::Layers(4), Load(small(16, true))),
    growing("growth-filters-5", Export::Layers(5), Load(small(16, true))),
    growing("growth-filters-6", Export::Layers(6), Load(small(16, true))),
    growing("growth-size-1G", Export::Empty(1 << 30), Load(small(16, true))),
    growing("growth-size-1T", Export::Empty(1 << 40), Load(small(16, true))),
    growing("growth-size-1P", Export::Empty(1 << 50), Load(small(16, true))),
    growing("growth-size-8E", Export::Empty(MOST), Load(small(16, true))),
    growing("growth-map-10", Export::Sparse(10), Maps),
    growing("growth-map-100", Export::Sparse(100), Maps),
    growing("growth-map-1000", Export::Sparse(1_000), Maps),
    growing("growth-map-10000", Export::Sparse(10_000), Maps),
    growing("growth-map-100000", Export::Sparse(100_000), Maps),
    growing("growth-map-1000000", Export::Sparse(1_000_000), Maps),
    growing("growth-sparse-10", Export::Sparse(10), Load(small(16, true))),
    growing("growth-sparse-100", Export::Sparse(100), Load(small(16, true))),
    growing("growth-sparse-1000", Export::Sparse(1_000), Load(small(16, true))),
    growing("growth-sparse-10000", Export::Sparse(10_000), Load(small(16, true))),
    growing("growth-sparse-100000", Export::Sparse(100_000), Load(small(16, true))),
    growing("growth-sparse-1000000", Export::Sparse(1_000_000), Load(small(16, true))),
    growing("growth-dir-10", Export::Directory(10), Connects(1)).unit(Unit::Connections),
    growing("growth-dir-1000", Export::Directory(1_000), Connects(1)).unit(Unit::Connections),
    growing("growth-dir-100000", Export::Directory(100_000), Connects(1)).unit(Unit::Connections),
    growing("growth-list-10", Export::Directory(10), Lists(10)),
    growing("growth-list-1000", Export::Directory(1_000), Lists(1_000)),
    growing("growth-list-10000", Export::Directory(10_000), Lists(MOST_LISTED)),
    growing("growth-list-100000", Export::Directory(100_000), Lists(MOST_LISTED)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_families_have_titles() {
        for (index, workload) in WORKLOADS.iter().enumerate() {
            assert!(WORKLOADS[..index].iter().all(|other| other.name != workload.name));
            let plotted = FAMILIES.iter().any(|(family, _)| *family == workload.family);
            // Rows of growth have tables instead.
            assert!(plotted || workload.family == "growth");
        }
    }
}
