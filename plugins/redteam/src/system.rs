//! Attacks on the machine and on other processes.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::{Pid, Uid, setresuid};

use crate::raw;

fn ok() -> String {
    "ok".to_owned()
}

pub(crate) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

pub(crate) fn open(path: &str) -> nix::Result<String> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map(|_| ok())
}

/// To a port of this machine.
pub(crate) fn connect(port: u16) -> nix::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect(address).map(|_| ok()).map_err(|error| errno(&error))
}

pub(crate) fn connect_unix(path: &str) -> nix::Result<String> {
    net::UnixStream::connect(path).map(|_| ok()).map_err(|error| errno(&error))
}

pub(crate) fn connect_abstract(name: &str) -> nix::Result<String> {
    net::SocketAddr::from_abstract_name(name)
        .and_then(|address| net::UnixStream::connect_addr(&address))
        .map(|_| ok())
        .map_err(|error| errno(&error))
}

/// If it succeeds, this process is another program, and its client hears no more.
pub(crate) fn exec(path: &str) -> nix::Result<String> {
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    let none: [CString; 0] = [];
    nix::unistd::execve(&path, std::slice::from_ref(&path), &none).map(|_| ok())
}

pub(crate) fn fork() -> nix::Result<String> {
    raw::fork().map(|pid| format!("ok {pid}"))
}

pub(crate) fn mount() -> nix::Result<String> {
    let none = None::<&str>;
    nix::mount::mount(Some("none"), "/tmp", Some("tmpfs"), nix::mount::MsFlags::empty(), none)
        .map(|()| ok())
}

pub(crate) fn become_root() -> nix::Result<String> {
    let root = Uid::from_raw(0);
    setresuid(root, root, root).map(|()| ok())
}

/// Maps memory by the MiB, and does not even use it.
pub(crate) fn fill_memory(mebibytes: usize) -> nix::Result<String> {
    let protection = libc::c_long::from(libc::PROT_READ | libc::PROT_WRITE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    for have in 0..mebibytes {
        let arguments = [0, 1 << 20, protection, flags.into(), -1, 0];
        if let Err(errno) = raw::call(libc::SYS_mmap, &arguments) {
            return Ok(format!("errno {} after {have}", errno as i32));
        }
    }
    Ok(ok())
}

/// The same with memory that no limit on data counts.
pub(crate) fn fill_shared(mebibytes: usize) -> nix::Result<String> {
    let protection = libc::c_long::from(libc::PROT_READ | libc::PROT_WRITE);
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    for _ in 0..mebibytes {
        raw::call(libc::SYS_mmap, &[0, 1 << 20, protection, flags.into(), -1, 0])?;
    }
    Ok(ok())
}

/// The same with a file in memory.
pub(crate) fn fill_memfd(mebibytes: u64) -> nix::Result<String> {
    let file = nix::sys::memfd::memfd_create(c"red", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let block = vec![1; 1 << 20];
    for _ in 0..mebibytes {
        nix::unistd::write(&file, &block)?;
    }
    Ok(ok())
}

pub(crate) fn fill_descriptors(count: usize) -> nix::Result<String> {
    let mut copies = Vec::new();
    let null = std::io::stdin();
    for have in 0..count {
        match fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(3)) {
            Ok(copy) => copies.push(copy),
            Err(errno) => {
                let text = format!("errno {} after {have}", errno as i32);
                close(&copies);
                return Ok(text);
            }
        }
    }
    close(&copies);
    Ok(ok())
}

fn close(numbers: &[i32]) {
    for number in numbers {
        let _ = nix::unistd::close(*number);
    }
}

pub(crate) fn raise_descriptors() -> nix::Result<String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| ok())
}

/// Whether a process could be signalled; it is not.
pub(crate) fn signal(pid: i32) -> nix::Result<String> {
    kill(Pid::from_raw(pid), None).map(|()| ok())
}

pub(crate) fn trace(pid: i32) -> nix::Result<String> {
    const PTRACE_SEIZE: libc::c_long = 0x4206;
    raw::call(libc::SYS_ptrace, &[PTRACE_SEIZE, pid.into()]).map(|_| ok())
}

/// Reads a byte of another process, from an address that is in use in every fork of ours.
pub(crate) fn read_memory(pid: i32) -> nix::Result<String> {
    let mut byte = [0];
    static COMMON: u8 = 1;
    let base = std::ptr::from_ref(&COMMON) as usize;
    let remote = [RemoteIoVec { base, len: 1 }];
    process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut byte)], &remote).map(|_| ok())
}

/// Recurses until the stack ends.
#[expect(unconditional_recursion, reason = "until the stack ends")]
pub(crate) fn overflow_stack(depth: u64) -> u64 {
    let page = std::hint::black_box([depth; 512]);
    overflow_stack(depth + 1) + page[depth as usize % 512]
}

/// Prints to standard error.
///
/// # Errors
/// EIO
pub(crate) fn print(text: &[u8], times: usize) -> nix::Result<String> {
    use std::io::Write;
    let mut stderr = std::io::stderr();
    (0..times).try_for_each(|_| stderr.write_all(text)).map_err(|_| Errno::EIO)?;
    Ok("ok".to_owned())
}
