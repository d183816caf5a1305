//! nbdkit-multi-conn-filter(1): makes a flush of one connection cover what all have written, or
//! advertises that it does or does not, and leaves out flushes that nothing needs.
//!
//! To emulate it, the layer below is flushed on every connection (`group`): directly if the
//! connection is in this process, else by a thread of that connection's process.

mod dirty;
mod group;

use std::sync::{Arc, OnceLock};

use nbdkit_api::{
    Client, DataPath, Direction, Errno, Error, Filter, Flags, Fua, Layer, Needs, Next, NextConfig,
    Open, OpenLayer, Result, Slot, ThreadModel, Value,
};

use dirty::Epochs;
use group::{Group, Member};

/// `multi-conn-mode`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Auto,
    Plugin,
    Disable,
    Emulate,
    Unsafe,
}

/// `multi-conn-track-dirty`: which flushes are left out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Track {
    /// Those of connections that need none.
    #[default]
    Connection,
    /// Those since which no connection has written.
    Fast,
    /// None.
    Off,
}

/// What connections share, once ready.
#[derive(Debug)]
struct Shared {
    group: Group,
    epochs: Epochs,
}

/// The filter: its parameters and what connections share.
#[derive(Debug, Default)]
pub struct MultiConn {
    mode: Mode,
    track: Track,
    by_export: bool,
    model: Option<ThreadModel>,
    shared: Option<Arc<Shared>>,
    /// The template. A connection in it has all others beside it.
    template: OnceLock<u32>,
}

impl Filter for MultiConn {
    fn name(&self) -> &str {
        "multi-conn"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit multi-conn filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "multi-conn-mode=<MODE>          'auto' (default), 'emulate', 'plugin',\n\
             \x20                               'disable', or 'unsafe'.\n\
             multi-conn-track-dirty=<LEVEL>  'conn' (default), 'fast', or 'off'.\n\
             multi-conn-exportname=<BOOL>    true to limit emulation by export name.",
        )
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "multi-conn-mode" => {
                self.mode = match value.str()? {
                    "auto" => Mode::Auto,
                    "plugin" => Mode::Plugin,
                    "disable" => Mode::Disable,
                    "emulate" => Mode::Emulate,
                    "unsafe" => Mode::Unsafe,
                    other => return Err(Error::msg(format!("unknown multi-conn mode '{other}'"))),
                }
            }
            "multi-conn-track-dirty" => {
                self.track = match value.str()? {
                    "connection" | "conn" => Track::Connection,
                    "fast" => Track::Fast,
                    "off" => Track::Off,
                    other => {
                        let why = format!("unknown multi-conn track-dirty setting '{other}'");
                        return Err(Error::msg(why));
                    }
                }
            }
            "multi-conn-exportname" => self.by_export = value.boolean()?,
            _ => return next.config(key, value),
        }
        Ok(())
    }

    fn get_ready(&mut self, model: ThreadModel) -> Result<()> {
        self.model = Some(model);
        let shared = Shared { group: Group::new()?, epochs: Epochs::new()? };
        self.shared = Some(Arc::new(shared));
        Ok(())
    }

    fn after_fork(&self, _: &Arc<Layer>) -> Result<()> {
        let _ = self.template.set(std::process::id());
        Ok(())
    }

    /// Emulation takes a thread for each connection.
    fn needs(&self, below: Needs) -> Needs {
        match self.mode {
            Mode::Auto | Mode::Emulate => below.threads(),
            Mode::Plugin | Mode::Disable | Mode::Unsafe => below,
        }
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        below.open(open)?;
        let (Some(shared), Some(model)) = (self.shared.clone(), self.model) else {
            return Err(Error::new(Errno::EINVAL, "multi-conn: opened before get_ready"));
        };
        Ok(Box::new(Handle {
            mode: self.mode,
            track: self.track,
            by_export: self.by_export,
            model,
            is_alone: self.template.get() != Some(&std::process::id()),
            client: open.client.cloned(),
            export: shared.epochs.export(open.export)?,
            shared,
            way: OnceLock::new(),
        }))
    }
}

struct Handle {
    mode: Mode,
    track: Track,
    by_export: bool,
    model: ThreadModel,
    /// The other connections are in other processes.
    is_alone: bool,
    client: Option<Arc<Client>>,
    /// The number of the export.
    export: usize,
    shared: Arc<Shared>,
    /// Set by `prepare`.
    way: OnceLock<Way>,
}

/// What is done about flushes.
enum Way {
    /// Every connection is flushed.
    Emulate(Member),
    /// This one only.
    Pass {
        advertise: bool,
        /// Whether reads since the last flush are a reason to flush.
        note_reads: bool,
        own: dirty::Own,
    },
}

impl Handle {
    fn way(&self) -> Result<&Way> {
        self.way.get().ok_or_else(|| Error::new(Errno::EIO, "multi-conn: used before prepare"))
    }

    /// The mode that `auto` stands for. nbdkit-multi-conn-filter(1), `multi-conn-mode=auto`.
    fn resolve(&self, next: &Next) -> Result<Mode> {
        Ok(match self.mode {
            Mode::Auto if self.model == ThreadModel::SerializeConnections => Mode::Disable,
            Mode::Auto if next.can_multi_conn()? => Mode::Plugin,
            Mode::Auto => Mode::Emulate,
            mode => mode,
        })
    }

    /// Runs a request that reads.
    fn read(&self, request: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.way()? {
            Way::Emulate(member) => {
                let notes = self.track == Track::Connection;
                // Before, so that a flush meanwhile is not left out; after, so that what was read
                // before such a flush is not taken for new.
                if notes {
                    member.note(dirty::READ);
                }
                let result = member.run(request);
                if notes {
                    member.note(dirty::READ);
                }
                result
            }
            Way::Pass { note_reads, own, .. } => {
                if *note_reads {
                    own.note(dirty::READ);
                }
                request()
            }
        }
    }

    /// Runs a request that changes the disk. It is dirty once that has been done, also if it has
    /// failed: part of it may have been done. A write with FUA flushes as a flush does.
    fn write(&self, flags: Flags, request: impl FnOnce(Flags) -> Result<()>) -> Result<()> {
        match self.way()? {
            Way::Emulate(member) => {
                let result = member.run(|| request(flags - Flags::FUA));
                member.note(dirty::WRITTEN);
                result?;
                if flags.contains(Flags::FUA) { self.flush_all() } else { Ok(()) }
            }
            Way::Pass { own, .. } => {
                let result = request(flags);
                own.note(dirty::WRITTEN);
                self.shared.epochs.written(self.export);
                result
            }
        }
    }

    fn flush_all(&self) -> Result<()> {
        let export = self.by_export.then_some(self.export);
        self.shared.group.flush(self.client.as_deref(), export, self.track)
    }

    fn pass_flush(&self, next: &Next, own: &dirty::Own) -> Result<()> {
        let epochs = &self.shared.epochs;
        let others = self.by_export.then_some(self.export);
        let is_needed = match self.track {
            Track::Off => true,
            Track::Fast => epochs.is_dirty(others),
            Track::Connection => own.is_dirty() || epochs.is_dirty(others),
        };
        if !is_needed {
            return Ok(());
        }
        let (bits, now) = (own.take(), epochs.now(self.export));
        let result = next.flush();
        match &result {
            Ok(()) => epochs.flushed(self.export, now),
            Err(_) => own.note(bits),
        }
        result
    }
}

impl OpenLayer for Handle {
    fn prepare(&self, next: &Next, _: bool) -> Result<()> {
        let way = match self.resolve(next)? {
            Mode::Emulate | Mode::Auto => {
                if !next.can_flush()? {
                    return Err(Error::msg("emulating multi-conn requires working flush"));
                }
                let is_serial = self.model < ThreadModel::Parallel;
                let group = &self.shared.group;
                Way::Emulate(group.join(next, self.export, is_serial, self.is_alone)?)
            }
            mode => Way::Pass {
                advertise: match mode {
                    Mode::Disable => false,
                    Mode::Unsafe => true,
                    Mode::Plugin | Mode::Auto | Mode::Emulate => next.can_multi_conn()?,
                },
                note_reads: self.track == Track::Connection && !next.can_multi_conn()?,
                own: dirty::Own::default(),
            },
        };
        let _ = self.way.set(way);
        Ok(())
    }

    fn finalize(&self, _: &Next) -> Result<()> {
        if let Some(Way::Emulate(member)) = self.way.get() {
            member.leave();
        }
        Ok(())
    }

    /// A write with FUA has to flush all connections, so it comes here with the flag.
    fn can_fua(&self, next: &Next) -> Result<Fua> {
        let fua = next.can_fua()?;
        let emulates = matches!(self.way()?, Way::Emulate(_)) && fua != Fua::None;
        Ok(if emulates { Fua::Native } else { fua })
    }

    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(match self.way()? {
            Way::Emulate(_) => true,
            Way::Pass { advertise, .. } => *advertise,
        })
    }

    fn pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read(|| next.pread(buf, offset))
    }

    /// Notes are the same if they are made twice. One request at a time is left to `pread`: there
    /// is no pool then.
    fn try_pread(&self, next: &Next, buf: &mut [u8], offset: u64) -> Option<Result<()>> {
        if self.model < ThreadModel::Parallel {
            return None;
        }
        let mut done = None;
        let result = self.read(|| {
            done = next.try_pread(buf, offset);
            Ok(())
        });
        match result {
            Ok(()) => done,
            Err(error) => Some(Err(error)),
        }
    }

    fn pwrite(&self, next: &Next, buf: &[u8], offset: u64, flags: Flags) -> Result<()> {
        self.write(flags, |flags| next.pwrite(buf, offset, flags))
    }

    fn trim(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.write(flags, |flags| next.trim(count, offset, flags))
    }

    fn zero(&self, next: &Next, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.write(flags, |flags| next.zero(count, offset, flags))
    }

    fn extents(
        &self,
        next: &Next,
        count: u64,
        offset: u64,
        flags: Flags,
        extents: &mut nbdkit_api::Extents,
    ) -> Result<()> {
        self.read(|| next.extents(count, offset, flags, extents))
    }

    fn cache(&self, next: &Next, count: u64, offset: u64) -> Result<()> {
        self.read(|| next.cache(count, offset))
    }

    fn flush(&self, next: &Next) -> Result<()> {
        match self.way()? {
            Way::Pass { own, .. } => self.pass_flush(next, own),
            Way::Emulate(_) => self.flush_all(),
        }
    }

    fn data_path(&self, direction: Direction) -> DataPath {
        let sees_all = match (self.way.get(), direction) {
            (Some(Way::Pass { note_reads, .. }), Direction::Read) => *note_reads,
            (Some(Way::Pass { .. }), Direction::Write) => self.track != Track::Off,
            (Some(Way::Emulate(member)), Direction::Read) => {
                self.track == Track::Connection || member.is_serial()
            }
            (Some(Way::Emulate(_)), Direction::Write) | (None, _) => true,
        };
        if sees_all { DataPath::Opaque } else { DataPath::Transparent }
    }
}

#[cfg(test)]
mod tests;
