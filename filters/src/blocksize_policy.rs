//! nbdkit-blocksize-policy-filter(1): advertises block size constraints, and refuses requests that
//! do not keep them.

use std::sync::Arc;

use nbdkit_api::{
    BlockSize, Client, DataPath, Direction, Errno, Error, Extents, Filter, Flags, Next, NextConfig,
    Open, OpenLayer, Result, Slot, Value,
};

/// What is advertised where neither a parameter nor the layer below says anything, bytes.
const DEFAULT: BlockSize = BlockSize { minimum: 1, preferred: 4096, maximum: u32::MAX };

/// `blocksize-error-policy`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Requests pass as they are.
    #[default]
    Allow,
    /// Requests that do not keep the constraints fail, but for those that end at an unaligned end
    /// of the disk.
    Error,
    /// Those fail, too.
    Strict,
}

/// The filter: its parameters, bytes; 0 is not given.
#[derive(Debug, Default, Clone)]
pub struct BlocksizePolicy {
    policy: Policy,
    given: BlockSize,
    write_disconnect: u32,
}

impl Filter for BlocksizePolicy {
    fn name(&self) -> &str {
        "blocksize-policy"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit blocksize policy filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "blocksize-error-policy=POLICY  'allow' (default), 'error' or 'strict-error'.\n\
             blocksize-minimum=SIZE         Minimum block size.\n\
             blocksize-preferred=SIZE       Preferred block size.\n\
             blocksize-maximum=SIZE         Maximum block size.\n\
             blocksize-write-disconnect=SIZE\n\
             \x20                              Disconnect clients that write more at once.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        let size = || -> Result<u32> {
            let text = value.str()?;
            let size = value.size().map_err(|error| {
                Error::msg(format!("{key}: could not parse {text}: {}", error.message()))
            })?;
            u32::try_from(size).map_err(|_| Error::msg(format!("{key}: could not parse {text}")))
        };
        match key {
            "blocksize-error-policy" => {
                self.policy = match value.str()? {
                    "allow" => Policy::Allow,
                    "error" => Policy::Error,
                    "strict" | "strict-error" => Policy::Strict,
                    other => return Err(Error::msg(format!("unknown {key}: {other}"))),
                }
            }
            "blocksize-minimum" => self.given.minimum = size()?,
            "blocksize-preferred" => self.given.preferred = size()?,
            "blocksize-maximum" => self.given.maximum = size()?,
            "blocksize-write-disconnect" => self.write_disconnect = size()?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn config_complete(&mut self, next: NextConfig<'_>) -> Result<()> {
        let BlockSize { minimum, preferred, maximum } = self.given;
        let must = |what: &str| Err(Error::msg(what));
        if minimum != 0 && !minimum.is_power_of_two() {
            return must("blocksize-minimum must be a power of 2");
        }
        if minimum > 64 << 10 {
            return must("blocksize-minimum must be <= 64K");
        }
        if preferred != 0 && !preferred.is_power_of_two() {
            return must("blocksize-preferred must be a power of 2");
        }
        if preferred != 0 && !(512..=32 << 20).contains(&preferred) {
            return must("blocksize-preferred must be between 512 and 32M");
        }
        if preferred != 0 && minimum > preferred {
            return must("blocksize-minimum must be <= blocksize-preferred");
        }
        if maximum != 0 && preferred > maximum {
            return must("blocksize-preferred must be <= blocksize-maximum");
        }
        if self.write_disconnect != 0 && self.write_disconnect <= minimum {
            return must("blocksize-write-disconnect must be larger than blocksize-minimum");
        }
        next.config_complete()
    }

    fn can_park(&self) -> bool {
        true
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        Ok(Box::new(Handle { parameters: self.clone(), client: open.client.cloned() }))
    }
}

impl BlocksizePolicy {
    /// What is advertised, given what the layer below says.
    ///
    /// # Errors
    /// EINVAL: the parameters and the layer below contradict each other.
    fn block_size(&self, below: BlockSize) -> Result<BlockSize> {
        let given = self.given;
        let is_silent = given.is_unspecified() && self.write_disconnect == 0;
        if below.is_unspecified() && is_silent {
            return Ok(below);
        }
        let or = |given: u32, below| if given == 0 { below } else { given };
        let base = if below.is_unspecified() { DEFAULT } else { below };
        let minimum = or(given.minimum, base.minimum);
        let preferred = or(given.preferred, base.preferred);
        let mut maximum = or(given.maximum, base.maximum);
        if maximum != u32::MAX {
            maximum = maximum / minimum * minimum;
        } else if below.is_unspecified() && given.maximum == 0 && self.write_disconnect != 0 {
            let most = self.write_disconnect / minimum * minimum;
            // Or it would not be allowed to send what it should prefer.
            maximum = if most >= preferred { most } else { maximum };
        }
        if minimum > preferred || preferred > maximum {
            return Err(Error::new(
                Errno::EINVAL,
                format!(
                    "computed block size values are invalid, minimum {minimum} > preferred \
                     {preferred} or preferred > maximum {maximum}"
                ),
            ));
        }
        Ok(BlockSize { minimum, preferred, maximum })
    }
}

/// Whether a request has data, for which alone there is a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Data,
    Nothing,
}

struct Handle {
    parameters: BlocksizePolicy,
    client: Option<Arc<Client>>,
}

impl Handle {
    /// Checks a request called `name` in messages.
    ///
    /// # Errors
    /// EINVAL: it does not keep the constraints, and the policy is to refuse it.
    fn check(
        &self,
        next: &Next,
        name: &str,
        payload: Payload,
        count: u64,
        offset: u64,
    ) -> Result<()> {
        match self.fault(next, payload, count, offset)? {
            None => Ok(()),
            Some(fault) => {
                let why = format!("client {name} request rejected: {fault}");
                Err(Error::new(Errno::EINVAL, why))
            }
        }
    }

    /// Which constraint a request does not keep, if that is a reason to refuse it.
    fn fault(
        &self,
        next: &Next,
        payload: Payload,
        count: u64,
        offset: u64,
    ) -> Result<Option<String>> {
        if self.parameters.policy == Policy::Allow {
            return Ok(None);
        }
        let BlockSize { minimum, maximum, .. } = self.block_size(next)?;
        let (minimum, maximum) = (u64::from(minimum.max(1)), u64::from(maximum));
        // No request within the disk reaches further.
        let ends_with_disk =
            self.parameters.policy == Policy::Error && offset + count == next.size()?;
        Ok(if count < minimum && !ends_with_disk {
            Some(format!("count {count} is smaller than minimum size {minimum}"))
        } else if payload == Payload::Data && maximum != 0 && count > maximum {
            Some(format!("count {count} is larger than maximum size {maximum}"))
        } else if !count.is_multiple_of(minimum) && !ends_with_disk {
            Some(format!("count {count} is not a multiple of minimum size {minimum}"))
        } else if !offset.is_multiple_of(minimum) {
            Some(format!("offset {offset} is not aligned to a multiple of minimum size {minimum}"))
        } else {
            None
        })
    }

    /// Whether a write of so many bytes ends the connection.
    fn is_too_much(&self, count: u64) -> bool {
        let most = self.parameters.write_disconnect;
        most != 0 && count > u64::from(most)
    }
}

impl OpenLayer for Handle {
    fn block_size(&self, next: &Next) -> Result<BlockSize> {
        self.parameters.block_size(next.block_size()?)
    }

    /// Rounded ones, of data if the layer below knows none.
    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(true)
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check(next, "pread", Payload::Data, buf.len() as u64, offset)?;
        next.pread(buf, offset)
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let count = buf.len() as u64;
        if self.is_too_much(count) {
            if let Some(client) = &self.client {
                client.disconnect(true);
            }
            return Err(Error::new(
                Errno::ESHUTDOWN,
                format!(
                    "disconnecting client due to oversize write request: {count} bytes, more than \
                     blocksize-write-disconnect"
                ),
            ));
        }
        self.check(next, "pwrite", Payload::Data, count, offset)?;
        next.pwrite(buf, offset, flags)
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check(next, "trim", Payload::Nothing, count, offset)?;
        next.trim(count, offset, flags)
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.check(next, "zero", Payload::Nothing, count, offset)?;
        next.zero(count, offset, flags)
    }

    /// In multiples of the minimum, as the protocol has it.
    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut Extents,
    ) -> Result<()> {
        self.check(next, "extents", Payload::Nothing, count, offset)?;
        let align = self.block_size(next)?.minimum.max(1);
        let start = offset / u64::from(align) * u64::from(align);
        let end = (offset + count).next_multiple_of(align.into()).min(next.size()?);
        next.extents_aligned(end - start, start, flags, align, extents)
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.check(next, "cache", Payload::Nothing, count, offset)?;
        next.cache(count, offset)
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        let disconnects = direction == Direction::Write && self.parameters.write_disconnect != 0;
        if self.parameters.policy == Policy::Allow && !disconnects {
            DataPath::Transparent
        } else {
            DataPath::PerRequest
        }
    }

    fn passes(&self, next: &Next, direction: Direction, count: u64, offset: u64) -> bool {
        let is_too_much = direction == Direction::Write && self.is_too_much(count);
        !is_too_much && matches!(self.fault(next, Payload::Data, count, offset), Ok(None))
    }

    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if let Err(error) = self.check(next, "pread", Payload::Data, buf.len() as u64, offset) {
            return Some(Err(error));
        }
        next.try_pread(buf, offset)
    }
}

#[cfg(test)]
mod tests;
