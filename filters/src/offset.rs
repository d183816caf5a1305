//! nbdkit-offset-filter(1): serves the part of a disk that begins at `offset` and is `range` long.

use nbdkit_api::{
    Backend, Errno, Error, Extents, FileRange, Filter, FilterConnection, Flags, NextConfig, Open,
    Result, Slot, Value,
};

/// The filter: where the part begins and how long it is, in bytes.
#[derive(Debug, Default)]
pub struct Offset {
    offset: u64,
    range: Option<u64>,
}

impl Filter for Offset {
    fn name(&self) -> &str {
        "offset"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit offset filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "offset=<OFFSET>     The start offset to serve (default 0).\n\
             range=<LENGTH>      The length of data to serve (default rest of file).",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "offset" => self.offset = value.size()?,
            "range" => self.range = Some(value.size()?),
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn FilterConnection>> {
        below.open(open)?;
        Ok(Box::new(Handle { offset: self.offset, range: self.range }))
    }
}

struct Handle {
    offset: u64,
    range: Option<u64>,
}

impl FilterConnection for Handle {
    fn size(&self, next: &Backend) -> Result<u64> {
        let below = next.size()?;
        let (offset, range) = (self.offset, self.range);
        let too_big =
            |what| Error::new(Errno::EINVAL, format!("{what} is larger than plugin size {below}"));
        let rest = below.checked_sub(offset).ok_or_else(|| too_big(format!("offset {offset}")))?;
        match range {
            None => Ok(rest),
            Some(range) if range <= rest => Ok(range),
            Some(range) => Err(too_big(format!("offset {offset} + range {range}"))),
        }
    }

    fn pread(&self, next: &Backend, buf: &mut [u8], offset: u64) -> Result<()> {
        next.pread(buf, offset + self.offset)
    }

    fn pwrite(&self, next: &Backend, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        next.pwrite(buf, offset + self.offset, flags)
    }

    fn trim(&self, next: &Backend, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.trim(count, offset + self.offset, flags)
    }

    fn zero(&self, next: &Backend, count: u64, offset: u64, flags: Flags) -> Result<()> {
        next.zero(count, offset + self.offset, flags)
    }

    fn extents(
        &self,
        next: &Backend,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        let mut below = Extents::new(offset + self.offset, next.size()?);
        next.extents(count, offset + self.offset, flags, &mut below)?;
        extents.add_shifted(&below, -(self.offset as i64))
    }

    fn cache(&self, next: &Backend, count: u64, offset: u64) -> Result<()> {
        next.cache(count, offset + self.offset)
    }

    fn try_pread(&self, next: &Backend, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        next.try_pread(buf, offset + self.offset)
    }

    fn file_range<'a>(&self, next: &'a Backend, count: u32, offset: u64) -> Option<FileRange<'a>> {
        next.file_range(count, offset + self.offset)
    }
}
