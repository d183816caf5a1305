//! The decisions: which options contradict one another, what they imply, what the process is to do.
//!
//! Pure: the arguments and all of the environment that matters are passed in, and nothing is opened
//! except parameter files, through a function that is passed in too. Runs in the listener before
//! anything else. The order of the checks is nbdkit's, so that the first complaint is the same.
//! nbdkit(1), nbdkit-captive(1), nbdkit-service(1).

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::activation::{self, Activation};
use super::command_line::{
    Action, AddressFamily, AllowedPath, CommandLine, KeepAlive, Options, ServiceMode, Stack,
    TlsMode,
};
use super::error::{CliError, Fault};
use super::numbers::{parse_delay, parse_integer};
use super::options::OptionId;
use super::parameters::{self, ReadFile};
use super::tokens::{Token, Tokens};
use super::values::{
    parse_busy_poll, parse_crl_expiry, parse_debug_flag, parse_isolation, parse_log, parse_sandbox,
    parse_seconds, parse_tcp_port, parse_text, parse_tls, parse_tls_version,
};

/// The longest path of a Unix socket, in bytes: `sun_path` without its NUL. unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// What the command line means depends on this much of the process.
pub(crate) struct Environment<'a> {
    /// `$LISTEN_PID`.
    pub(crate) listen_pid: Option<OsString>,
    /// `$LISTEN_FDS`.
    pub(crate) listen_fds: Option<OsString>,
    /// Whether `$POSIXLY_CORRECT` is set: then the first operand ends the options.
    pub(crate) posixly_correct: bool,
    /// This process.
    pub(crate) pid: u32,
    /// The current directory, absolute; `None` if it is gone.
    pub(crate) current_dir: Option<PathBuf>,
    /// How parameter files are read.
    pub(crate) read_file: ReadFile<'a>,
}

/// Parses a command line. `args` begins with the name of the program.
///
/// # Errors
/// Anything that nbdkit refuses before it loads a plugin; the text is ready for standard error.
pub(crate) fn parse(
    args: Vec<OsString>,
    environment: &Environment<'_>,
) -> Result<CommandLine, CliError> {
    let mut args = args.into_iter();
    let argv0 = args.next().unwrap_or_default().to_string_lossy().into_owned();
    let program = match argv0.rsplit('/').next() {
        None | Some("") => "nbdkit".to_owned(),
        Some(name) => name.to_owned(),
    };
    let mut notices = Vec::new();
    let parsed = activation::detect(
        environment.listen_pid.as_deref(),
        environment.listen_fds.as_deref(),
        environment.pid,
    )
    .and_then(|activation| {
        let sockets = match activation {
            Activation::Absent => None,
            Activation::Sockets(count) => Some(count),
            Activation::Ignored(fault) => {
                notices.push(fault.named(&argv0, &program).to_string());
                None
            }
        };
        decide(args.collect(), sockets, environment)
    });
    match parsed {
        Ok((action, options)) => Ok(CommandLine { program, action, options, notices }),
        Err(fault) => Err(fault.named(&argv0, &program).after(&notices)),
    }
}

fn decide(
    args: Vec<OsString>,
    sockets: Option<u32>,
    environment: &Environment<'_>,
) -> Result<(Action, Options), Fault> {
    let mut given = Given::default();
    let mut tokens = Tokens::new(args, environment.posixly_correct);
    while let Some(token) = tokens.next()? {
        match token {
            Token::Operand(operand) => given.operands.push(operand),
            // These three act at once, whatever follows them.
            Token::Option(OptionId::DumpConfig, _) => {
                return Ok((Action::DumpConfig, given.options));
            }
            Token::Option(OptionId::LongOptions, _) => {
                return Ok((Action::LongOptions, given.options));
            }
            Token::Option(OptionId::ShortOptions, _) => {
                return Ok((Action::ShortOptions, given.options));
            }
            Token::Option(id, argument) => given.take(id, argument, environment)?,
        }
    }
    given.conclude(sockets, environment)
}

/// What was given, before it is known whether it fits together.
#[derive(Default)]
struct Given {
    options: Options,
    filters: Vec<OsString>,
    /// The plugin, then its parameters.
    operands: Vec<OsString>,
    help: bool,
    version: bool,
    dump_plugin: bool,
    address: Option<OsString>,
    family: AddressFamily,
    port: Option<OsString>,
    single: bool,
    unix: Option<UnixSocket>,
    vsock: bool,
}

enum UnixSocket {
    Private,
    At(PathBuf),
}

impl Given {
    /// Notes one option. Of options that are given again the last counts, except for filters and
    /// debug flags.
    fn take(
        &mut self,
        id: OptionId,
        argument: OsString,
        environment: &Environment<'_>,
    ) -> Result<(), Fault> {
        let options = &mut self.options;
        match id {
            OptionId::AllowNet => options.allow_net = true,
            OptionId::AllowPath => {
                options.allow_paths.push(allowed_path(&argument, environment)?);
            }
            OptionId::BusyPoll => options.busy_poll = Some(parse_busy_poll(&argument)?),
            OptionId::Debug => options.debug_flags.push(parse_debug_flag(&argument)?),
            OptionId::DumpConfig | OptionId::LongOptions | OptionId::ShortOptions => {}
            OptionId::DumpPlugin => self.dump_plugin = true,
            OptionId::ExitWithParent => options.exit_with_parent = true,
            OptionId::ExportName => options.export_name = argument,
            OptionId::Filter => self.filters.push(argument),
            OptionId::Foreground => options.foreground = true,
            OptionId::Group => options.group = Some(argument),
            OptionId::Help => self.help = true,
            OptionId::IpAddr => self.address = Some(argument),
            OptionId::Ipv4Only => self.family = AddressFamily::V4,
            OptionId::Ipv6Only => self.family = AddressFamily::V6,
            OptionId::Isolation => options.isolation = Some(parse_isolation(&argument)?),
            OptionId::KeepAlive => options.keepalive = KeepAlive::System,
            OptionId::ListenerUser => options.listener_user = Some(argument),
            OptionId::Log => options.log = parse_log(&argument)?,
            OptionId::LogConnections => options.log_connections = true,
            OptionId::MaskHandshake => {
                options.protocol.mask_handshake = parse_integer("mask-handshake", &argument)?;
            }
            OptionId::MaxConnections => {
                options.max_connections = Some(parse_integer("max-connections", &argument)?);
            }
            OptionId::MaxConnectionsPerPeer => {
                options.max_connections_per_peer =
                    Some(parse_integer("max-connections-per-peer", &argument)?);
            }
            OptionId::Name => options.name = Some(parse_text("--name", &argument)?),
            OptionId::NewStyle => options.protocol.oldstyle = false,
            OptionId::NoKeepAlive => options.keepalive = KeepAlive::Off,
            OptionId::NoMetaContexts => options.protocol.meta_contexts = false,
            OptionId::NoStructuredReplies => options.protocol.structured_replies = false,
            OptionId::OldStyle => options.protocol.oldstyle = true,
            OptionId::ParkIdle => {
                options.park_idle = Some(parse_seconds("park-idle", &argument)?);
            }
            OptionId::PidFile => options.pid_file = Some(absolute(&argument, environment)?),
            OptionId::Port => self.port = Some(argument),
            OptionId::PrintUri => options.print_uri = true,
            OptionId::ReadOnly => options.readonly = true,
            OptionId::Run => options.run = Some(argument),
            OptionId::Sandbox => options.sandbox = Some(parse_sandbox(&argument)?),
            OptionId::SelinuxLabel => options.selinux_label = Some(argument),
            OptionId::Single => self.single = true,
            OptionId::Swap => options.swap = true,
            OptionId::Threads => {
                options.threads = NonZero::new(parse_integer("threads", &argument)?);
            }
            OptionId::Timeout => {
                let delay = parse_delay("timeout", &argument)?;
                options.timeout = (!delay.is_zero()).then_some(delay);
            }
            OptionId::Tls => options.tls.mode = Some(parse_tls(&argument)?),
            OptionId::TlsCertificates => options.tls.certificates = Some(argument),
            OptionId::TlsCrlExpiry => options.tls.crl_expiry = parse_crl_expiry(&argument)?,
            OptionId::TlsMinVersion => {
                options.tls.min_version = Some(parse_tls_version(&argument)?);
            }
            OptionId::TlsPriority => {
                options.tls.priority = Some(parse_text("--tls-priority", &argument)?);
            }
            OptionId::TlsPsk => options.tls.psk = Some(argument),
            OptionId::TlsVerifyPeer => options.tls.verify_peer = true,
            OptionId::Unix => {
                self.unix = Some(if argument == "-" {
                    UnixSocket::Private
                } else {
                    UnixSocket::At(absolute(&argument, environment)?)
                });
            }
            OptionId::User => options.user = Some(argument),
            OptionId::Verbose => options.verbose = true,
            OptionId::Version => self.version = true,
            OptionId::Vsock => self.vsock = true,
        }
        Ok(())
    }

    /// Checks what was given against itself and settles what to do.
    fn conclude(
        mut self,
        sockets: Option<u32>,
        environment: &Environment<'_>,
    ) -> Result<(Action, Options), Fault> {
        if sockets.is_some() {
            self.check_socket_activation()?;
        }
        self.options.foreground |= sockets.is_some()
            || self.single
            || self.options.exit_with_parent
            || self.options.run.is_some();

        if self.operands.is_empty() {
            return Ok((self.without_plugin()?, self.options));
        }
        let arguments = self.operands.split_off(1);
        let plugin = self.operands.pop().unwrap_or_default();
        self.check_combination()?;

        let mut stack =
            Stack { filters: std::mem::take(&mut self.filters), plugin, parameters: Vec::new() };
        if self.help {
            return Ok((Action::PluginHelp(stack), self.options));
        }
        if self.version {
            return Ok((Action::PluginVersion(stack), self.options));
        }
        let directory = environment.current_dir.as_deref().unwrap_or(Path::new(""));
        stack.parameters = parameters::expand(&arguments, directory, environment.read_file)?;
        if self.dump_plugin {
            return Ok((Action::DumpPlugin(stack), self.options));
        }
        let service = service_mode(
            sockets,
            Listen {
                address: self.address,
                family: self.family,
                port: self.port,
                single: self.single,
                unix: self.unix,
                vsock: self.vsock,
            },
            self.options.run.is_some(),
        )?;
        Ok((Action::Serve { stack, service }, self.options))
    }

    /// Sockets that were passed to us cannot be chosen as well. nbdkit-service(1), "Socket
    /// activation".
    fn check_socket_activation(&self) -> Result<(), Fault> {
        let excluded = [
            (self.port.is_some(), "-p"),
            (self.address.is_some(), "-i"),
            (self.unix.is_some(), "-U"),
            (self.single, "-s"),
            (self.options.run.is_some(), "--run"),
        ];
        match excluded.into_iter().find(|(given, _)| *given) {
            Some((_, flag)) => {
                Err(Fault::plain(format!("cannot use socket activation with {flag} flag")))
            }
            None => Ok(()),
        }
    }

    fn without_plugin(&self) -> Result<Action, Fault> {
        if self.help {
            Ok(Action::Help)
        } else if self.version {
            Ok(Action::Version)
        } else if self.dump_plugin {
            Err(Fault::plain(
                "use 'nbdkit plugin --dump-plugin' or\n\
                 'nbdkit /path/to/plugin.so --dump-plugin' or\n\
                 if you want to find out about the server use --dump-config",
            ))
        } else {
            Err(Fault::plain(
                "no plugins given on the command line.\n\
                 Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.",
            ))
        }
    }

    fn check_combination(&self) -> Result<(), Fault> {
        if self.options.protocol.oldstyle && self.options.tls.mode == Some(TlsMode::Require) {
            return Err(Fault::plain("cannot use oldstyle protocol (-o) and require TLS"));
        }
        let (port, unix) = (self.port.is_some(), self.unix.is_some());
        let run = self.options.run.is_some();
        let two_sockets = unix && (port || self.vsock);
        let not_single = self.single && (port || unix || run || self.vsock || self.dump_plugin);
        if two_sockets || not_single {
            return Err(Fault::plain(
                "--dump-plugin, -p, --run, -s, -U or --vsock options cannot be used in this combination",
            ));
        }
        Ok(())
    }
}

/// The options that choose the service mode.
struct Listen {
    address: Option<OsString>,
    family: AddressFamily,
    port: Option<OsString>,
    single: bool,
    unix: Option<UnixSocket>,
    vsock: bool,
}

/// The combination has been checked, so at most one of these applies, apart from socket activation
/// with `--vsock`.
fn service_mode(sockets: Option<u32>, listen: Listen, captive: bool) -> Result<ServiceMode, Fault> {
    if let Some(count) = sockets {
        return Ok(ServiceMode::SocketActivation { count });
    }
    if listen.single {
        return Ok(ServiceMode::Stdin);
    }
    match listen.unix {
        Some(UnixSocket::Private) => return Ok(ServiceMode::UnixPrivate),
        Some(UnixSocket::At(path)) => {
            let length = path.as_os_str().len();
            if length > MAX_SOCKET_PATH {
                return Err(Fault::plain(format!(
                    "-U: path too long: length {length} > max {MAX_SOCKET_PATH} bytes"
                )));
            }
            return Ok(ServiceMode::Unix(path));
        }
        None => {}
    }
    if listen.vsock {
        let port = listen.port.map(|port| parse_integer("port", &port)).transpose()?;
        return Ok(ServiceMode::Vsock { port });
    }
    // A captive nbdkit is private unless a port is asked for.
    if captive && listen.port.is_none() {
        return Ok(ServiceMode::UnixPrivate);
    }
    Ok(ServiceMode::Tcp {
        address: listen.address,
        port: listen.port.map(parse_tcp_port).transpose()?,
        family: listen.family,
    })
}

/// `PATH` or `PATH:rw`. A path that itself ends in `:rw` is written `PATH:rw:ro`.
fn allowed_path(argument: &OsStr, environment: &Environment<'_>) -> Result<AllowedPath, Fault> {
    let bytes = argument.as_bytes();
    let (path, write) = match (bytes.strip_suffix(b":rw"), bytes.strip_suffix(b":ro")) {
        (Some(path), _) => (path, true),
        (None, Some(path)) => (path, false),
        (None, None) => (bytes, false),
    };
    if path.is_empty() {
        return Err(Fault::plain("--allow-path must be PATH or PATH:rw"));
    }
    Ok(AllowedPath { path: absolute(OsStr::from_bytes(path), environment)?, write })
}

/// Makes a path absolute, for it is used when the server has changed to `/`. Neither `.` nor links
/// are resolved.
fn absolute(path: &OsStr, environment: &Environment<'_>) -> Result<PathBuf, Fault> {
    if path.is_empty() {
        return Err(Fault::error("cannot convert null or empty path to an absolute path"));
    }
    let path = Path::new(path);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    match &environment.current_dir {
        Some(directory) => Ok(directory.join(path)),
        None => Err(Fault::error(format!(
            "cannot make {} absolute: the current directory is gone",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests;
