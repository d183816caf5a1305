//! Who the client is. What the listener found when it accepted is all there is to tell.

use std::ffi::{c_char, c_int};
use std::mem::{offset_of, size_of};
use std::net::SocketAddr;

use nbdkit_api::client::{Client, PeerAddress};
use nbdkit_api::{Errno, Error, Result};

use super::{allocated, context, fail, minus_one};

/// The bytes of a structure.
fn bytes_of<T: Copy>(structure: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(structure).cast::<u8>();
    // SAFETY: as many bytes as the structure has. Those used here are made of zeroes, so that
    // padding is set too.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

/// An address as the system's calls return it: a `struct sockaddr` of its family.
fn sockaddr(address: &PeerAddress) -> Result<Vec<u8>> {
    // The family in its type: at most AF_VSOCK, 40.
    let family = |family: c_int| family as libc::sa_family_t;
    match address {
        PeerAddress::Inet(SocketAddr::V4(v4)) => {
            // SAFETY: all bits zero are a valid address.
            let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            address.sin_family = family(libc::AF_INET);
            address.sin_port = v4.port().to_be();
            address.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            Ok(bytes_of(&address))
        }
        PeerAddress::Inet(SocketAddr::V6(v6)) => {
            // SAFETY: all bits zero are a valid address.
            let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            address.sin6_family = family(libc::AF_INET6);
            address.sin6_port = v6.port().to_be();
            address.sin6_flowinfo = v6.flowinfo();
            address.sin6_addr.s6_addr = v6.ip().octets();
            address.sin6_scope_id = v6.scope_id();
            Ok(bytes_of(&address))
        }
        // A client has no name of its own there: getpeername(2) returns the family alone.
        PeerAddress::Unix => {
            let family = family(libc::AF_UNIX).to_ne_bytes();
            const { assert!(offset_of!(libc::sockaddr_un, sun_path) == 2) };
            Ok(family.to_vec())
        }
        PeerAddress::Vsock { cid, port } => {
            // SAFETY: all bits zero are a valid address.
            let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
            address.svm_family = family(libc::AF_VSOCK);
            address.svm_port = *port;
            address.svm_cid = *cid;
            Ok(bytes_of(&address))
        }
        PeerAddress::Unknown => Err(Error::os("nbdkit_peer_name", Errno::ENOTSOCK)),
    }
}

/// The client's address, like getpeername(2).
///
/// # Safety
/// `length` may be read and written; `address` may be written as far as that says.
#[unsafe(no_mangle)]
unsafe extern "C" fn nbdkit_peer_name(
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
) -> c_int {
    let found = context::client("nbdkit_peer_name").and_then(|c| sockaddr(&c.peer().address));
    match found {
        Ok(bytes) => {
            // SAFETY: `length` may be read and written; `address` may be written as far as that
            // says; the module upholds that. The copy is as long as both sides are.
            unsafe {
                let room = usize::try_from(*length).unwrap_or(0).min(bytes.len());
                address.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), room);
                // At most a sockaddr_in6.
                *length = bytes.len() as libc::socklen_t;
            }
            0
        }
        Err(error) => minus_one(&error),
    }
}

fn credentials(function: &str, pick: impl Fn((i32, u32, u32)) -> i64) -> i64 {
    let found = context::client(function).and_then(|client| {
        client.peer().credentials.map(pick).ok_or_else(|| {
            let why = format!("{function}: only available for Unix domain sockets");
            Error::new(Errno::EOPNOTSUPP, why)
        })
    });
    found.unwrap_or_else(|error| minus_one(&error))
}

/// Its process id.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_peer_pid() -> i64 {
    credentials("nbdkit_peer_pid", |(pid, _, _)| pid.into())
}

/// Its user id.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_peer_uid() -> i64 {
    credentials("nbdkit_peer_uid", |(_, uid, _)| uid.into())
}

/// Its group id.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_peer_gid() -> i64 {
    credentials("nbdkit_peer_gid", |(_, _, gid)| gid.into())
}

/// A text about the client, for the caller to free; null with errno ENOPROTOOPT if there is none to
/// be had.
fn about(function: &str, text: impl Fn(&Client) -> Option<String>) -> *mut c_char {
    match context::client(function).map(|client| text(&client)) {
        Ok(Some(text)) => allocated(text.as_bytes()),
        Ok(None) => {
            Errno::ENOPROTOOPT.set();
            std::ptr::null_mut()
        }
        Err(error) => {
            fail(&error);
            std::ptr::null_mut()
        }
    }
}

/// Its security context.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_peer_security_context() -> *mut c_char {
    about("nbdkit_peer_security_context", |client| client.peer().security_context.clone())
}

/// The subject of its certificate, empty without one.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_peer_tls_dn() -> *mut c_char {
    let dn = |client: &Client| client.tls().map(|tls| tls.dn.clone()).or(Some(String::new()));
    about("nbdkit_peer_tls_dn", dn)
}

/// The issuer of its certificate, empty without one.
#[unsafe(no_mangle)]
extern "C" fn nbdkit_peer_tls_issuer_dn() -> *mut c_char {
    let dn = |client: &Client| client.tls().map(|tls| tls.issuer_dn.clone());
    about("nbdkit_peer_tls_issuer_dn", |client| dn(client).or(Some(String::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_bytes_that_the_kernel_would_write() {
        let inet = |text: &str| sockaddr(&PeerAddress::Inet(text.parse().unwrap())).unwrap();
        let v4 = inet("127.0.0.2:258");
        assert_eq!(v4[2..], [1, 2, 127, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        let v6 = inet("[::1]:258");
        assert_eq!((v6.len(), &v6[2..4], v6[23]), (28, &[1, 2][..], 1));
        let family = (libc::AF_UNIX as u16).to_ne_bytes();
        assert_eq!(sockaddr(&PeerAddress::Unix).unwrap(), family);
        assert!(sockaddr(&PeerAddress::Unknown).is_err());
    }
}
