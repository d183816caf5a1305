//! The files that servers serve, and certificates and keys. Made once, kept for the next run,
//! checked before use.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::failure::Failure;
use crate::pattern::{PIECE, Pattern};

const CHUNK: usize = 1 << 20;

/// Bytes of the file that is mapped.
pub(crate) const FRAGMENTED_SIZE: u64 = 10 << 30;
/// Each so many bytes of it begin with [`PIECE`] bytes of data; the rest is a hole.
pub(crate) const FRAGMENTED_STEP: u64 = 128 << 10;

/// A directory of fixtures on a disk, and one in memory.
#[derive(Debug)]
pub(crate) struct Fixtures {
    dir: PathBuf,
    memory: PathBuf,
    /// Files that were found right, or made, in this run.
    ready: Mutex<HashSet<PathBuf>>,
}

impl Fixtures {
    /// In `dir`, which is made.
    pub(crate) fn new(dir: &Path) -> Result<Fixtures, Failure> {
        fs::create_dir_all(dir).map_err(|error| Failure::io("mkdir", dir.display(), &error))?;
        let dir = dir.canonicalize()?;
        let memory = PathBuf::from(format!("/dev/shm/nbdkit-bench-{}", std::process::id()));
        Ok(Fixtures { dir, memory, ready: Mutex::default() })
    }

    /// A file of the hashed pattern, in the page cache.
    pub(crate) fn hashed(&self, mebibytes: u64) -> Result<PathBuf, Failure> {
        let path = self.dir.join(format!("hashed-{mebibytes}m.img"));
        self.ready_file(path, mebibytes, Pattern::Hashed)
    }

    /// A file of the repeated pattern, of which images are made.
    pub(crate) fn repeated(&self, mebibytes: u64) -> Result<PathBuf, Failure> {
        let path = self.dir.join(format!("repeated-{mebibytes}m.img"));
        self.ready_file(path, mebibytes, Pattern::Repeated)
    }

    /// A file that may be written to; what is in it is not known.
    pub(crate) fn writable(&self, mebibytes: u64) -> Result<PathBuf, Failure> {
        let path = self.dir.join(format!("written-{mebibytes}m.img"));
        self.ready_file(path, mebibytes, Pattern::Hashed)
    }

    /// A file of the hashed pattern on a RAM disk, for servers that have no memory of their own to
    /// serve.
    pub(crate) fn in_memory(&self, mebibytes: u64) -> Result<PathBuf, Failure> {
        self.ready_file(self.memory.clone(), mebibytes, Pattern::Hashed)
    }

    /// Once in a run, makes sure that the file holds the pattern, which also brings it into the
    /// page cache.
    fn ready_file(
        &self,
        path: PathBuf,
        mebibytes: u64,
        pattern: Pattern,
    ) -> Result<PathBuf, Failure> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&path) {
            if !holds(&path, mebibytes << 20, pattern) {
                write(&path, mebibytes << 20, pattern)?;
            }
            ready.insert(path.clone());
        }
        Ok(path)
    }

    /// A sparse file of many small pieces of data.
    pub(crate) fn fragmented(&self) -> Result<PathBuf, Failure> {
        let path = self.dir.join("fragmented-10g.img");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == FRAGMENTED_SIZE) {
            return Ok(path);
        }
        let unfinished = self.dir.join("fragmented.tmp");
        let file = create(&unfinished)?;
        let piece = [0x55; PIECE as usize];
        for at in (0..FRAGMENTED_SIZE / FRAGMENTED_STEP).map(|step| step * FRAGMENTED_STEP) {
            file.write_all_at(&piece, at)?;
        }
        file.set_len(FRAGMENTED_SIZE)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// A sparse file of about 4 GiB, of pieces of data and holes by turns, so many in all.
    pub(crate) fn sparse(&self, extents: u64) -> Result<PathBuf, Failure> {
        let path = self.dir.join(format!("sparse-{extents}.img"));
        let (step, pieces) = (sparse_step(extents), extents / 2);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == step * pieces) {
            return Ok(path);
        }
        let unfinished = self.dir.join("sparse.tmp");
        let file = create(&unfinished)?;
        let mut piece = [0; PIECE as usize];
        for at in (0..pieces).map(|number| number * step) {
            Pattern::Pieces(step).fill(at, &mut piece);
            file.write_all_at(&piece, at)?;
        }
        file.set_len(step * pieces)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// A directory of so many small files, of which [`IN_DIRECTORY`] is one.
    pub(crate) fn directory(&self, files: u64) -> Result<PathBuf, Failure> {
        let path = self.dir.join(format!("directory-{files}"));
        if path.is_dir() {
            return Ok(path);
        }
        let unfinished = self.dir.join("directory.tmp");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished)?;
        for number in 0..files {
            let file = create(&unfinished.join(format!("disk-{number:06}")))?;
            file.set_len(IN_DIRECTORY_SIZE)?;
        }
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// A directory of a certificate authority, certificates of a server on 127.0.0.1 and of a
    /// client, and a pre-shared key, under the names that nbdkit, QEMU and libnbd look for.
    pub(crate) fn pki(&self) -> Result<PathBuf, Failure> {
        let dir = self.dir.join("tls-rsa");
        if dir.join("keys.psk").exists() {
            return Ok(dir);
        }
        fs::create_dir_all(&dir)?;
        let file = |name: &str| dir.join(name).to_string_lossy().into_owned();
        fs::write(
            dir.join("ca.info"),
            "cn = bench\nca\ncert_signing_key\nexpiration_days = 3650\n",
        )?;
        let common = "signing_key\nencryption_key\nexpiration_days = 3650\n";
        let server =
            "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\n";
        fs::write(dir.join("server.info"), format!("{server}{common}"))?;
        // Only nbd-server asks for it.
        fs::write(dir.join("client.info"), format!("cn = client\ntls_www_client\n{common}"))?;
        for who in ["ca", "server", "client"] {
            let key = file(&format!("{who}-key.pem"));
            // RSA, for QEMU refuses any other.
            run(
                "certtool",
                &["--generate-privkey", "--key-type", "rsa", "--bits", "2048", "--outfile", &key],
            )?;
        }
        let (ca_key, ca) = (file("ca-key.pem"), file("ca-cert.pem"));
        let info = file("ca.info");
        run(
            "certtool",
            &[
                "--generate-self-signed",
                "--load-privkey",
                &ca_key,
                "--template",
                &info,
                "--outfile",
                &ca,
            ],
        )?;
        for who in ["server", "client"] {
            let name = |end: &str| file(&format!("{who}{end}"));
            run(
                "certtool",
                &[
                    "--generate-certificate",
                    "--load-ca-certificate",
                    &ca,
                    "--load-ca-privkey",
                    &ca_key,
                    "--load-privkey",
                    &name("-key.pem"),
                    "--template",
                    &name(".info"),
                    "--outfile",
                    &name("-cert.pem"),
                ],
            )?;
        }
        run("psktool", &["-u", PSK_USER, "-p", &file("keys.psk")])?;
        Ok(dir)
    }
}

/// A file of every directory of files.
pub(crate) const IN_DIRECTORY: &str = "disk-000007";
/// Bytes of each file there.
pub(crate) const IN_DIRECTORY_SIZE: u64 = 4096;

/// Bytes from one piece of data to the next in a sparse file of so many extents.
pub(crate) fn sparse_step(extents: u64) -> u64 {
    (4 << 30) / (extents / 2) / PIECE * PIECE
}

/// The name that the pre-shared key belongs to.
pub(crate) const PSK_USER: &str = "bench";

impl Drop for Fixtures {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.memory);
    }
}

/// Makes the kernel forget the cached pages of a file.
pub(crate) fn drop_cache(path: &Path) -> Result<(), Failure> {
    let file = File::open(path)?;
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(())
}

/// Reads the whole file, which also brings it into the page cache, and compares it with the
/// pattern.
fn holds(path: &Path, size: u64, pattern: Pattern) -> bool {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.len() == size) {
        return false;
    }
    let Ok(file) = File::open(path) else { return false };
    stream_holds(file, pattern).is_ok_and(|length| length == size)
}

/// Compares all that comes with the pattern. Returns how much came.
pub(crate) fn stream_holds(mut stream: impl Read, pattern: Pattern) -> Result<u64, Failure> {
    let mut buf = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let length = stream.read(&mut buf)?;
        if length == 0 {
            return Ok(at);
        }
        if !pattern.holds(at, &buf[..length]) {
            return Err(Failure::Wrong(format!("wrong data in {length} bytes at {at}")));
        }
        at += length as u64;
    }
}

fn write(path: &Path, size: u64, pattern: Pattern) -> Result<(), Failure> {
    let mut file = create(path)?;
    let mut buf = vec![0; CHUNK];
    for at in (0..size).step_by(CHUNK) {
        pattern.fill(at, &mut buf);
        file.write_all(&buf).map_err(|error| Failure::io("write", path.display(), &error))?;
    }
    // So that writing back does not disturb what is measured next; and only clean pages can be
    // dropped.
    file.sync_all()?;
    Ok(())
}

fn create(path: &Path) -> Result<File, Failure> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    file.map_err(|error| Failure::io("create", path.display(), &error))
}

fn run(program: &str, args: &[&str]) -> Result<(), Failure> {
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| Failure::io("run", program, &error))?;
    if !status.success() {
        return Err(Failure::Unavailable(format!("{program}: {status}")));
    }
    Ok(())
}
