//! A filter on an image of any bytes, for the fuzz targets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nbdkit_api::{Connection, Next, Open, Plugin, Result, Stack, Value};

use super::index_file;

/// Most bytes that are read of a disk.
const MOST: u64 = 4 << 20;
/// Bytes of a read.
const PART: usize = 70_001;

/// Opens `filter` on `bytes`, and reads the disk twice from end to end.
///
/// # Panics
/// If anything does, if the disk changes from one read to the next, or if an error has not one
/// line.
pub fn image(filter: &str, bytes: &[u8], parameters: &[(&str, &str)]) {
    let Some(filter) = crate::load(filter) else { panic!("no filter {filter}") };
    let mut stack = Stack::new(vec![filter], Box::new(Image(bytes.into())));
    let configured =
        parameters.iter().try_for_each(|(key, value)| stack.config(key, Value::new(value)));
    configured.and_then(|()| stack.config_complete()).expect("the parameters are good");
    let model = stack.thread_model().expect("a thread model");
    stack.get_ready(model).expect("ready");
    let layer = stack.freeze();
    layer.after_fork().expect("nothing is done then that can fail");
    let open = Open { client: None, readonly: false, export: "", tls: false };
    let first = layer.open(&open).and_then(|next| read_all(&next));
    let second = layer.open(&open).and_then(|next| read_all(&next));
    match (first, second) {
        (Ok(first), Ok(second)) => assert!(first == second, "the disk has changed"),
        (Err(first), Err(_)) => assert!(!first.message().contains('\n'), "{first}"),
        (first, second) => panic!("{:?}, and then {:?}", first.err(), second.err()),
    }
}

/// Opens the indexed-gzip filter on a small image with an index that is made of `case`, and reads
/// the disk twice from end to end.
///
/// # Panics
/// As [`image`], or if the index cannot be written.
pub fn gzip_index(case: &[u8]) {
    let compressed = small();
    with_file(&index_file::example::sealed(&compressed, case), |path| {
        image("indexed-gzip", &compressed, &[("gzip-index-path", path)]);
    });
}

/// What [`gzip_index`] makes a good index of.
///
/// # Panics
/// If the index cannot be written.
pub fn gzip_index_case() -> Vec<u8> {
    with_file(&[], |path| {
        image("indexed-gzip", &small(), &[("gzip-index-path", path), ("gzip-index-span", "64K")]);
        index_file::example::case(&std::fs::read(path).expect("the index"))
    })
}

/// A gzip file of 200 KiB.
fn small() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for number in 0..25_600_u64 {
        let bytes = (number * number).to_le_bytes();
        std::io::Write::write_all(&mut encoder, &bytes).expect("memory");
    }
    encoder.finish().expect("memory")
}

/// Calls `act` with the path of a file that has these bytes, and removes it.
fn with_file<T>(bytes: &[u8], act: impl FnOnce(&str) -> T) -> T {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("nbdkit-fuzz-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    let result = act(path.to_str().expect("a path of text"));
    let _ = std::fs::remove_file(&path);
    result
}

/// The size of the disk, and what each read has returned.
fn read_all(next: &Next) -> Result<(u64, Vec<Option<Vec<u8>>>)> {
    let prepared = next.prepare().and_then(|()| next.size());
    let Ok(size) = prepared else {
        let _ = next.finalize();
        return prepared.map(|size| (size, Vec::new()));
    };
    let mut parts = Vec::new();
    for offset in (0..size.min(MOST)).step_by(PART) {
        let mut buf = vec![0; (size - offset).min(PART as u64) as usize];
        parts.push(next.pread(&mut buf, offset).is_ok().then_some(buf));
    }
    next.finalize()?;
    Ok((size, parts))
}

/// A plugin that has these bytes.
struct Image(Arc<[u8]>);

impl Plugin for Image {
    fn name(&self) -> &str {
        "image"
    }

    fn open(&self, _: &Open<'_>) -> Result<Box<dyn Connection>> {
        Ok(Box::new(Image(Arc::clone(&self.0))))
    }
}

impl Connection for Image {
    fn size(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
}
