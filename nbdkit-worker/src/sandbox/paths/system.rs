//! The files of the system that programs and resolvers read, each with its reason. Data only.
//!
//! Not /etc as a whole: it has keys, passwords and the configuration of other services, of which
//! permissions keep a server that stays root from none. `--allow-path` adds what a program needs
//! besides.
//!
//! A rule is for the file that has the name at the start: one that is renamed to it later (as
//! useradd(8), editors and DHCP clients do) is not readable. Directories keep their rule, whatever
//! is put into them. A link needs no rule, only what it leads to: so those of /etc/alternatives
//! work, which lead into /usr.

#![forbid(unsafe_code)]

/// Where programs and their libraries are.
pub(super) const PROGRAMS: &[&str] =
    &["/bin", "/sbin", "/usr", "/lib", "/lib32", "/lib64", "/libx32"];

/// What programs read.
#[rustfmt::skip]
pub(super) const READABLE: &[&str] = &[
    "/proc",                    // /proc/self, /proc/meminfo: shells, libraries
    "/dev/random",              // seeds
    "/dev/urandom",             // seeds
    "/etc/ld.so.cache",         // dynamic linker: where libraries are
    "/etc/ld.so.conf",          // ldconfig -p, gdb
    "/etc/ld.so.conf.d",        // ldconfig -p, gdb
    "/etc/ld.so.preload",       // dynamic linker
    "/etc/ld-musl-x86_64.path", // dynamic linker of musl
    "/etc/ld-musl-aarch64.path",// dynamic linker of musl
    "/etc/passwd",              // names of users: id(1), ls -l, ~ of shells
    "/etc/group",               // names of groups
    "/etc/nsswitch.conf",       // glibc: where such names are looked up
    "/etc/services",            // names of ports
    "/etc/protocols",           // names of protocols
    "/etc/localtime",           // time zone, where it is no link
    "/etc/timezone",            // its name
    "/etc/locale.alias",        // setlocale(3)
    "/etc/locale.conf",         // scripts that set LANG
    "/etc/profile",             // bash -l, sh -l
    "/etc/profile.d",           // bash -l, sh -l
    "/etc/bash.bashrc",         // bash -i of Debian
    "/etc/bashrc",              // bash -i of Fedora
    "/etc/zsh",                 // zsh of Debian
    "/etc/zshenv",              // zsh of Fedora
    "/etc/inputrc",             // readline
    "/etc/terminfo",            // tput(1)
    "/etc/magic",               // file(1)
    "/etc/mime.types",          // file types of interpreters' libraries
    "/etc/os-release",          // where it is no link
    "/etc/mke2fs.conf",         // mke2fs(8): file systems in images
    "/etc/xattr.conf",          // libattr: cp -a
    "/etc/perl",                // perl: a directory of modules; it ends if that cannot be read
];

/// What interpreters read that have a directory for each version: names in /etc that begin so.
#[rustfmt::skip]
pub(super) const VERSIONED: &[&str] = &[
    "python3",                  // python: sitecustomize.py is a link to here
];

/// What TLS and its libraries read: programs by themselves, for they fail early otherwise, and on
/// the network. No private keys.
#[rustfmt::skip]
pub(super) const TLS: &[&str] = &[
    "/etc/ssl/openssl.cnf",     // libcrypto
    "/etc/ssl/certs",           // authorities: Debian, Arch
    "/etc/ssl/cert.pem",        // authorities: Alpine
    "/etc/ssl/ca-bundle.pem",   // authorities: SUSE
    "/var/lib/ca-certificates", // what those lead to on SUSE
    "/etc/pki/tls/openssl.cnf", // libcrypto: Fedora
    "/etc/pki/tls/certs",       // authorities: Fedora
    "/etc/pki/tls/cert.pem",    // authorities: Fedora
    "/etc/pki/ca-trust/extracted", // what those lead to
    "/etc/ca-certificates/extracted", // what those lead to on Arch
    "/usr/share/ca-certificates", // what those lead to on Debian
    "/usr/local/share/ca-certificates", // what the operator has added there
    "/etc/crypto-policies",     // libcrypto, GnuTLS: Fedora
    "/etc/gnutls",              // GnuTLS: priorities
];

/// What looks up hosts: resolver(3), nsswitch.conf(5), getaddrinfo(3).
#[rustfmt::skip]
pub(super) const RESOLVER: &[&str] = &[
    "/etc/hosts",               // nss_files
    "/etc/host.conf",           // glibc: several addresses of a name
    "/etc/resolv.conf",         // which servers to ask
    "/run/systemd/resolve",     // where that leads with systemd-resolved, and is replaced
    "/run/NetworkManager",      // with NetworkManager
    "/run/resolvconf",          // with resolvconf
    "/etc/gai.conf",            // getaddrinfo: order of addresses
    "/etc/nsswitch.conf",       // whom to ask in which order
    "/etc/services",            // ports by name
    "/etc/protocols",           // protocols by name
    "/etc/networks",            // getnetbyname(3)
    "/etc/wgetrc",              // wget(1) ends if it cannot be read
    "/usr/share",               // lists of public suffixes; translations of messages
];

/// Devices that programs read and write, and that keep nothing.
pub(super) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn no_secret_of_the_machine_is_beneath_a_path_of_these() {
        let all = || [PROGRAMS, READABLE, TLS, RESOLVER, DEVICES].into_iter().flatten();
        for secret in [
            "/etc",
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/sudoers",
            "/etc/ssh/ssh_host_ed25519_key",
            "/etc/ssl/private/key.pem",
            "/etc/pki/tls/private/key.pem",
            "/etc/machine-id",
            "/etc/fstab",
            "/etc/NetworkManager/system-connections/a",
            "/run/secrets/a",
            "/var/lib/a",
            "/home/user/.ssh/id_ed25519",
        ] {
            let beneath = all().find(|path| Path::new(secret).starts_with(path));
            assert_eq!(beneath, None, "{secret}");
        }
        assert!(all().all(|path| Path::new(path).is_absolute()));
    }
}
