//! Checks requests against the protocol and the export. NBD protocol, "Request types" and "Error
//! values".

#![forbid(unsafe_code)]

use nbd_protocol::constants::{Command, CommandFlags, MAX_REQUEST, TransmissionFlags};
use nbd_protocol::transmission::Request;
use nbdkit_api::{Errno, Error, Flags, Result};

use super::negotiated::{Features, Negotiated};

/// Longest payload of `NBD_CMD_BLOCK_STATUS`, bytes: a list of a few ids.
const MAX_FILTER: u64 = 4096;

/// The limits of an export that every request is checked against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Bytes.
    pub(crate) size: u64,
    /// The transmission flags that were sent to the client.
    pub(crate) flags: TransmissionFlags,
    /// What client and server agreed on.
    pub(crate) features: Features,
}

impl From<&Negotiated> for Rules {
    fn from(negotiated: &Negotiated) -> Rules {
        let &Negotiated { size, flags, features, .. } = negotiated;
        Rules { size, flags, features }
    }
}

impl Rules {
    /// Checks command, flags, range and payload of a request other than NBD_CMD_DISC; returns the
    /// flags for the stack.
    ///
    /// # Errors
    /// The client's mistake, with the errno that the protocol gives it. The payload is still to be
    /// read.
    pub(crate) fn check(&self, request: &Request) -> Result<Flags> {
        let Request { command, offset, length, .. } = *request;
        let invalid =
            |errno, what: &str| Error::new(errno, format!("invalid request: {command}: {what}"));
        let advertised = |flag| self.flags.contains(flag);
        // First, so that EROFS takes precedence over other errors of a write.
        let writes = matches!(command, Command::WRITE | Command::WRITE_ZEROES | Command::TRIM);
        if writes && advertised(TransmissionFlags::READ_ONLY) {
            return Err(invalid(Errno::EROFS, "write request on readonly connection"));
        }
        match command {
            Command::READ
            | Command::CACHE
            | Command::WRITE
            | Command::WRITE_ZEROES
            | Command::TRIM
            | Command::BLOCK_STATUS => {
                // With a payload, the header has the payload's length; the range is checked when it
                // is read.
                let in_payload = command == Command::BLOCK_STATUS
                    && self.features.extended
                    && request.flags.contains(CommandFlags::PAYLOAD_LEN);
                let in_range = length > 0 && offset <= self.size && length <= self.size - offset;
                if !in_range && !in_payload {
                    let errno = if matches!(command, Command::WRITE | Command::WRITE_ZEROES) {
                        Errno::ENOSPC
                    } else {
                        Errno::EINVAL
                    };
                    return Err(invalid(
                        errno,
                        &format!(
                            "offset and count are out of range: offset={offset} count={length}"
                        ),
                    ));
                }
            }
            Command::FLUSH => {
                if offset != 0 || length != 0 {
                    return Err(invalid(Errno::EINVAL, "expecting offset and count = 0"));
                }
            }
            _ => {
                return Err(Error::new(
                    Errno::EINVAL,
                    format!("invalid request: unknown command ({})", command.0),
                ));
            }
        }
        self.check_flags(request)?;
        let missing = match command {
            Command::READ | Command::WRITE if length > u64::from(MAX_REQUEST) => {
                return Err(invalid(
                    Errno::ENOMEM,
                    &format!("data request is too large ({length} > {MAX_REQUEST})"),
                ));
            }
            Command::FLUSH => !advertised(TransmissionFlags::SEND_FLUSH),
            Command::TRIM => !advertised(TransmissionFlags::SEND_TRIM),
            Command::WRITE_ZEROES => !advertised(TransmissionFlags::SEND_WRITE_ZEROES),
            Command::CACHE => !advertised(TransmissionFlags::SEND_CACHE),
            Command::BLOCK_STATUS => !self.features.base_allocation,
            _ => false,
        };
        if missing {
            return Err(invalid(Errno::EINVAL, "operation not supported"));
        }
        if command != Command::WRITE && payload_length(request, self.features.extended) > MAX_FILTER
        {
            return Err(invalid(Errno::EINVAL, "payload too large"));
        }
        Ok(translate(request))
    }

    fn check_flags(&self, request: &Request) -> Result<()> {
        let Request { command, flags, .. } = *request;
        let invalid = |what: &str| {
            Err(Error::new(Errno::EINVAL, format!("invalid request: {command}: {what}")))
        };
        let known = CommandFlags::FUA
            | CommandFlags::NO_HOLE
            | CommandFlags::DF
            | CommandFlags::REQ_ONE
            | CommandFlags::FAST_ZERO
            | CommandFlags::PAYLOAD_LEN;
        let unknown = flags.bits() & !known.bits();
        if unknown != 0 {
            return invalid(&format!("unknown flag ({unknown:#x})"));
        }
        let only = |flag, wanted| flags.contains(flag) && command != wanted;
        if only(CommandFlags::NO_HOLE, Command::WRITE_ZEROES) {
            return invalid("NO_HOLE flag needs WRITE_ZEROES request");
        }
        if only(CommandFlags::REQ_ONE, Command::BLOCK_STATUS) {
            return invalid("REQ_ONE flag needs BLOCK_STATUS request");
        }
        if only(CommandFlags::FAST_ZERO, Command::WRITE_ZEROES) {
            return invalid("FAST_ZERO flag needs WRITE_ZEROES request");
        }
        if flags.contains(CommandFlags::FAST_ZERO)
            && !self.flags.contains(TransmissionFlags::SEND_FAST_ZERO)
        {
            return invalid("FAST_ZERO flag was not advertised");
        }
        if only(CommandFlags::DF, Command::READ) {
            return invalid("DF flag needs READ request");
        }
        if flags.contains(CommandFlags::DF) && !self.features.structured {
            return invalid("DF flag needs structured replies");
        }
        // "clients SHOULD NOT set it unless advertised": nbdkit refuses it even where it has no
        // effect.
        if flags.contains(CommandFlags::FUA) && !self.flags.contains(TransmissionFlags::SEND_FUA) {
            return invalid("FUA flag was not advertised");
        }
        let payload = flags.contains(CommandFlags::PAYLOAD_LEN);
        if payload
            && !(self.features.extended
                && matches!(command, Command::WRITE | Command::BLOCK_STATUS))
        {
            return invalid("PAYLOAD_LEN flag not allowed here");
        }
        Ok(())
    }
}

/// The flags of a request as the stack knows them.
fn translate(request: &Request) -> Flags {
    let mut flags = Flags::empty();
    let zero = request.command == Command::WRITE_ZEROES;
    flags.set(Flags::FUA, request.flags.contains(CommandFlags::FUA));
    flags.set(Flags::MAY_TRIM, zero && !request.flags.contains(CommandFlags::NO_HOLE));
    flags.set(Flags::FAST_ZERO, request.flags.contains(CommandFlags::FAST_ZERO));
    flags.set(Flags::REQ_ONE, request.flags.contains(CommandFlags::REQ_ONE));
    flags
}

/// Bytes of payload that follow the header of a request, valid or not.
pub(crate) fn payload_length(request: &Request, extended: bool) -> u64 {
    // A write is followed by its data with or without the flag: qemu's client, the only one with
    // extended headers, does not set it, and qemu's server accepts that.
    let flagged = extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
    if request.command == Command::WRITE || flagged { request.length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            size: 1 << 20,
            flags: TransmissionFlags::all() - TransmissionFlags::READ_ONLY,
            features: Features { structured: true, extended: false, base_allocation: true },
        }
    }

    fn request(command: Command, flags: CommandFlags, offset: u64, length: u64) -> Request {
        Request { flags, command, cookie: 0, offset, length }
    }

    fn errno(rules: Rules, request: &Request) -> Option<Errno> {
        rules.check(request).err().map(|error| error.errno())
    }

    #[test]
    fn writes_beyond_the_end_are_enospc_and_reads_einval() {
        let none = CommandFlags::empty();
        for offset in [1 << 20, (1 << 20) - 1, u64::MAX] {
            assert_eq!(
                errno(rules(), &request(Command::WRITE, none, offset, 2)),
                Some(Errno::ENOSPC)
            );
            assert_eq!(
                errno(rules(), &request(Command::WRITE_ZEROES, none, offset, 2)),
                Some(Errno::ENOSPC)
            );
            assert_eq!(
                errno(rules(), &request(Command::READ, none, offset, 2)),
                Some(Errno::EINVAL)
            );
            assert_eq!(
                errno(rules(), &request(Command::TRIM, none, offset, u64::MAX)),
                Some(Errno::EINVAL)
            );
        }
        assert_eq!(errno(rules(), &request(Command::READ, none, (1 << 20) - 2, 2)), None);
        assert_eq!(errno(rules(), &request(Command::READ, none, 0, 0)), Some(Errno::EINVAL));
    }

    #[test]
    fn a_flag_of_another_command_is_refused() {
        for (command, flags, good) in [
            (Command::READ, CommandFlags::DF, true),
            (Command::WRITE, CommandFlags::DF, false),
            (
                Command::WRITE_ZEROES,
                CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO | CommandFlags::FUA,
                true,
            ),
            (Command::READ, CommandFlags::NO_HOLE, false),
            (Command::TRIM, CommandFlags::FAST_ZERO, false),
            (Command::BLOCK_STATUS, CommandFlags::REQ_ONE, true),
            (Command::READ, CommandFlags::REQ_ONE, false),
            (Command::READ, CommandFlags::from_bits_retain(1 << 15), false),
            (Command::WRITE, CommandFlags::PAYLOAD_LEN, false),
        ] {
            assert_eq!(
                errno(rules(), &request(command, flags, 0, 512)).is_none(),
                good,
                "{command} {flags:?}"
            );
        }
    }

    #[test]
    fn a_write_has_a_payload_with_or_without_the_flag() {
        let mut rules = rules();
        rules.features.extended = true;
        let with = request(Command::WRITE, CommandFlags::PAYLOAD_LEN, 0, 512);
        let without = request(Command::WRITE, CommandFlags::empty(), 0, 512);
        assert_eq!((errno(rules, &with), errno(rules, &without)), (None, None));
        assert_eq!((payload_length(&with, true), payload_length(&without, true)), (512, 512));
        assert_eq!(payload_length(&without, false), 512);
        let status = request(Command::BLOCK_STATUS, CommandFlags::PAYLOAD_LEN, 0, 12);
        assert_eq!((payload_length(&status, true), payload_length(&status, false)), (12, 0));
    }

    #[test]
    fn a_readonly_export_refuses_commands_that_write() {
        let mut rules = rules();
        rules.flags |= TransmissionFlags::READ_ONLY;
        for command in [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES] {
            assert_eq!(
                errno(rules, &request(command, CommandFlags::empty(), 0, 512)),
                Some(Errno::EROFS)
            );
        }
        assert_eq!(errno(rules, &request(Command::FLUSH, CommandFlags::empty(), 0, 0)), None);
    }

    #[test]
    fn commands_and_flags_that_were_not_advertised_are_refused() {
        let bare = Rules {
            size: 1 << 20,
            flags: TransmissionFlags::HAS_FLAGS,
            features: Features::default(),
        };
        let none = CommandFlags::empty();
        for (command, length) in [
            (Command::FLUSH, 0),
            (Command::TRIM, 512),
            (Command::WRITE_ZEROES, 512),
            (Command::CACHE, 512),
            (Command::BLOCK_STATUS, 512),
            (Command::RESIZE, 512),
            (Command(99), 0),
        ] {
            assert_eq!(
                errno(bare, &request(command, none, 0, length)),
                Some(Errno::EINVAL),
                "{command}"
            );
        }
        assert_eq!(
            errno(bare, &request(Command::WRITE, CommandFlags::FUA, 0, 512)),
            Some(Errno::EINVAL)
        );
        assert_eq!(
            errno(bare, &request(Command::READ, CommandFlags::DF, 0, 512)),
            Some(Errno::EINVAL)
        );
        assert_eq!(errno(bare, &request(Command::READ, none, 0, 65 << 20)), Some(Errno::EINVAL));
    }
}
