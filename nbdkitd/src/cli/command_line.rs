//! What a command line asks for, typed.
//!
//! Made by [`parse`](super::parse::parse), read by every later stage of the listener. A value of
//! these types has passed every check that needs neither a system call nor a plugin. Paths and
//! names are kept as bytes; they need not be UTF-8.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use nbdkit_ipc::messages::{DebugFlag, Isolation, Parameter, Protocol, Sandbox};

/// The port when `-p` is not given, for TCP and for vsock. NBD protocol; IANA.
pub(crate) const NBD_PORT: u16 = 10809;

/// A whole command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The last component of `argv[0]`, which introduces messages; `nbdkit` as a rule.
    pub(crate) program: String,
    /// What to do.
    pub(crate) action: Action,
    /// The options. Anything but [`Action::Serve`] needs few of them.
    pub(crate) options: Options,
    /// Whole lines for standard error that do not keep the server from starting, such as
    /// `LISTEN_PID` being for another.
    pub(crate) notices: Vec<String>,
}

/// What to do. All but [`Serve`](Self::Serve) print to standard output and exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Print [`help`](super::options::help).
    Help,
    /// Print [`version`](super::build_info::version).
    Version,
    /// Print [`dump_config`](super::dump_config::dump_config).
    DumpConfig,
    /// Print [`long_options`](super::options::long_options).
    LongOptions,
    /// Print [`short_options`](super::options::short_options).
    ShortOptions,
    /// Print the help text, then for each filter, outermost first, and the plugin: its description
    /// and parameters. The stack is loaded but not configured, and carries no parameters.
    PluginHelp(Stack),
    /// Print the version, then `NAME VERSION` for each filter and the plugin. Loaded but not
    /// configured.
    PluginVersion(Stack),
    /// Configure the plugin with its parameters and print its details.
    DumpPlugin(Stack),
    /// Serve clients.
    Serve {
        /// What to serve.
        stack: Stack,
        /// Where clients come from.
        service: ServiceMode,
    },
}

/// A plugin, the filters in front of it, and the parameters for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stack {
    /// In the order of the command line: the first is next to the client.
    pub(crate) filters: Vec<OsString>,
    /// A short name or the path of a file.
    pub(crate) plugin: OsString,
    /// In order, parameter files already expanded.
    pub(crate) parameters: Vec<Parameter>,
}

/// Where clients come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceMode {
    /// Listening sockets were passed at descriptors 3 and up; each is yet to be checked. Implies
    /// foreground.
    SocketActivation {
        /// How many; at least one.
        count: u32,
    },
    /// One client, on standard input and output (`-s`). Implies foreground.
    Stdin,
    /// A Unix socket at an absolute path that fits `sockaddr_un` (`-U SOCKET`).
    Unix(PathBuf),
    /// A Unix socket with a random name in a private directory (`-U -`, and `--run` alone). Removed
    /// on exit.
    UnixPrivate,
    /// AF_VSOCK on any CID (`--vsock`).
    Vsock {
        /// As given with `-p`; [`NBD_PORT`] if not.
        port: Option<u32>,
    },
    /// TCP (the default).
    Tcp {
        /// A host name or address (`-i`); `None` for all interfaces.
        address: Option<OsString>,
        /// As given with `-p`; [`NBD_PORT`] if not.
        port: Option<TcpPort>,
        /// Which addresses to bind or to resolve to.
        family: AddressFamily,
    },
}

impl ServiceMode {
    /// How debug output names it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::SocketActivation { .. } => "socket activation",
            Self::Stdin => "listen on stdin",
            Self::Unix(_) | Self::UnixPrivate => "unix socket",
            Self::Vsock { .. } => "vsock",
            Self::Tcp { .. } => "tcp/ip",
        }
    }
}

/// A TCP port as `-p` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TcpPort {
    /// A number; 0 lets the kernel choose.
    Number(u16),
    /// A service name such as `nbd`, for the resolver.
    Service(OsString),
}

impl TcpPort {
    /// Its text, for the URI, `$port` and the resolver.
    pub(crate) fn text(&self) -> OsString {
        match self {
            Self::Number(number) => number.to_string().into(),
            Self::Service(name) => name.clone(),
        }
    }
}

/// `-4` and `-6`; the last one given counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum AddressFamily {
    /// Both.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// The options that are about the server as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `--allow-net`.
    pub(crate) allow_net: bool,
    /// `--allow-path`, in order.
    pub(crate) allow_paths: Vec<AllowedPath>,
    /// `--busy-poll`; `None` is the default, zero is never.
    pub(crate) busy_poll: Option<Duration>,
    /// `-D`, in order; a later flag of the same name wins.
    pub(crate) debug_flags: Vec<DebugFlag>,
    /// `--exit-with-parent`. Implies foreground.
    pub(crate) exit_with_parent: bool,
    /// `-e`; empty if not given. Goes into the URI and `$exportname`, nowhere else.
    pub(crate) export_name: OsString,
    /// Do not fork into the background: `-f` and all that implies it.
    pub(crate) foreground: bool,
    /// `-g`: a name or a number, not yet looked up.
    pub(crate) group: Option<OsString>,
    /// `--isolation`; `None` leaves it to the plugin.
    pub(crate) isolation: Option<Isolation>,
    /// `--keepalive`, `--no-keepalive`.
    pub(crate) keepalive: KeepAlive,
    /// `--listener-user`; `None` leaves it to the build.
    pub(crate) listener_user: Option<OsString>,
    /// `--log`.
    pub(crate) log: LogDestination,
    /// `--log-connections`.
    pub(crate) log_connections: bool,
    /// `--max-connections`; 0 is no limit, `None` the default.
    pub(crate) max_connections: Option<u32>,
    /// `--max-connections-per-peer`; 0 is no limit, `None` half of all for an address.
    pub(crate) max_connections_per_peer: Option<u32>,
    /// `--name`.
    pub(crate) name: Option<String>,
    /// `--park-idle`; `None` and zero: never.
    pub(crate) park_idle: Option<Duration>,
    /// `-P`, absolute.
    pub(crate) pid_file: Option<PathBuf>,
    /// `--print-uri`.
    pub(crate) print_uri: bool,
    /// What the handshake offers.
    pub(crate) protocol: Protocol,
    /// `-r`.
    pub(crate) readonly: bool,
    /// `--run`: a shell command, perhaps empty. Implies foreground.
    pub(crate) run: Option<OsString>,
    /// `--sandbox`; `None` leaves it to the plugin.
    pub(crate) sandbox: Option<Sandbox>,
    /// `--selinux-label`.
    pub(crate) selinux_label: Option<OsString>,
    /// `--swap`.
    pub(crate) swap: bool,
    /// `-t`; `None` is the default, and so is `-t 0`.
    pub(crate) threads: Option<NonZero<u32>>,
    /// `--timeout`: how long a handshake may take; `None` is no limit, and so is 0.
    pub(crate) timeout: Option<Duration>,
    /// The TLS options.
    pub(crate) tls: Tls,
    /// `-u`: a name or a number, not yet looked up.
    pub(crate) user: Option<OsString>,
    /// `-v`.
    pub(crate) verbose: bool,
}

/// Where error messages go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum LogDestination {
    /// Standard error, or the system log once forked into the background (`--log=default`).
    #[default]
    Default,
    /// Standard error.
    Stderr,
    /// The system log.
    Syslog,
    /// The journal of systemd.
    Journal,
    /// Nowhere.
    Null,
    /// Appended to the file at this absolute path.
    File(PathBuf),
}

/// Whether TCP connections to clients that have vanished end (keepalive).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum KeepAlive {
    /// After minutes.
    #[default]
    Soon,
    /// `--keepalive`: as tcp(7) has it, and the system's settings.
    System,
    /// `--no-keepalive`: never, unless there is something to send.
    Off,
}

/// The TLS options. Paths are as given, perhaps relative.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// `--tls-certificates`.
    pub(crate) certificates: Option<OsString>,
    /// `--tls-crl-expiry`.
    pub(crate) crl_expiry: CrlExpiry,
    /// `--tls-min-version`.
    pub(crate) min_version: Option<TlsVersion>,
    /// `--tls`; `None`: on if there are certificates or keys, off otherwise.
    pub(crate) mode: Option<TlsMode>,
    /// `--tls-priority`.
    pub(crate) priority: Option<String>,
    /// `--tls-psk`; overrides certificates.
    pub(crate) psk: Option<OsString>,
    /// `--tls-verify-peer`.
    pub(crate) verify_peer: bool,
}

/// `--tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsMode {
    /// Never.
    Off,
    /// If the client wants it.
    On,
    /// Nothing is served without it.
    Require,
}

/// `--tls-crl-expiry`: what follows from a revocation list whose next update is overdue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CrlExpiry {
    /// A warning at start-up; the list still revokes what it names. GnuTLS does the same, without
    /// the warning.
    #[default]
    Warn,
    /// Clients of that authority are refused.
    Enforce,
}

/// `--tls-min-version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// `--allow-path=PATH[:rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllowedPath {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// Whether it may be written too.
    pub(crate) write: bool,
}
