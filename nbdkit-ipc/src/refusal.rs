//! The bytes of `Refused`, which a process sends whose system call the sandbox has refused: from a
//! signal handler, which may not encode, allocate or lock.

#![forbid(unsafe_code)]

/// Position of `Refused` among the messages of a worker.
const FROM_WORKER: u32 = 3;
/// Position of `Refused` among the messages of the template.
const FROM_TEMPLATE: u32 = 8;
/// Position of `Refused` among the messages of a broker to the listener.
const FROM_BROKER: u32 = 1;
/// Position of `Refused` among the messages of a watcher.
const FROM_WATCHER: u32 = 1;

/// The packet of [`FromWorker::Refused`](crate::FromWorker::Refused).
pub const fn from_worker(syscall: u32) -> [u8; 8] {
    packet(FROM_WORKER, syscall)
}

/// The packet of [`FromTemplate::Refused`](crate::FromTemplate::Refused).
pub const fn from_template(syscall: u32) -> [u8; 8] {
    packet(FROM_TEMPLATE, syscall)
}

/// The packet of [`FromBrokerLink::Refused`](crate::FromBrokerLink::Refused).
pub const fn from_broker(syscall: u32) -> [u8; 8] {
    packet(FROM_BROKER, syscall)
}

/// The packet of [`FromWatcher::Refused`](crate::FromWatcher::Refused).
pub const fn from_watcher(syscall: u32) -> [u8; 8] {
    packet(FROM_WATCHER, syscall)
}

/// Two numbers, little-endian.
const fn packet(variant: u32, syscall: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (variant.to_le_bytes(), syscall.to_le_bytes());
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use crate::{FromBrokerLink, FromTemplate, FromWatcher, FromWorker};

    #[test]
    fn the_prepared_bytes_are_the_messages() {
        assert_eq!(from_worker(0x0102_0304), [3, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(from_template(101), [8, 0, 0, 0, 101, 0, 0, 0]);
        for syscall in [0, 101, u32::MAX] {
            let message = FromWorker::Refused { syscall };
            assert_eq!(encode(&message).as_deref(), Some(&from_worker(syscall)[..]));
            assert_eq!(decode::<FromWorker>(&from_worker(syscall)), Some(message));
            let message = FromTemplate::Refused { syscall };
            assert_eq!(encode(&message).as_deref(), Some(&from_template(syscall)[..]));
            let message = FromBrokerLink::Refused { syscall };
            assert_eq!(encode(&message).as_deref(), Some(&from_broker(syscall)[..]));
            let message = FromWatcher::Refused { syscall };
            assert_eq!(encode(&message).as_deref(), Some(&from_watcher(syscall)[..]));
        }
    }
}
