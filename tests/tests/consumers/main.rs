//! The command lines of the programs that drive nbdkit, as those programs type them.
//!
//! One table per program. A row is a command line, who types it and where that is documented, what
//! the program's client then does, and what comes of it. Every row runs on Debian's nbdkit first,
//! which proves the expected values, and then on the server under test. Plugins and filters that a
//! server lacks are listed in `probe`: their rows are skipped with a line that names what is
//! missing, and the list itself is a test, so a row cannot stay skipped once it could run.
#![expect(clippy::unwrap_used, reason = "a file that cannot be prepared is a failed test")]

mod backup;
mod guestfs;
mod kubevirt;
mod libnbd;
mod libvirt;
mod manual;
mod openbmc;
mod probe;
mod qemu;
mod row;
mod stage;
mod virt_v2v;
mod vmware;
