//! What a template is configured with: [`ToTemplate::Configure`](super::ToTemplate::Configure) and
//! [`ToTemplate::Parameter`](super::ToTemplate::Parameter).

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Isolation;
use crate::ids::StackId;
use crate::keys::Tls;

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
    /// To serve clients in place of a template that has ended.
    ServeAgain,
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
    /// `--log-connections`: whether `Totals` are wanted.
    pub log_connections: bool,
    /// `--busy-poll`: how long a reader polls for the next request before it sleeps.
    pub busy_poll: Duration,
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
