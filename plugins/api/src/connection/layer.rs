//! A plugin's connection as the innermost layer of the stack: FUA is emulated here, and zeroes that
//! the plugin turns out not to support. nbdkit-plugin(3), `.can_fua`, `.zero`.

use std::sync::OnceLock;

use super::Connection;
use crate::error::Result;
use crate::extents::Extents;
use crate::layer::{Next, OpenLayer, emulate};
use crate::pipeline::Pipeline;
use crate::types::{BlockSize, Blocking, Cache, Direction, FileRange, Flags, Fua, Zero};

/// Implemented for every [`Connection`]: the layer is compiled for each plugin, so that a request
/// costs one indirect call.
pub trait IntoLayer {
    /// The connection as a layer of the stack.
    fn into_layer(self: Box<Self>) -> Box<dyn OpenLayer>;
}

impl<C: Connection + 'static> IntoLayer for C {
    fn into_layer(self: Box<C>) -> Box<dyn OpenLayer> {
        Box::new(PluginLayer { connection: *self, fua: OnceLock::new() })
    }
}

/// A plugin's connection. There is nothing below, so `next` is not used.
struct PluginLayer<C> {
    connection: C,
    /// The answer to `can_fua`, which every request with FUA depends on.
    fua: OnceLock<Fua>,
}

impl<C: Connection> PluginLayer<C> {
    fn fua(&self) -> Result<Fua> {
        if let Some(fua) = self.fua.get() {
            return Ok(*fua);
        }
        let fua = self.connection.can_fua()?;
        Ok(*self.fua.get_or_init(|| fua))
    }

    /// Passes the flags on to the plugin. FUA becomes a flush afterwards unless it is native.
    fn with_fua(&self, flags: Flags, request: impl FnOnce(Flags) -> Result<()>) -> Result<()> {
        if flags.contains(Flags::FUA) && self.fua()? != Fua::Native {
            request(flags - Flags::FUA)?;
            self.connection.flush()
        } else {
            request(flags)
        }
    }

    fn write(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.with_fua(flags, |flags| self.connection.pwrite(buf, offset, flags))
    }
}

impl<C: Connection> OpenLayer for PluginLayer<C> {
    fn size(&self, _: &Next) -> Result<u64> {
        self.connection.size()
    }

    fn export_description(&self, _: &Next) -> Option<String> {
        self.connection.export_description()
    }

    fn block_size(&self, _: &Next) -> Result<BlockSize> {
        self.connection.block_size()
    }

    fn can_write(&self, _: &Next) -> Result<bool> {
        self.connection.can_write()
    }

    fn can_flush(&self, _: &Next) -> Result<bool> {
        self.connection.can_flush()
    }

    fn is_rotational(&self, _: &Next) -> Result<bool> {
        self.connection.is_rotational()
    }

    fn can_trim(&self, _: &Next) -> Result<bool> {
        self.connection.can_trim()
    }

    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(if self.connection.can_zero()? { Zero::Native } else { Zero::Emulate })
    }

    fn can_fast_zero(&self, _: &Next) -> Result<bool> {
        self.connection.can_fast_zero()
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        self.connection.can_extents()
    }

    fn can_fua(&self, _: &Next) -> Result<Fua> {
        self.fua()
    }

    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        self.connection.can_multi_conn()
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        self.connection.can_cache()
    }

    fn pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.connection.pread(buf, offset)
    }

    fn pwrite(&self, _: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.write(buf, offset, flags)
    }

    fn flush(&self, _: &Next) -> Result<()> {
        self.connection.flush()
    }

    fn trim(&self, _: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.with_fua(flags, |flags| self.connection.trim(count, offset, flags))
    }

    /// A plugin's EOPNOTSUPP is answered by writing.
    fn zero(&self, _: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let mut supported = true;
        let result = self.with_fua(flags, |flags| {
            let result = self.connection.zero(count, offset, flags);
            supported = !matches!(&result, Err(error) if error.is_unsupported());
            result
        });
        if supported {
            return result;
        }
        emulate::zero(count, offset, flags, self.fua()?, |b, at, f| self.write(b, at, f))
    }

    fn extents(
        &self,
        _: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.connection.extents(count, offset, flags, extents)
    }

    fn cache(&self, _: &Next, count: u64, offset: u64) -> Result<()> {
        self.connection.cache(count, offset)
    }

    fn blocking(&self) -> Blocking {
        self.connection.blocking()
    }

    fn try_pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        self.connection.try_pread(buf, offset)
    }

    fn file_range(&self, direction: Direction, count: u32, offset: u64) -> Option<FileRange<'_>> {
        match direction {
            Direction::Read => self.connection.file_range(count, offset),
            Direction::Write => self.connection.write_range(count, offset),
        }
    }

    fn pipeline(&self) -> Option<&dyn Pipeline> {
        self.connection.pipeline()
    }
}
