//! When a script fails under `--sandbox=strict` in a way that looks like the sandbox, the log says
//! so, once for each connection: the script's own words ("Permission denied") do not tell who
//! denied it.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Whether programs of this process are confined to declared paths.
static STRICT: AtomicBool = AtomicBool::new(false);

/// Connections with a line in the log.
static LOGGED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// Most connections that are remembered; beyond, some get another line.
const MOST: usize = 4096;

/// Notes that programs are confined to declared paths from now on.
pub fn set_confined_strictly() {
    STRICT.store(true, Ordering::Relaxed);
}

/// Whether programs of this process are confined to declared paths.
pub fn confined_strictly() -> bool {
    STRICT.load(Ordering::Relaxed)
}

/// Whether a script's complaint may be about what the sandbox refuses: paths by Landlock (EACCES;
/// EPERM for links and names that it does not let be moved), system calls by seccomp (ENOSYS),
/// sockets by either.
pub fn looks_refused(complaint: &[u8]) -> bool {
    const WORDS: [&[u8]; 8] = [
        b"ermission denied",
        b"peration not permitted",
        b"unction not implemented",
        b"PermissionError",
        b"EACCES",
        b"EPERM",
        b"ENOSYS",
        b"etwork is unreachable",
    ];
    WORDS.iter().any(|word| complaint.windows(word.len()).any(|window| window == *word))
}

/// A script has failed, saying `complaint`. If the sandbox may be why, says so in the log, once for
/// each connection.
pub fn explain_refusal(complaint: &[u8]) {
    if !confined_strictly() || !looks_refused(complaint) {
        return;
    }
    let connection = crate::log::speaker().connection;
    {
        let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
        if !logged.insert(connection) {
            return;
        }
        if logged.len() > MOST {
            logged.pop_first();
        }
    }
    crate::error!(
        "the sandbox may have refused this to the script: with --sandbox=strict it opens only what the command line names \
         and makes no connections; --allow-path=PATH[:rw] and --allow-net allow more, --sandbox=programs all that its \
         user may"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_that_the_sandbox_may_cause_are_known() {
        for complaint in [
            "cat: disk.img: Permission denied",
            "chown: changing ownership of 'x': Operation not permitted",
            "EACCES it says",
            "socket: Function not implemented",
        ] {
            assert!(looks_refused(complaint.as_bytes()), "{complaint}");
        }
        for complaint in ["", "ENOSPC no room", "No such file or directory"] {
            assert!(!looks_refused(complaint.as_bytes()), "{complaint}");
        }
    }
}
