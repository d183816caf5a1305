//! The eight errors that a reply may carry, and the conversion from errno.

use std::fmt;

use super::{Command, CommandFlags};

/// `NBD_E*`: an error value of the protocol. NBD protocol, "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NbdError {
    /// Operation not permitted.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Cannot allocate memory.
    NoMem = 12,
    /// Invalid argument.
    Inval = 22,
    /// No space left on device.
    NoSpc = 28,
    /// Value too large; only for a read with `NBD_CMD_FLAG_DF`.
    Overflow = 75,
    /// Operation not supported; only for a zero with `NBD_CMD_FLAG_FAST_ZERO`.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

/// Errno values of Linux on architectures with the generic numbers. Constants of this crate,
/// because it depends on no system interface.
mod errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const EIO: i32 = 5;
    pub(super) const ENOMEM: i32 = 12;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EFBIG: i32 = 27;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
    pub(super) const EOVERFLOW: i32 = 75;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ESHUTDOWN: i32 = 108;
    pub(super) const EDQUOT: i32 = 122;
}

impl NbdError {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The error with this number; `None` for numbers that the protocol does not define.
    #[must_use]
    pub fn from_code(code: u32) -> Option<NbdError> {
        [
            NbdError::Perm,
            NbdError::Io,
            NbdError::NoMem,
            NbdError::Inval,
            NbdError::NoSpc,
            NbdError::Overflow,
            NbdError::NotSup,
            NbdError::Shutdown,
        ]
        .into_iter()
        .find(|error| error.code() == code)
    }

    /// Maps a Linux errno, as set by a plugin, to the protocol. Any other errno becomes
    /// `NBD_EINVAL`.
    ///
    /// NBD protocol, "Error values": `EDQUOT` and `EFBIG` become `NBD_ENOSPC`; a read-only medium
    /// is `NBD_EPERM`.
    #[must_use]
    pub fn from_errno(errno: i32) -> NbdError {
        match errno {
            errno::EPERM | errno::EROFS => NbdError::Perm,
            errno::EIO => NbdError::Io,
            errno::ENOMEM => NbdError::NoMem,
            errno::ENOSPC | errno::EDQUOT | errno::EFBIG => NbdError::NoSpc,
            errno::EOVERFLOW => NbdError::Overflow,
            errno::EOPNOTSUPP => NbdError::NotSup,
            errno::ESHUTDOWN => NbdError::Shutdown,
            _ => NbdError::Inval,
        }
    }

    /// The Linux errno, for clients.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            NbdError::Perm => errno::EPERM,
            NbdError::Io => errno::EIO,
            NbdError::NoMem => errno::ENOMEM,
            NbdError::Inval => errno::EINVAL,
            NbdError::NoSpc => errno::ENOSPC,
            NbdError::Overflow => errno::EOVERFLOW,
            NbdError::NotSup => errno::EOPNOTSUPP,
            NbdError::Shutdown => errno::ESHUTDOWN,
        }
    }

    /// The error that may be sent in reply to one request: `NBD_EOVERFLOW` only for a read with
    /// `NBD_CMD_FLAG_DF`, `NBD_ENOTSUP` only for a zero with `NBD_CMD_FLAG_FAST_ZERO`, otherwise
    /// both become `NBD_EINVAL`.
    ///
    /// NBD protocol, "Error values".
    #[must_use]
    pub fn for_reply(self, command: Command, flags: CommandFlags) -> NbdError {
        let permitted = match self {
            NbdError::Overflow => command == Command::READ && flags.contains(CommandFlags::DF),
            NbdError::NotSup => {
                command == Command::WRITE_ZEROES && flags.contains(CommandFlags::FAST_ZERO)
            }
            NbdError::Perm
            | NbdError::Io
            | NbdError::NoMem
            | NbdError::Inval
            | NbdError::NoSpc
            | NbdError::Shutdown => true,
        };
        if permitted { self } else { NbdError::Inval }
    }

    /// The protocol's name, such as `NBD_EPERM`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            NbdError::Perm => "NBD_EPERM",
            NbdError::Io => "NBD_EIO",
            NbdError::NoMem => "NBD_ENOMEM",
            NbdError::Inval => "NBD_EINVAL",
            NbdError::NoSpc => "NBD_ENOSPC",
            NbdError::Overflow => "NBD_EOVERFLOW",
            NbdError::NotSup => "NBD_ENOTSUP",
            NbdError::Shutdown => "NBD_ESHUTDOWN",
        }
    }
}

impl fmt::Display for NbdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::error::Error for NbdError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips_and_no_other_number_is_an_error() {
        let known: Vec<u32> =
            (0..200).filter(|code| NbdError::from_code(*code).is_some()).collect();
        assert_eq!(known, [1, 5, 12, 22, 28, 75, 95, 108]);
        for code in known {
            let error = NbdError::from_code(code).unwrap();
            assert_eq!(error.code(), code);
            assert_eq!(NbdError::from_errno(error.errno()), error);
        }
    }

    #[test]
    fn errno_maps_by_the_protocols_rules() {
        assert_eq!(NbdError::from_errno(30), NbdError::Perm, "EROFS");
        assert_eq!(NbdError::from_errno(122), NbdError::NoSpc, "EDQUOT");
        assert_eq!(NbdError::from_errno(27), NbdError::NoSpc, "EFBIG");
        assert_eq!(NbdError::from_errno(19), NbdError::Inval, "ENODEV");
        assert_eq!(NbdError::from_errno(13), NbdError::Inval, "EACCES");
        assert_eq!(NbdError::from_errno(-1), NbdError::Inval);
    }

    #[test]
    fn enotsup_is_sent_only_for_fast_zero_and_eoverflow_only_for_unfragmented_reads() {
        let fast = CommandFlags::FAST_ZERO;
        let df = CommandFlags::DF;
        assert_eq!(NbdError::NotSup.for_reply(Command::WRITE_ZEROES, fast), NbdError::NotSup);
        assert_eq!(
            NbdError::NotSup.for_reply(Command::WRITE_ZEROES, CommandFlags::empty()),
            NbdError::Inval
        );
        assert_eq!(NbdError::Overflow.for_reply(Command::READ, df), NbdError::Overflow);
        assert_eq!(
            NbdError::Overflow.for_reply(Command::READ, CommandFlags::empty()),
            NbdError::Inval
        );
        assert_eq!(NbdError::Io.for_reply(Command::READ, df), NbdError::Io);
    }
}
