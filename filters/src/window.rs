//! A part of the disk below that is served as a disk: what offset, partition and tar have in
//! common. Every request is shifted, and nothing else is done to it.

use std::ops::Range;
use std::sync::OnceLock;

use nbdkit_api::{DataPath, Direction, Errno, Error, Extents, Flags, Next, OpenLayer, Result};

/// Finds the part, in bytes of the disk below, which may be read.
type Find = Box<dyn Fn(&Next) -> Result<Range<u64>> + Send + Sync>;

/// An open layer that serves a part of the layer below. The part is found once, when the layer is
/// prepared.
///
/// Sums of an offset and the start of the part cannot overflow: the layer above checked the request
/// against `size`, and the part lies within the disk below.
pub(crate) struct Window {
    find: Find,
    part: OnceLock<Range<u64>>,
}

impl Window {
    pub(crate) fn new(
        find: impl Fn(&Next) -> Result<Range<u64>> + Send + Sync + 'static,
    ) -> Box<Window> {
        Box::new(Window { find: Box::new(find), part: OnceLock::new() })
    }

    /// # Errors
    /// The part cannot be found; EINVAL: it is not within the disk.
    fn part(&self, next: &Next) -> Result<&Range<u64>> {
        if let Some(part) = self.part.get() {
            return Ok(part);
        }
        let (part, size) = ((self.find)(next)?, next.size()?);
        if part.start > part.end || part.end > size {
            let why = format!("bytes {} to {} are outside the disk ({size})", part.start, part.end);
            return Err(Error::new(Errno::EINVAL, why));
        }
        Ok(self.part.get_or_init(|| part))
    }

    fn start(&self, next: &Next) -> Result<u64> {
        Ok(self.part(next)?.start)
    }
}

impl OpenLayer for Window {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        self.part(next).map(drop)
    }

    fn size(&self, next: &Next) -> Result<u64> {
        let part = self.part(next)?;
        Ok(part.end - part.start)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset + self.start(next)?)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        next.pwrite(buf, offset + self.start(next)?, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.trim(count, offset + self.start(next)?, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.zero(count, offset + self.start(next)?, flags)
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let start = self.start(next)?;
        let mut below = Extents::new(offset + start, next.size()?);
        next.extents(count, offset + start, flags, &mut below)?;
        extents.add_shifted(&below, -(start as i64))
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        next.cache(count, offset + self.start(next)?)
    }

    fn data_path(&self, _: Direction) -> DataPath {
        // Not asked before the layer is prepared, except for one that will fail.
        self.part.get().map_or(DataPath::Opaque, |part| DataPath::Shifted(part.start))
    }
}
