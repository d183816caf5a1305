//! One client's connection to a script: every method is one run of it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, OnceLock};

use nbdkit_api::{
    BlockSize, Blocking, Cache, Client, Connection, Errno, Error, Extents, Flags, Fua, Open,
    Result, quoted,
};

use super::call::{Call, Scripts, chomp};
use super::{lifecycle, text};

/// What `open` returned.
pub(crate) struct Handle {
    scripts: Arc<dyn Scripts>,
    client: Option<Arc<Client>>,
    handle: OsString,
    /// Asked for by the server and by the answers to other questions.
    can_flush: OnceLock<bool>,
    can_zero: OnceLock<bool>,
}

impl Handle {
    /// Calls `open`.
    ///
    /// # Errors
    /// The script's.
    pub(crate) fn open(scripts: &Arc<dyn Scripts>, open: &Open<'_>) -> Result<Handle> {
        let client = open.client.map(|client| &**client);
        let output = Call::new(&**scripts, "open")
            .client(client)
            .boolean(open.readonly)
            .arg(open.export)
            .boolean(open.tls)
            .text()?
            .unwrap_or_default();
        Ok(Handle {
            scripts: Arc::clone(scripts),
            client: open.client.cloned(),
            handle: OsString::from_vec(chomp(&output).to_vec()),
            can_flush: OnceLock::new(),
            can_zero: OnceLock::new(),
        })
    }

    fn call(&self, method: &'static str) -> Call<'_> {
        Call::new(&*self.scripts, method).client(self.client.as_deref()).arg(&self.handle)
    }

    /// A method about a range, with flags.
    fn range(&self, method: &'static str, count: u64, offset: u64) -> Call<'_> {
        self.call(method).number(count).number(offset)
    }

    fn truth(&self, method: &'static str) -> Result<bool> {
        Ok(self.call(method).truth()?.unwrap_or(false))
    }

    fn cached(&self, answer: &OnceLock<bool>, method: &'static str) -> Result<bool> {
        if let Some(answer) = answer.get() {
            return Ok(*answer);
        }
        let truth = self.truth(method)?;
        Ok(*answer.get_or_init(|| truth))
    }
}

/// The flags as `pwrite`, `trim` and `zero` get them.
fn names(flags: Flags) -> String {
    let names = [
        (Flags::FUA, "fua"),
        (Flags::MAY_TRIM, "may_trim"),
        (Flags::FAST_ZERO, "fast"),
        (Flags::REQ_ONE, "req_one"),
    ];
    let set: Vec<_> =
        names.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| *name).collect();
    set.join(",")
}

fn unparsable(call: &Call<'_>, method: &str, output: &[u8], why: &Error) -> Error {
    let shown = &output[..output.len().min(256)];
    call.error(format!(
        "could not parse output from {method} method: {}: {why}",
        quoted(chomp(shown))
    ))
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        let call = self.call("get_size");
        let output = call.text()?.ok_or_else(|| call.required())?;
        text::size(&output).map_err(|why| unparsable(&call, "get_size", &output, &why))
    }

    fn export_description(&self) -> Option<String> {
        let call = self.call("export_description");
        let text = call.text().and_then(|output| {
            let Some(output) = output else { return Ok(None) };
            let text = text::utf8(chomp(&output));
            text.map(|text| Some(text.to_owned()))
                .map_err(|why| unparsable(&call, "export_description", &output, &why))
        });
        // Without a description the export is as good.
        text.unwrap_or_else(|why| {
            lifecycle::log(why);
            None
        })
    }

    fn block_size(&self) -> Result<BlockSize> {
        let call = self.call("block_size");
        let Some(output) = call.text()? else { return Ok(BlockSize::default()) };
        text::block_size(&output).map_err(|why| unparsable(&call, "block_size", &output, &why))
    }

    fn can_write(&self) -> Result<bool> {
        self.truth("can_write")
    }

    fn can_flush(&self) -> Result<bool> {
        self.cached(&self.can_flush, "can_flush")
    }

    fn is_rotational(&self) -> Result<bool> {
        self.truth("is_rotational")
    }

    fn can_trim(&self) -> Result<bool> {
        self.truth("can_trim")
    }

    fn can_zero(&self) -> Result<bool> {
        self.cached(&self.can_zero, "can_zero")
    }

    fn can_fast_zero(&self) -> Result<bool> {
        match self.call("can_fast_zero").truth()? {
            Some(truth) => Ok(truth),
            // Without zero the server refuses every fast zero, which is fast.
            None => Ok(!self.can_zero()?),
        }
    }

    fn can_extents(&self) -> Result<bool> {
        self.truth("can_extents")
    }

    fn can_fua(&self) -> Result<Fua> {
        let call = self.call("can_fua");
        match call.text()? {
            Some(output) => text::fua(&output).ok_or_else(|| {
                unparsable(&call, "can_fua", &output, &Error::msg("not none, emulate or native"))
            }),
            None if self.can_flush()? => Ok(Fua::Emulate),
            None => Ok(Fua::None),
        }
    }

    fn can_multi_conn(&self) -> Result<bool> {
        self.truth("can_multi_conn")
    }

    fn can_cache(&self) -> Result<Cache> {
        let call = self.call("can_cache");
        let Some(output) = call.text()? else { return Ok(Cache::None) };
        text::cache(&output).ok_or_else(|| {
            unparsable(&call, "can_cache", &output, &Error::msg("not none, emulate or native"))
        })
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let call = self.range("pread", buf.len() as u64, offset);
        if call.fill(buf)? { Ok(()) } else { Err(call.required()) }
    }

    fn pwrite(&self, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let flags = names(flags);
        let call = self.range("pwrite", buf.len() as u64, offset).arg(&flags).stdin(buf);
        if call.action()? { Ok(()) } else { Err(call.error("pwrite not implemented")) }
    }

    fn flush(&self) -> Result<()> {
        advisory(&self.call("flush"))
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let flags = names(flags);
        advisory(&self.range("trim", count, offset).arg(&flags))
    }

    fn zero(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        let flags = names(flags);
        if self.range("zero", count, offset).arg(&flags).action()? {
            return Ok(());
        }
        // There is no such method, whatever can_zero returned: the server writes zeroes.
        Err(Error::silent(Errno::EOPNOTSUPP))
    }

    fn extents(&self, count: u64, offset: u64, flags: Flags, extents: &mut Extents) -> Result<()> {
        let flags = names(flags);
        let call = self.range("extents", count, offset).arg(&flags);
        let output = call.text()?.ok_or_else(|| {
            call.error("can_extents returned true, but extents method is not defined")
        })?;
        text::extents(&output, extents).map_err(|why| {
            // What is no list of extents is EIO, a list that breaks the rules EINVAL.
            let errno = if why.errno() == Errno::ERANGE { Errno::EINVAL } else { Errno::EIO };
            call.error(why).with_errno(errno)
        })
    }

    fn cache(&self, count: u64, offset: u64) -> Result<()> {
        advisory(&self.range("cache", count, offset))
    }

    fn blocking(&self) -> Blocking {
        Blocking::Long
    }
}

/// Calls a method that a `can_` method promised and whose absence harms nobody: as in nbdkit, what
/// is not there succeeds.
fn advisory(call: &Call<'_>) -> Result<()> {
    call.action().map(drop)
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(why) = self.call("close").answer() {
            lifecycle::log(why);
        }
    }
}
