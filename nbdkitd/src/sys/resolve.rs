//! getaddrinfo(3), for what std's resolver lacks: service names, one address family, and all
//! interfaces.

#![expect(unsafe_code, reason = "getaddrinfo returns a list of C structures")]

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use thiserror::Error;

use crate::cli::command_line::AddressFamily;

/// Why a name or service is resolved to nothing.
#[derive(Debug, Error)]
pub(crate) enum ResolveError {
    /// C strings cannot hold it.
    #[error("Name contains a NUL byte")]
    Nul,
    /// EAI_SYSTEM.
    #[error("{}", crate::errno_text(.0))]
    System(io::Error),
    /// The resolver's own text. gai_strerror(3).
    #[error("{0}")]
    Resolver(String),
}

/// The addresses to listen on for `host` (`None`: all interfaces) and the port or service name
/// `service`.
///
/// # Errors
/// The name or the service does not resolve.
pub(crate) fn resolve(
    host: Option<&OsStr>,
    service: &OsStr,
    family: AddressFamily,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| ResolveError::Nul);
    let host = host.map(c_string).transpose()?;
    let service = c_string(service)?;
    // SAFETY: all bytes zero is a valid addrinfo: integers and null pointers.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = libc::AI_PASSIVE;
    hints.ai_socktype = libc::SOCK_STREAM;
    hints.ai_family = match family {
        AddressFamily::Any => libc::AF_UNSPEC,
        AddressFamily::V4 => libc::AF_INET,
        AddressFamily::V6 => libc::AF_INET6,
    };
    let mut list = ptr::null_mut();
    // SAFETY: the strings end in NUL and live until the call returns, as do hints and list.
    let code = unsafe {
        libc::getaddrinfo(
            host.as_ref().map_or(ptr::null(), |host| host.as_ptr()),
            service.as_ptr(),
            &raw const hints,
            &raw mut list,
        )
    };
    if code == libc::EAI_SYSTEM {
        return Err(ResolveError::System(io::Error::last_os_error()));
    }
    if code != 0 {
        // SAFETY: gai_strerror returns a constant string for every number.
        let text = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
        return Err(ResolveError::Resolver(text.to_string_lossy().into_owned()));
    }
    let mut addresses = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: entry is a member of the list that getaddrinfo returned, which is freed only
        // below.
        let info = unsafe { &*entry };
        // SAFETY: ai_addr points to a socket address of the family ai_family, or is null.
        addresses.extend(unsafe { address(info.ai_family, info.ai_addr) });
        entry = info.ai_next;
    }
    // SAFETY: list came from getaddrinfo and nothing refers to it any more.
    unsafe { libc::freeaddrinfo(list) };
    Ok(addresses)
}

/// # Safety
/// `address` is null or points to a whole socket address of `family`.
unsafe fn address(family: i32, address: *const libc::sockaddr) -> Option<SocketAddr> {
    if address.is_null() {
        return None;
    }
    match family {
        libc::AF_INET => {
            // SAFETY: by this function's contract a whole sockaddr_in is there; read unaligned,
            // since nothing promises alignment.
            let raw = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: by this function's contract a whole sockaddr_in6 is there; read unaligned,
            // since nothing promises alignment.
            let raw = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_families_are_resolved_without_a_network() {
        let resolve = |host: &str, service: &str, family| {
            resolve(Some(OsStr::new(host)), OsStr::new(service), family)
        };
        assert_eq!(
            resolve("127.0.0.1", "10809", AddressFamily::Any).unwrap(),
            ["127.0.0.1:10809".parse().unwrap()]
        );
        assert_eq!(resolve("::1", "5", AddressFamily::V6).unwrap(), ["[::1]:5".parse().unwrap()]);
        assert!(resolve("::1", "5", AddressFamily::V4).is_err());
        assert!(resolve("127.0.0.1", "no-such-service", AddressFamily::Any).is_err());
    }

    #[test]
    fn no_host_means_all_interfaces() {
        let all = resolve(None, OsStr::new("1"), AddressFamily::V4).unwrap();
        assert_eq!(all, ["0.0.0.0:1".parse().unwrap()]);
    }
}
