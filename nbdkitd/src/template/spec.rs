//! What a template is started and configured with.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nbdkit_ipc::keys::{Credentials, TlsPiece};
use nbdkit_ipc::messages::{self, Configure, EnterService, Hello, Parameter, Purpose};
use nbdkit_ipc::program::{self, Program};
use nbdkit_ipc::{StackId, ToTemplate, title};

use super::{Origin, ProgramError, Template};
use crate::cli::command_line::{Options, Stack};
use crate::cli::{build_info, options};
use crate::notify;
use crate::tls::Tls;

/// Most requests of one client that run at the same time, without `-t`. nbdkit(1).
const DEFAULT_THREADS: u32 = 16;
/// `--busy-poll`, if it is not given: twice the time from a reply to the next request where both
/// sides sleep, on a machine where it takes long to wake them.
const DEFAULT_BUSY_POLL: Duration = Duration::from_micros(200);

/// Environment variables for the listener alone, which other processes do not inherit.
pub(crate) const LISTENER_VARIABLES: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    notify::NOTIFY_SOCKET,
    notify::WATCHDOG_PID,
    notify::WATCHDOG_USEC,
];

/// What a template is started and configured with: the first one, and those that replace it.
pub(crate) struct TemplateSpec {
    program: Program,
    configure: Configure,
    certificates: Vec<TlsPiece>,
    parameters: Vec<Parameter>,
}

/// What the server prints before plugin and filters do.
fn introduction(purpose: Purpose) -> String {
    match purpose {
        Purpose::Help => options::help() + "\n",
        Purpose::Version => build_info::version(),
        Purpose::Serve | Purpose::ServeAgain | Purpose::DumpPlugin => String::new(),
    }
}

impl TemplateSpec {
    /// From the command line. `stdio_safe`: standard input and output are not a client's.
    pub(crate) fn new(
        stack: &Stack,
        options: &Options,
        purpose: Purpose,
        stdio_safe: bool,
        tls: Option<&Tls>,
    ) -> TemplateSpec {
        let configure = Configure {
            stack: StackId::ONLY,
            purpose,
            filters: stack.filters.clone(),
            plugin: stack.plugin.clone(),
            verbose: options.verbose,
            debug_flags: options.debug_flags.clone(),
            readonly: options.readonly,
            threads: options.threads.map_or(DEFAULT_THREADS, std::num::NonZero::get),
            protocol: options.protocol,
            timeout: options.timeout,
            stdio_safe,
            swap: options.swap,
            isolation: options.isolation,
            sandbox: options.sandbox,
            tls: tls.map(|tls| tls.configure.clone()),
            introduction: introduction(purpose),
            one_client: options.max_connections == Some(1)
                || options.max_connections_per_peer == Some(1),
            allowed: messages::Allowed {
                paths: options
                    .allow_paths
                    .iter()
                    .map(|allowed| (allowed.path.clone().into(), allowed.write))
                    .collect(),
                network: options.allow_net,
            },
            log_connections: options.log_connections,
            busy_poll: options.busy_poll.unwrap_or(DEFAULT_BUSY_POLL),
        };
        let program = Program {
            path: installed(worker_program(&configure, stack)),
            title: format!("template {}", title::name(crate::plugin_name(stack))),
            spared: is_spared(),
            // Later templates start when the listener may have left it.
            directory: std::env::current_dir().ok(),
            stderr: None,
        };
        TemplateSpec {
            program,
            configure,
            certificates: tls.map(|tls| tls.pieces.clone()).unwrap_or_default(),
            parameters: stack.parameters.clone(),
        }
    }

    /// The filters and the plugin, outermost first, for log lines.
    pub(crate) fn stack(&self) -> String {
        let Configure { filters, plugin, .. } = &self.configure;
        let names = filters.iter().chain([plugin]).map(|name| name.as_bytes().escape_ascii());
        names.map(|name| name.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Gives templates and the spawner another standard error than the listener's.
    pub(crate) fn print_to(&mut self, stderr: OwnedFd) {
        self.program.stderr = Some(Arc::new(stderr));
    }

    /// The template's program.
    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// What the template is for.
    pub(crate) fn purpose(&self) -> Purpose {
        self.configure.purpose
    }

    /// Whether a second template would be configured as the first was: not if a parameter (`-`,
    /// `-FD`) made it read standard input or another descriptor, which can be read only once.
    pub(crate) fn repeatable(&self) -> bool {
        !self.parameters.iter().any(|parameter| reads_descriptor(&parameter.value))
    }

    /// Starts the first template and begins to configure it.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(&self) -> Result<Template, ProgramError> {
        self.execute(Origin::FirstStart, self.messages(self.purpose()))
    }

    /// Starts a template that replaces one that has ended.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start_again(&self, service: &EnterService) -> Result<Template, ProgramError> {
        let service = ToTemplate::EnterService(service.clone());
        self.execute(Origin::Rebuild, self.messages(Purpose::ServeAgain).chain([service]))
    }

    fn execute(
        &self,
        origin: Origin,
        messages: impl Iterator<Item = ToTemplate>,
    ) -> Result<Template, ProgramError> {
        let failed = |cause| ProgramError::of(&self.program, cause);
        let (pid, link) = self.program.start(&LISTENER_VARIABLES).map_err(failed)?;
        let mut template = Template::new(pid, link, origin);
        template.outbox.extend(messages);
        template.flush().map_err(failed)?;
        Ok(template)
    }

    /// The messages that configure a template, in order.
    pub(crate) fn messages(&self, purpose: Purpose) -> impl Iterator<Item = ToTemplate> {
        let configure = Configure { purpose, ..self.configure.clone() };
        let first = [ToTemplate::Hello(Hello::ours()), ToTemplate::Configure(Box::new(configure))];
        let pieces = self.certificates.iter().cloned().map(ToTemplate::TlsPiece);
        let parameters = self.parameters.iter().cloned().map(ToTemplate::Parameter);
        first.into_iter().chain(pieces).chain(parameters).chain([ToTemplate::ConfigureEnd])
    }
}

/// Whether this program's name tells systemd not to kill it before the root disk is gone.
pub(crate) fn is_spared() -> bool {
    let argv0 = std::env::args_os().next().unwrap_or_default();
    argv0.as_bytes().first() == Some(&title::ROOT_STORAGE_DAEMON)
}

/// `nbdkit-worker`, or the one with pre-shared keys: for clients, or for the server that the nbd
/// plugin connects to.
fn worker_program(configure: &Configure, stack: &Stack) -> &'static str {
    let for_clients =
        configure.tls.as_ref().is_some_and(|tls| tls.credentials == Credentials::PreSharedKeys);
    let names_keys = |parameter: &Parameter| {
        let value = parameter.value.as_bytes();
        parameter.key.as_deref() == Some("tls-psk")
            || value.windows(13).any(|word| word == b"tls-psk-file=")
    };
    if for_clients || stack.parameters.iter().any(names_keys) {
        "nbdkit-worker-psk"
    } else {
        "nbdkit-worker"
    }
}

/// The path of a program that only this one starts.
pub(crate) fn installed(name: &str) -> PathBuf {
    let directory = option_env!("NBDKIT_LIBEXECDIR").unwrap_or("/usr/local/libexec/nbdkit");
    program::beside_or_in(name, Path::new(directory))
}

fn reads_descriptor(value: &OsStr) -> bool {
    matches!(value.as_bytes(), [b'-', digits @ ..] if digits.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use nbdkit_ipc::messages::Applies;

    use super::*;

    fn spec(values: &[&str]) -> TemplateSpec {
        let stack = Stack { filters: vec![], plugin: "null".into(), parameters: vec![] };
        let mut spec = TemplateSpec::new(&stack, &Options::default(), Purpose::Serve, true, None);
        spec.parameters = values
            .iter()
            .map(|value| Parameter {
                key: Some("k".to_owned()),
                value: value.into(),
                applies: Applies::Always,
            })
            .collect();
        spec
    }

    #[test]
    fn a_password_from_a_descriptor_cannot_be_read_again() {
        assert!(spec(&["disk.img", "-x", "1-2", "--"]).repeatable());
        assert!(!spec(&["disk.img", "-"]).repeatable());
        assert!(!spec(&["-3"]).repeatable());
    }

    #[test]
    fn the_default_is_sixteen_threads() {
        assert_eq!(spec(&[]).configure.threads, 16);
    }

    #[test]
    fn a_worker_that_is_not_there_is_named() {
        let mut spec = spec(&[]);
        spec.program.path = "/no/such/nbdkit-worker".into();
        assert_eq!(
            spec.start().err().unwrap().to_string(),
            "cannot start /no/such/nbdkit-worker: No such file or directory"
        );
    }
}
