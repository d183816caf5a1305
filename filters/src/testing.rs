//! What the tests of all filters need: a plugin in memory that notes what it is asked, and short
//! ways to configure and open a stack.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nbdkit_api::client::Peer;
use nbdkit_api::{
    BlockSize, Blocking, Cache, Client, Connection, Errno, Error, ExtentKind, Extents, Filter,
    Flags, Fua, Layer, Next, Open, Plugin, Result, Stack, Value,
};

/// A disk in memory and the answers of the plugin on it.
pub(crate) struct Disk {
    pub(crate) data: Mutex<Vec<u8>>,
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) flush: bool,
    pub(crate) multi_conn: bool,
    pub(crate) trim: bool,
    pub(crate) zero: bool,
    pub(crate) fast_zero: bool,
    pub(crate) fua: Fua,
    pub(crate) cache: Cache,
    pub(crate) extents: bool,
    pub(crate) block_size: BlockSize,
    pub(crate) fail_reads: Option<Errno>,
    pub(crate) blocking: Blocking,
    /// Whether reads need not wait, though `blocking` says that they may.
    pub(crate) cached: AtomicBool,
}

impl Disk {
    pub(crate) fn new(size: usize) -> Disk {
        Disk {
            data: Mutex::new(vec![0; size]),
            calls: Mutex::default(),
            flush: true,
            multi_conn: true,
            trim: true,
            zero: true,
            fast_zero: true,
            fua: Fua::Native,
            cache: Cache::Native,
            extents: true,
            block_size: BlockSize::default(),
            fail_reads: None,
            blocking: Blocking::Never,
            cached: AtomicBool::new(true),
        }
    }

    /// A disk whose byte at `i` is `i % 251`.
    pub(crate) fn pattern(size: usize) -> Disk {
        let disk = Disk::new(0);
        *disk.data.lock().unwrap() = pattern(size);
        disk
    }

    /// What the plugin was asked since the last call of this, one string each.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// How many bytes the plugin was asked to read since the last call of this or of the other.
    pub(crate) fn bytes_read(&self) -> usize {
        let count =
            |call: &String| call.strip_prefix("pread ")?.split('@').next()?.parse::<usize>().ok();
        self.take_calls().iter().filter_map(count).sum()
    }
}

struct Memory(Arc<Disk>);

impl Plugin for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn list_exports(
        &self,
        _: &Arc<Client>,
        _: bool,
        exports: &mut nbdkit_api::Exports,
    ) -> Result<()> {
        exports.add("one", Some("first".to_owned()))?;
        exports.add("two", None)
    }

    fn default_export(&self, _: &Arc<Client>, _: bool) -> Result<Option<String>> {
        Ok(Some("one".to_owned()))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        self.0.note(format!("open {:?} readonly={}", open.export, open.readonly));
        Ok(Box::new(Handle(Arc::clone(&self.0), open.export.to_owned())))
    }
}

impl Disk {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }
}

struct Handle(Arc<Disk>, String);

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(self.0.data.lock().unwrap().len() as u64)
    }

    fn export_description(&self) -> Option<String> {
        Some(format!("about {:?}", self.1))
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(self.0.block_size)
    }

    fn can_write(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(self.0.flush)
    }

    fn can_trim(&self) -> Result<bool> {
        Ok(self.0.trim)
    }

    fn can_zero(&self) -> Result<bool> {
        Ok(self.0.zero)
    }

    fn can_fast_zero(&self) -> Result<bool> {
        Ok(self.0.fast_zero)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(self.0.extents)
    }

    fn can_fua(&self) -> Result<Fua> {
        Ok(self.0.fua)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(self.0.cache)
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(self.0.multi_conn)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.note(format!("pread {}@{offset}", buf.len()));
        if let Some(errno) = self.0.fail_reads {
            return Err(Error::new(errno, "made to fail"));
        }
        let at = offset as usize;
        buf.copy_from_slice(&self.0.data.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.0.note(format!("pwrite {}@{offset}{}", buf.len(), show(flags)));
        let at = offset as usize;
        self.0.data.lock().unwrap()[at..at + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.0.note("flush".to_owned());
        Ok(())
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.0.note(format!("trim {count}@{offset}{}", show(flags)));
        let at = offset as usize;
        self.0.data.lock().unwrap()[at..at + count as usize].fill(0);
        Ok(())
    }

    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.0.note(format!("zero {count}@{offset}{}", show(flags)));
        let at = offset as usize;
        self.0.data.lock().unwrap()[at..at + count as usize].fill(0);
        Ok(())
    }

    /// Every other 64 KiB is a hole, so that tests can tell shifted extents from others.
    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        self.0.note(format!("extents {count}@{offset}"));
        let mut at = offset / 65536 * 65536;
        while at < offset + count {
            let kind =
                if (at / 65536).is_multiple_of(2) { ExtentKind::DATA } else { ExtentKind::SPARSE };
            extents.add(at, 65536, kind)?;
            at += 65536;
            if flags.contains(Flags::REQ_ONE) {
                break;
            }
        }
        Ok(())
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        self.0.note(format!("cache {count}@{offset}"));
        Ok(())
    }

    fn blocking(&self) -> Blocking {
        self.0.blocking
    }

    fn try_pread(&self, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        let now = self.0.blocking == Blocking::Never || self.0.cached.load(Ordering::Relaxed);
        now.then(|| self.pread(buf, offset))
    }
}

fn show(flags: Flags) -> String {
    flags.iter_names().map(|(name, _)| format!(" {name}")).collect()
}

/// A configured stack: filters outermost first, parameters in order.
pub(crate) fn try_stack(
    disk: &Arc<Disk>,
    filters: &[&str],
    params: &[(&str, &str)],
) -> Result<Stack> {
    let filters = filters.iter().map(|name| crate::load(name).unwrap()).collect();
    try_stack_of(disk, filters, params)
}

/// The same with filters that are not registered.
pub(crate) fn try_stack_of(
    disk: &Arc<Disk>,
    filters: Vec<Box<dyn Filter>>,
    params: &[(&str, &str)],
) -> Result<Stack> {
    let mut stack = Stack::new(filters, Box::new(Memory(Arc::clone(disk))));
    for (key, value) in params {
        stack.config(key, Value::new(value))?;
    }
    stack.config_complete()?;
    let model = stack.thread_model()?;
    stack.get_ready(model)?;
    Ok(stack)
}

/// The same, frozen and past `after_fork`; panics on errors.
pub(crate) fn layer(disk: &Arc<Disk>, filters: &[&str], params: &[(&str, &str)]) -> Arc<Layer> {
    let layer = try_stack(disk, filters, params).unwrap().freeze();
    layer.after_fork().unwrap();
    layer
}

/// The error of `filter` for a bad parameter.
pub(crate) fn config_error(filter: &str, params: &[(&str, &str)]) -> String {
    let disk = Arc::new(Disk::new(1 << 20));
    try_stack(&disk, &[filter], params).unwrap_err().message().to_owned()
}

/// A client without socket.
pub(crate) fn client() -> Arc<Client> {
    Client::new(1, Peer::default(), None, Box::new(|| ()))
}

/// Opens and prepares `export`.
pub(crate) fn try_open(layer: &Arc<Layer>, export: &str, readonly: bool) -> Result<Next> {
    let client = client();
    let backend = layer.open(&Open { client: Some(&client), readonly, export, tls: false })?;
    backend.prepare()?;
    Ok(backend)
}

/// Opens and prepares the export "" for writing; panics on errors.
pub(crate) fn open(layer: &Arc<Layer>) -> Next {
    try_open(layer, "", false).unwrap()
}

/// Configures and opens a stack in one go.
pub(crate) fn backend(disk: &Arc<Disk>, filters: &[&str], params: &[(&str, &str)]) -> Next {
    open(&layer(disk, filters, params))
}

/// Extents of a range as (offset, length, bits).
pub(crate) fn extents_of(backend: &Next, count: u64, offset: u64) -> Vec<(u64, u64, u32)> {
    let mut extents = Extents::new(offset, offset + count);
    backend.extents(count, offset, Flags::empty(), &mut extents).unwrap();
    extents.iter().map(|e| (e.offset, e.length, e.kind.bits())).collect()
}

/// The output of a program for `input`. If it is not installed, prints that, and returns `None`.
pub(crate) fn made_by(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must have {program}: {error}");
            eprintln!("SKIPPED: {program}: {error}");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", output.status);
    Some(output.stdout)
}

/// A disk that `filter` can be opened on, whatever it makes of `size` bytes; `None` without the
/// program that makes such images.
pub(crate) fn disk_for(filter: &str, size: usize) -> Option<Arc<Disk>> {
    let image = match filter {
        "bzip2" => made_by("bzip2", &["--stdout"], &sample(size))?,
        "gzip" | "indexed-gzip" => made_by("gzip", &["--stdout"], &sample(size))?,
        "luks" => crate::luks::example::image(&sample(size)),
        "lzip" => made_by("lzip", &["--stdout", "--member-size=100000"], &sample(size))?,
        "xz" => made_by("xz", &["--stdout", "--block-size=50000"], &sample(size))?,
        "qcow2dec" => empty_qcow2(size as u64),
        "partition" => {
            let mut image = pattern(size);
            crate::partition::example::write_table(&mut image);
            image
        }
        "tar" => {
            let mut image = pattern(size);
            let mut archive = Vec::new();
            crate::tar::example::add(&mut archive, "x", b'0', 200 << 10, &image[512..201 << 10]);
            image[..archive.len()].copy_from_slice(&archive);
            image
        }
        "zstd" => made_by("zstd", &["--stdout", "--quiet"], &sample(size))?,
        _ => return Some(Arc::new(Disk::pattern(size))),
    };
    Some(disk_of(image))
}

/// The same on a device, for which reads may have to wait.
pub(crate) fn device_for(filter: &str, size: usize) -> Option<Arc<Disk>> {
    let mut disk = disk_for(filter, size)?;
    Arc::get_mut(&mut disk)?.blocking = Blocking::Short;
    Some(disk)
}

/// A qcow2 image of a disk of `size` bytes that has no data.
fn empty_qcow2(size: u64) -> Vec<u8> {
    let mut image = vec![0; 1 << 17];
    // Magic number, version 3, clusters of 64 KiB; an L1 table of one entry in the second one.
    let words = [(0, 0x5146_49fb), (4, 3), (20, 16), (36, 1), (44, 1 << 16), (100, 104_u32)];
    for (at, word) in words {
        image[at..at + 4].copy_from_slice(&word.to_be_bytes());
    }
    image[24..32].copy_from_slice(&size.to_be_bytes());
    image
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// A disk that holds these bytes.
pub(crate) fn disk_of(bytes: Vec<u8>) -> Arc<Disk> {
    let disk = Disk::new(0);
    *disk.data.lock().unwrap() = bytes;
    Arc::new(disk)
}

/// All bytes of the disk that `filter` shows of `image`.
pub(crate) fn decoded(filter: &str, image: Vec<u8>, params: &[(&str, &str)]) -> Result<Vec<u8>> {
    let next = try_open(&layer(&disk_of(image), &[filter], params), "", false)?;
    let mut data = vec![0; next.size()? as usize];
    // Nothing may be read of an empty disk.
    if !data.is_empty() {
        next.pread(&mut data, 0)?;
    }
    Ok(data)
}

/// Bytes in which there is something to compress, and something that cannot be.
pub(crate) fn sample(size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|at| if at / 1000 % 3 == 0 { next() } else { (at / 7 % 50) as u8 }).collect()
}

/// Damages `image` in each of its bytes, and cuts it off everywhere: what `filter` shows of it is
/// an error, or `data`. How many of the images gave `data`.
pub(crate) fn damage(filter: &str, image: &[u8], data: &[u8]) -> usize {
    damage_with(filter, image, data, &[])
}

/// The same with parameters.
pub(crate) fn damage_with(
    filter: &str,
    image: &[u8],
    data: &[u8],
    parameters: &[(&str, &str)],
) -> usize {
    let mut unharmed = 0;
    let mut check = |image: Vec<u8>, how: &str| match decoded(filter, image, parameters) {
        Ok(shown) => {
            assert!(shown == data, "{filter}: {how}: other data is shown");
            unharmed += 1;
        }
        Err(error) => {
            assert!(!error.message().contains('\n'), "{filter}: {how}: {error}");
            assert!(error.message().starts_with(filter), "{filter}: {how}: {error}");
        }
    };
    for at in 0..image.len() {
        check(image[..at].to_vec(), &format!("cut off at {at}"));
        let mut flipped = image.to_vec();
        flipped[at] ^= 1 << (at % 8);
        check(flipped, &format!("a bit of byte {at} is flipped"));
    }
    unharmed
}

/// Reads `count` bytes.
pub(crate) fn read(backend: &Next, count: usize, offset: u64) -> Vec<u8> {
    let mut buf = vec![0xee; count];
    backend.pread(&mut buf, offset).unwrap();
    buf
}
