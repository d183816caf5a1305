//! What is refused before anything is done, so that nobody believes in a protection that is not there.

#![forbid(unsafe_code)]

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::cli::command_line::{Options, Tls, TlsMode};

/// Refuses the options that this version does not implement.
///
/// # Errors
/// One line for the user.
pub(crate) fn refuse_unsupported(options: &Options) -> Result<(), String> {
    if wants_tls(&options.tls) {
        return Err("TLS is not available in this version of nbdkitd yet".to_owned());
    }
    Ok(())
}

fn wants_tls(tls: &Tls) -> bool {
    match tls.mode {
        Some(TlsMode::Off) => false,
        Some(TlsMode::On | TlsMode::Require) => true,
        None => tls.certificates.is_some() || tls.psk.is_some(),
    }
}

/// Ties this process to its parent, which was `parent` when we started. nbdkit-captive(1), "EXIT WITH PARENT".
///
/// # Errors
/// The parent is gone already.
pub(crate) fn exit_with_parent(parent: Pid) -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGTERM)
        .map_err(|errno| format!("prctl: PR_SET_PDEATHSIG: {}", crate::words(errno)))?;
    // It may have ended before the kernel knew that we care.
    if getppid() != parent {
        return Err("--exit-with-parent: the parent process has exited already".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(tls: Tls) -> Result<(), String> {
        refuse_unsupported(&Options { tls, ..Options::default() })
    }

    #[test]
    fn tls_is_refused_unless_it_is_off() {
        let tls = |mode, certificates: Option<&str>| Tls {
            mode,
            certificates: certificates.map(Into::into),
            ..Tls::default()
        };
        assert!(with(tls(None, None)).is_ok());
        assert!(with(tls(Some(TlsMode::Off), Some("/c"))).is_ok());
        for refused in [
            tls(Some(TlsMode::On), None),
            tls(Some(TlsMode::Require), None),
            tls(None, Some("/c")),
            Tls { psk: Some("/k".into()), ..Tls::default() },
        ] {
            assert!(with(refused).unwrap_err().starts_with("TLS is not available"));
        }
    }
}
