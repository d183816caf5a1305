//! The messages between listener, template, workers and spawner.
//!
//! serde encodes the position of a variant, so the order here is the wire format; the tests pin the
//! bytes. Paths and parameters are `OsString`: they need not be UTF-8.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::time::Duration;

pub use nbdkit_common::{Isolation, Peer, PeerAddress};
use serde::{Deserialize, Serialize};

use crate::ids::StackId;
use crate::keys::{KeyAnswer, KeyRequest, Tls, TlsPiece};
use crate::status::WorkerExit;

/// First message each way on the link between listener and template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`](crate::VERSION) of the sender.
    pub version: u32,
    /// [`BUILD`](crate::BUILD) of the sender.
    pub build: String,
}

impl Hello {
    /// That of this program.
    pub fn ours() -> Hello {
        Hello { version: crate::VERSION, build: crate::BUILD.to_owned() }
    }

    /// Checks that the other end comes from the same build.
    ///
    /// # Errors
    /// One line that names both builds.
    pub fn check(&self) -> Result<(), String> {
        if *self == Hello::ours() {
            return Ok(());
        }
        let theirs: String = self.build.chars().take(64).flat_map(char::escape_debug).collect();
        Err(format!(
            "listener and worker come from different builds (ours: {} protocol {}, theirs: {theirs} protocol {})",
            crate::BUILD,
            crate::VERSION,
            self.version
        ))
    }
}

/// Sent by the listener to the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTemplate {
    /// First.
    Hello(Hello),
    /// What to load and how to serve it. Once, after `Hello`.
    Configure(Box<Configure>),
    /// One parameter for the stack, in command line order. After `Configure`.
    Parameter(Parameter),
    /// There are no more parameters. Answer: `Configured` or `Failed`.
    ConfigureEnd,
    /// Change to the final user, leave the terminal, get ready for clients. Answer: `Ready` or
    /// `Failed`.
    EnterService(EnterService),
    /// Serve a client. Descriptors: with isolation `Connection` the worker's control channel, its
    /// channel to the broker if it gets one, then the client's socket, then its output if that is
    /// another descriptor (`-s`). Answers: `Forked` (or, with isolation `Shared`, none), and
    /// `Exited` in the end.
    Serve(Serve),
    /// Finish: connections end after their running requests, then the stack is cleaned up and the
    /// process exits.
    Quiesce,
    /// Part of what TLS needs, in order. After `Configure`, before `ConfigureEnd`.
    TlsPiece(TlsPiece),
    /// The answer to `Key`.
    Key {
        /// Which client's.
        connection: u64,
        /// The answer.
        answer: KeyAnswer,
    },
    /// With isolation `Shared`: end a client at once, if it is still there. Answer: `Exited`, as
    /// for any end.
    Disconnect {
        /// Which client.
        connection: u64,
    },
}

/// Sent by the template, a confined process: check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromTemplate {
    /// First.
    Hello(Hello),
    /// The stack is configured and ready.
    Configured(Configured),
    /// Start-up failed. The reasons have been logged. The process exits.
    Failed,
    /// A line for the log. At any time.
    Log(LogRecord),
    /// The template accepts clients.
    Ready,
    /// A worker was forked for a client. Descriptor: a handle on its process (pidfd), unless the
    /// template had no free descriptor.
    Forked {
        /// Which client.
        connection: u64,
        /// The worker's process id.
        pid: i32,
    },
    /// A client's service ended.
    Exited {
        /// Which client.
        connection: u64,
        /// How.
        exit: WorkerExit,
    },
    /// A plugin or filter asked the server to stop (`nbdkit_shutdown`). Once it is configured, only
    /// if the stack has declared that it may.
    Shutdown,
    /// The sandbox refused a system call of the template itself, which ends now. Sent by a signal
    /// handler: see [`refusal`](crate::refusal).
    Refused {
        /// The system call's number on this machine.
        syscall: u32,
    },
    /// With isolation `Shared`: a connection's `Key`, which else its worker sends. Answer: `Key`.
    Key {
        /// For which client.
        connection: u64,
        /// The request.
        request: KeyRequest,
    },
    /// With isolation `Shared`: the handshake of a client is over and this export is being served.
    Serving {
        /// Which client.
        connection: u64,
        /// The stack that serves it.
        stack: StackId,
        /// The export's name as the client gave it: hostile.
        export: String,
    },
    /// The template has forked its broker. At most once, before `Ready`. Descriptor: the listener's
    /// end of its channel.
    Broker {
        /// The stack whose paths and endpoints it opens.
        stack: StackId,
        /// Its process id.
        pid: i32,
        /// Every client will need it: workers get their channels with their clients.
        always: bool,
    },
}

/// Sent by a worker, a process that parses a client's bytes, on its own channel: check before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// A line for the log. At any time.
    Log(LogRecord),
    /// A plugin or filter asked the server to stop. Only if the stack has declared that it may.
    Shutdown,
    /// The handshake is over and this export is being served.
    Serving {
        /// The stack that serves it.
        stack: StackId,
        /// The export's name as the client gave it: hostile.
        export: String,
    },
    /// The sandbox refused a system call, and the worker ends now. Sent by a signal handler: see
    /// [`refusal`](crate::refusal).
    Refused {
        /// The system call's number on this machine.
        syscall: u32,
    },
    /// A request for a signature or a pre-shared key. Once, before `Serving`. Answer: `Key`.
    Key(KeyRequest),
    /// A request for a channel to the broker. Answer: `Broker`.
    Broker {
        /// The stack whose broker is meant.
        stack: StackId,
    },
}

/// Sent by the listener to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Finish: no new requests, replies to the running ones, then exit.
    Quiesce,
    /// The answer to `Key`.
    Key(KeyAnswer),
    /// The answer to `Broker`. Descriptor: the worker's end of a channel to the broker, or none if
    /// there is no broker.
    Broker,
}

/// What the template is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To serve clients.
    Serve,
    /// To print the stack's part of `nbdkit --help PLUGIN`, and exit.
    Help,
    /// To print name and version of the stack, and exit.
    Version,
    /// To print `--dump-plugin`, and exit.
    DumpPlugin,
}

/// What to load and how to serve it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// The number of the stack.
    pub stack: StackId,
    /// What the template is started for.
    pub purpose: Purpose,
    /// Short names or paths of filters, outermost first.
    pub filters: Vec<OsString>,
    /// Short name or path of the plugin.
    pub plugin: OsString,
    /// `-v`.
    pub verbose: bool,
    /// `-D`, in order.
    pub debug_flags: Vec<DebugFlag>,
    /// `-r`.
    pub readonly: bool,
    /// Most requests of one client that run at the same time; `-t`, 16 by default.
    pub threads: u32,
    /// What the handshake offers.
    pub protocol: Protocol,
    /// How long a handshake may take (`--timeout`).
    pub timeout: Option<Duration>,
    /// Whether plugins may use standard input and output while they are configured (not with `-s`).
    pub stdio_safe: bool,
    /// `--swap`: lock the process into memory.
    pub swap: bool,
    /// `--isolation`.
    pub isolation: Option<Isolation>,
    /// `--sandbox`; `None` leaves it to the stack.
    pub sandbox: Option<Sandbox>,
    /// TLS, unless it is off.
    pub tls: Option<Tls>,
    /// What is printed before the stack's own text, for `Purpose::Help` and `Purpose::Version`. If
    /// the stack cannot be loaded, nothing is printed.
    pub introduction: String,
    /// Whether the listener admits one client, or one of each peer, at a time, whatever the stack
    /// can do.
    pub one_client: bool,
    /// `--allow-path` and `--allow-net`.
    pub allowed: Allowed,
}

/// What a strictly confined stack may reach beyond what it declares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// `--allow-path`: absolute paths; true if they may be written too.
    pub paths: Vec<(OsString, bool)>,
    /// `--allow-net`.
    pub network: bool,
}

/// How template and workers are confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sandbox {
    /// To what the stack has declared to need.
    Strict,
    /// Refused is only what no disk server needs: for code that declares nothing.
    Compat,
    /// Not at all.
    Off,
    /// As the final user's programs without privileges: for stacks that run scripts.
    Programs,
}

/// `-D NAME.FLAG=VALUE`. nbdkit-plugin(3), "Debug flags".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugFlag {
    /// The plugin, the filter, or `nbdkit`; not empty.
    pub name: String,
    /// The flag; not empty, may contain dots.
    pub flag: String,
    /// Its value.
    pub value: i32,
}

impl DebugFlag {
    /// Whether the flag is one of the server's own.
    pub fn is_server(&self) -> bool {
        self.name == "nbdkit"
    }
}

/// What the handshake offers to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// `--mask-handshake`: the handshake flags that may be advertised.
    pub mask_handshake: u32,
    /// False with `--no-mc`.
    pub meta_contexts: bool,
    /// `-o`, unless `-n` came later.
    pub oldstyle: bool,
    /// False with `--no-sr`.
    pub structured_replies: bool,
}

impl Default for Protocol {
    fn default() -> Protocol {
        Protocol {
            mask_handshake: u32::MAX,
            meta_contexts: true,
            oldstyle: false,
            structured_replies: true,
        }
    }
}

/// A parameter of the plugin and the filters, from the command line. nbdkit(1), "Plugin
/// configuration".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// The key: a letter, then letters, digits, `_`, `-` and `.`, all ASCII.
    ///
    /// `None` marks a bare value. The template, which knows the plugin, gives it the key
    /// `magic_config_key`. A plugin without one takes the first parameter of all as `script` and
    /// refuses any later bare value with `expecting key=value on the command line but got: VALUE`.
    pub key: Option<String>,
    /// What follows the first `=`, or the whole of a bare value. May be empty; holds no NUL.
    pub value: OsString,
    /// The plugins that it applies to.
    pub applies: Applies,
}

/// The plugins that a parameter applies to. The listener, which reads parameter files, does not
/// know the plugin; whether `@5` names a file depends on whether the plugin takes a bare value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applies {
    /// All plugins.
    Always,
    /// Plugins with a `magic_config_key`.
    WithMagicKey,
    /// Plugins without a `magic_config_key`.
    WithoutMagicKey,
    /// An error for plugins without a `magic_config_key`; the value is its text.
    RefusedWithoutMagicKey,
}

/// What a configured stack has declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configured {
    /// The stack that was configured.
    pub stack: StackId,
    /// Only one client at a time (NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS).
    pub one_client: bool,
    /// How clients are to be divided.
    pub isolation: Isolation,
    /// Whether a later template serves the same disk. Not if what clients wrote is only in this
    /// one's memory.
    pub replaceable: bool,
    /// Whether the stack may send `Shutdown` in service.
    pub may_shutdown: bool,
    /// Whether the stack runs programs, which are killed with it.
    pub programs: bool,
    /// Whether the stack has code that does not declare what it needs.
    pub undeclared: bool,
}

/// The step from start-up into service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnterService {
    /// The user to become (`-u`). Supplementary groups are dropped.
    pub user: Option<u32>,
    /// The group to become (`-g`).
    pub group: Option<u32>,
    /// Whether standard error is closed too, because the server is in the background.
    pub background: bool,
    /// Whether nbdkit's server has forked when it calls `after_fork`: into the background, or for
    /// `--run`.
    pub forked: bool,
}

/// A client to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// Its number, counted from 1.
    pub connection: u64,
    /// The stack that is to serve it.
    pub stack: StackId,
    /// Its address and credentials.
    pub peer: Peer,
    /// Whether the worker's end of a channel to the broker is attached.
    pub broker: bool,
}

/// Longest text of a log record, bytes. The sender truncates longer ones, the receiver refuses
/// them.
pub const MAX_LOG_TEXT: usize = 16 * 1024;

/// How serious a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// An error. Always logged.
    Error,
    /// Probably not what the user meant. Always logged.
    Warning,
    /// Worth keeping in a log, not worth a line on the terminal, where it needs `-v`.
    Notice,
    /// Only with `-v`.
    Debug,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// How serious it is.
    pub level: Level,
    /// The plugin or filter that logs; `None` for the server itself.
    pub layer: Option<String>,
    /// The connection that it concerns; 0 for none.
    pub connection: u64,
    /// Without prefix and newline. May contain anything: the listener escapes control characters.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    /// The start of every session. If these bytes change, so must `VERSION`.
    #[test]
    fn the_hello_keeps_its_bytes() {
        let hello = Hello { version: 1, build: "b".to_owned() };
        let bytes = [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'b'];
        assert_eq!(encode(&ToTemplate::Hello(hello.clone())).unwrap(), bytes);
        assert_eq!(encode(&FromTemplate::Hello(hello)).unwrap(), bytes);
    }

    /// The position of a variant is its number on the wire.
    #[test]
    fn variants_keep_their_order() {
        let first = |bytes: Option<Vec<u8>>| bytes.unwrap()[0];
        let parameter = Parameter { key: None, value: OsString::new(), applies: Applies::Always };
        let service = EnterService { user: None, group: None, background: false, forked: false };
        assert_eq!(first(encode(&ToTemplate::Parameter(parameter))), 2);
        assert_eq!(first(encode(&ToTemplate::ConfigureEnd)), 3);
        assert_eq!(first(encode(&ToTemplate::EnterService(service))), 4);
        assert_eq!(first(encode(&ToTemplate::Quiesce)), 6);
        assert_eq!(first(encode(&FromTemplate::Failed)), 2);
        assert_eq!(first(encode(&FromTemplate::Ready)), 4);
        assert_eq!(first(encode(&FromTemplate::Forked { connection: 1, pid: 1 })), 5);
        assert_eq!(
            first(encode(&FromTemplate::Exited { connection: 1, exit: WorkerExit::Clean })),
            6
        );
        assert_eq!(first(encode(&FromTemplate::Shutdown)), 7);
        assert_eq!(first(encode(&FromWorker::Shutdown)), 1);
        assert_eq!(
            first(encode(&FromWorker::Serving { stack: StackId::ONLY, export: String::new() })),
            2
        );
        assert_eq!(first(encode(&FromTemplate::Refused { syscall: 0 })), 8);
        assert_eq!(first(encode(&FromWorker::Refused { syscall: 0 })), 3);
        let serving =
            FromTemplate::Serving { connection: 1, stack: StackId::ONLY, export: String::new() };
        assert_eq!(first(encode(&serving)), 10);
        assert_eq!(first(encode(&ToTemplate::Disconnect { connection: 1 })), 9);
        assert_eq!(first(encode(&ToWorker::Quiesce)), 0);
        let (request, answer) = (KeyRequest::Psk { identity: vec![] }, KeyAnswer::Denied);
        assert_eq!(encode(&request).unwrap()[0], 1);
        assert_eq!(encode(&answer).unwrap()[0], 2);
        assert_eq!(first(encode(&FromWorker::Key(request.clone()))), 4);
        assert_eq!(first(encode(&ToWorker::Key(answer.clone()))), 1);
        assert_eq!(
            first(encode(&FromTemplate::Broker { stack: StackId::ONLY, pid: 1, always: false })),
            11
        );
        assert_eq!(first(encode(&FromWorker::Broker { stack: StackId::ONLY })), 5);
        assert_eq!(first(encode(&ToWorker::Broker)), 2);
        assert_eq!(first(encode(&FromTemplate::Key { connection: 1, request })), 9);
        assert_eq!(first(encode(&ToTemplate::Key { connection: 1, answer })), 8);
    }

    /// Where the numbers of stacks and keys are. If these bytes change, so must `VERSION`.
    #[test]
    fn ids_keep_their_place() {
        let (stack, key) = (StackId(7), crate::ids::KeyId(9));
        let export = || "x".to_owned();
        let name = [1, 0, 0, 0, 0, 0, 0, 0, b'x'];
        let serving = encode(&FromWorker::Serving { stack, export: export() }).unwrap();
        assert_eq!(serving, [&[2, 0, 0, 0, 7, 0, 0, 0][..], &name].concat());
        let serving = FromTemplate::Serving { connection: 3, stack, export: export() };
        let start = [10, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
        assert_eq!(encode(&serving).unwrap(), [&start[..], &name].concat());
        let broker = FromTemplate::Broker { stack, pid: 2, always: true };
        assert_eq!(encode(&broker).unwrap(), [11, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(encode(&FromWorker::Broker { stack }).unwrap(), [5, 0, 0, 0, 7, 0, 0, 0]);
        let request = KeyRequest::Sign { key, scheme: 0x0807, message: vec![b'A'] };
        let start = [4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 7, 8];
        let sign = encode(&FromWorker::Key(request)).unwrap();
        assert_eq!(sign, [&start[..], &[1, 0, 0, 0, 0, 0, 0, 0, b'A']].concat());
    }

    /// Types that the command line and plugins have too. If these bytes change, so must `VERSION`.
    #[test]
    fn shared_types_keep_their_bytes() {
        let number = |bytes: Option<Vec<u8>>| {
            let bytes = bytes.unwrap();
            (bytes[0], bytes.len())
        };
        assert_eq!(number(encode(&Isolation::Connection)), (0, 4));
        assert_eq!(number(encode(&Isolation::Shared)), (1, 4));
        let sandboxes = [Sandbox::Strict, Sandbox::Compat, Sandbox::Off, Sandbox::Programs];
        assert_eq!(sandboxes.map(|it| encode(&it).unwrap()[0]), [0, 1, 2, 3]);
        let peer = |address| Peer {
            address,
            credentials: Some((1, 2, 3)),
            security_context: Some("x".to_owned()),
        };
        let end =
            [&[1, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0][..], &[1, 1, 0, 0, 0, 0, 0, 0, 0, b'x']];
        let end = end.concat();
        for (address, start) in [
            (
                PeerAddress::Inet(([127, 0, 0, 1], 7).into()),
                &[0, 0, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1, 7, 0][..],
            ),
            (PeerAddress::Unix, &[1, 0, 0, 0]),
            (PeerAddress::Vsock { cid: 2, port: 7 }, &[2, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0]),
            (PeerAddress::Unknown, &[3, 0, 0, 0]),
        ] {
            assert_eq!(encode(&peer(address)).unwrap(), [start, &end].concat());
        }
    }

    #[test]
    fn levels_keep_their_order() {
        for (number, level) in
            [Level::Error, Level::Warning, Level::Notice, Level::Debug].into_iter().enumerate()
        {
            assert_eq!(usize::from(encode(&level).unwrap()[0]), number);
        }
    }

    #[test]
    fn random_bytes_decode_to_nothing_or_to_their_message() {
        // xorshift: the same noise in every run.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let length = (next() % 64) as usize;
            let mut noise: Vec<u8> = (0..length).map(|_| next() as u8).collect();
            if let Some(byte) = noise.first_mut() {
                *byte %= 10;
                for byte in noise.iter_mut().skip(1).take(3) {
                    *byte = 0;
                }
            }
            if let Some(message) = decode::<FromTemplate>(&noise) {
                assert_eq!(encode(&message).unwrap(), noise);
            }
            let _ = decode::<FromWorker>(&noise);
            let _ = decode::<ToTemplate>(&noise);
        }
    }

    #[test]
    fn another_build_is_refused_with_both_names() {
        let error = Hello { version: 1, build: "evil\x1b[2J".to_owned() }.check().unwrap_err();
        assert!(error.contains("evil\\u{1b}[2J"), "{error}");
        assert!(Hello::ours().check().is_ok());
    }
}
