//! From the first template to the first client. The order is nbdkit's: `get_ready`, sockets, the
//! URI, another user and `after_fork`, the pid file, the background, `--run`.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use nbdkit_ipc::messages::{Configured, Purpose};

use super::shutdown::Stage;
use super::slot::TemplateSlot;
use super::{FirstStart, Server};
use crate::captive::{Captive, Streams};
use crate::cli::build_info::{NBDKIT_VERSION, OWN_VERSION};
use crate::cli::command_line::{ServiceMode, TcpPort, TlsMode};
use crate::cli::uri;
use crate::confine::ConfineError;
use crate::error::StartError;
use crate::notify::State;
use crate::system_error::SystemError;
use crate::template::Origin;
use crate::{confine, daemon, pid_file, privileges, sockets};

impl Server {
    /// The first debug lines.
    pub(super) fn introduce(&self) {
        self.context.log().debug(|| format!("nbdkit {NBDKIT_VERSION} (nbdkitd {OWN_VERSION})"));
        let flags = &self.context.plan().options.debug_flags;
        let environ = |flag: &&crate::cli::command_line::DebugFlag| {
            flag.is_server() && flag.flag == "environ"
        };
        if flags.iter().rfind(environ).is_some_and(|flag| flag.value != 0) {
            for (name, value) in std::env::vars_os() {
                self.context
                    .log()
                    .debug(|| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()));
            }
        }
    }

    /// The template has configured the stack.
    pub(super) fn configured(&mut self, configured: Configured) {
        const UNEXPECTED: &str = "unexpected Configured";
        if self.context.plan().spec.purpose() != Purpose::Serve {
            return self.slot.violation(UNEXPECTED, &self.context);
        }
        let Some(origin) = self.slot.origin() else { return };
        match (origin, self.shutdown.stage()) {
            (Origin::FirstStart, Stage::Configuring) => {
                let Some(first) = self.first.take() else {
                    return self.slot.violation(UNEXPECTED, &self.context);
                };
                self.slot.set_configured(configured);
                if let Err(error) = self.listen(first) {
                    return self.fail(&error.to_string());
                }
                self.shutdown.set_stage(Stage::Entering);
                self.slot.enter_service(TemplateSlot::service(&self.context));
            }
            // `Quiesce` was sent instead.
            (Origin::FirstStart, Stage::Stopping) => {}
            (Origin::Rebuild, Stage::Serving) => {
                self.slot.enters_service();
                // The same parameters may mean something else by now, but not everything else.
                let refused = self.slot.configured().and_then(|it| refused_change(it, &configured));
                match refused.zip(self.slot.pid()) {
                    Some((what, pid)) => self.slot.kill_for(format!("{what} (pid {pid})")),
                    None => self.slot.set_configured(configured),
                }
            }
            // `Quiesce` follows.
            (Origin::Rebuild, Stage::Stopping) => self.slot.enters_service(),
            (Origin::FirstStart, Stage::Entering | Stage::Serving)
            | (Origin::Rebuild, Stage::Configuring | Stage::Entering) => {
                self.slot.violation(UNEXPECTED, &self.context);
            }
        }
    }

    /// Opens the listening sockets, prints the URI, and gives up the standard streams.
    fn listen(&mut self, first: FirstStart) -> Result<(), StartError> {
        let plan = self.context.plan();
        let Some(mode) = &plan.mode else { return Ok(()) };
        let FirstStart { adopted } = first;
        let label = plan.options.selinux_label.as_deref();
        let listening = sockets::open(mode, adopted, label, self.context.log())?;
        // For the URI: port 0 is of no use to clients.
        if let (Some(ServiceMode::Tcp { port, .. }), Some(chosen)) =
            (&mut self.context.plan_mut().mode, listening.port)
        {
            *port = Some(TcpPort::Number(chosen));
        }
        self.acceptor.set_private(listening.directory);
        self.made.extend(listening.made);
        for socket in listening.sockets {
            sockets::keep_alive(&socket, self.context.plan().options.keepalive);
            self.acceptor
                .add_socket(socket, &self.context)
                .map_err(SystemError::in_call("epoll_ctl"))?;
        }
        self.print_uri()?;
        if self.context.plan().options.run.is_some() {
            let streams = Streams::keep().map_err(SystemError::in_call("dup"))?;
            self.shutdown.keep_streams(streams);
        }
        Ok(daemon::release_standard_streams()?)
    }

    fn private_socket(&self) -> &Path {
        self.acceptor.private().map_or(Path::new(""), |directory| directory.socket())
    }

    /// The TLS mode after looking for certificates.
    fn tls_mode(&self) -> TlsMode {
        self.context.plan().tls.as_ref().map_or(TlsMode::Off, |tls| tls.mode)
    }

    fn print_uri(&self) -> Result<(), SystemError> {
        let Some(mode) = &self.context.plan().mode else { return Ok(()) };
        let options = &self.context.plan().options;
        let Some(endpoint) = mode.endpoint(self.private_socket()) else {
            self.context
                .log()
                .debug(|| format!("no NBD URI because service mode is {}", mode.name()));
            return Ok(());
        };
        let uri = uri::uri(endpoint, &options.export_name, self.tls_mode(), &options.tls);
        self.context.log().debug(|| format!("NBD URI: {uri}"));
        if options.print_uri {
            let mut stdout = io::stdout().lock();
            stdout
                .write_all(uri::print_uri(&uri).as_bytes())
                .and_then(|()| stdout.flush())
                .map_err(SystemError::in_call("standard output"))?;
        }
        Ok(())
    }

    /// The template is ready for clients.
    pub(super) fn ready(&mut self) {
        match self.shutdown.stage() {
            Stage::Entering => {}
            Stage::Serving => {
                self.slot.succeeded(Instant::now());
                let text = "the template was replaced, clients are accepted again";
                self.context.log().notice(text);
                self.kill_strays();
                return self.slot.replace_if_broker_lost(Stage::Serving, &self.workers);
            }
            // `Quiesce` was sent.
            Stage::Stopping => return,
            Stage::Configuring => {
                return self.slot.violation("unexpected Ready", &self.context);
            }
        }
        self.shutdown.set_stage(Stage::Serving);
        if let Err(error) = self.enter_service() {
            return self.fail(&error.to_string());
        }
        self.manager.notify(State::Ready);
        self.slot.replace_if_broker_lost(Stage::Serving, &self.workers);
        if let Some(streams) = self.context.plan_mut().streams.take() {
            self.send_streams(streams);
        }
    }

    /// All that others see of the server being ready.
    fn enter_service(&mut self) -> Result<(), StartError> {
        if self.context.plan().report.is_some() {
            self.context
                .log()
                .debug(|| format!("forked into background (new pid = {})", std::process::id()));
        }
        if let Some(path) = &self.context.plan().options.pid_file {
            let made = pid_file::write(path)
                .map_err(|cause| StartError::PidFile { path: path.clone(), cause })?;
            self.made.extend(made);
            self.context.log().debug(|| format!("written pidfile {}", path.display()));
        }
        // Here rather than last: an error must still reach the user.
        privileges::reduce(self.context.is_sandboxed()).map_err(ConfineError::from)?;
        let report = self.context.plan_mut().report.take();
        if report.is_some() {
            daemon::leave_terminal(self.context.log().verbose())?;
            self.context.log().enter_background();
        }
        if let Some(streams) = self.shutdown.take_streams() {
            let script = self.run_script();
            let captive = Captive::start(&script, streams, self.context.plan().unprotected)
                .map_err(SystemError::on("--run", "/bin/sh"))?;
            self.shutdown.set_captive(captive);
        }
        // While the files of a start that fails can be removed. From the sandbox on they stay, as
        // in nbdkit.
        if report.as_ref().is_some_and(|report| !report.is_awaited()) {
            return Err(StartError::LauncherGone);
        }
        // After the command of --run was started, which may use select(2).
        self.acceptor.fit_descriptors(self.slot.can_park(), &self.context);
        // After all that starts programs, and before anybody relies on it.
        self.confine()?;
        self.made.clear();
        if let Some(report) = report {
            report.ready().map_err(|_| StartError::LauncherGone)?;
        }
        Ok(())
    }

    /// Confines the listener. Must not yet be called while there are programs to be started.
    fn confine(&mut self) -> Result<(), StartError> {
        if !self.context.is_sandboxed() {
            return Ok(());
        }
        self.slot.start_spawner(self.acceptor.private_mut(), &self.context)?;
        // After all that was executed.
        self.leave_root()?;
        Ok(confine::confine(self.context.log())?)
    }

    fn run_script(&self) -> OsString {
        let options = &self.context.plan().options;
        let endpoint =
            self.context.plan().mode.as_ref().and_then(|mode| mode.endpoint(self.private_socket()));
        uri::run_script(
            options.run.as_deref().unwrap_or_default(),
            endpoint,
            &options.export_name,
            self.tls_mode(),
            &options.tls,
        )
    }
}

/// What a new template has that the one before did not have, and may not have for that reason. What
/// a file holds, and thus a disk's size, may change: it is the next client's.
fn refused_change(before: &Configured, now: &Configured) -> Option<&'static str> {
    let Configured {
        stack: _,
        isolation,
        may_shutdown,
        one_client: _,
        replaceable: _,
        programs: _,
        undeclared: _,
        can_park,
    } = before;
    // Clients that are there are in the books as one or the other.
    if *isolation != now.isolation {
        return Some("the new one has another isolation than the first");
    }
    // A client that is parked has to be served by any.
    if *can_park && !now.can_park {
        return Some("the new one cannot serve clients that are parked");
    }
    // No client of the first could have stopped the server for the others.
    (now.may_shutdown && !may_shutdown)
        .then_some("the new one may stop the server, which the first might not")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fuzz::Listener;
    use nbdkit_ipc::FromTemplate;
    use nbdkit_ipc::messages::{Hello, Isolation};

    /// A server with a client, whose new template was configured so.
    fn replaced_by(change: impl FnOnce(&mut Configured)) -> Listener {
        let mut listener = Listener::new(1, false).unwrap();
        let mut configured = listener.server.slot.configured().unwrap().clone();
        // The harness's may.
        configured.may_shutdown = false;
        listener.server.slot.set_configured(configured.clone());
        change(&mut configured);
        listener.template.send(&FromTemplate::Hello(Hello::ours()), &[]).unwrap();
        listener.template.send(&FromTemplate::Configured(configured), &[]).unwrap();
        assert!(listener.turn());
        listener
    }

    #[test]
    fn a_new_template_may_be_slower_and_may_not_have_more_rights_or_another_isolation() {
        let listener = replaced_by(|it| it.one_client = true);
        assert!(listener.server.slot.configured().unwrap().one_client);
        assert!(listener.server.slot.template().is_some_and(|template| !template.is_explained()));
        let changes: [fn(&mut Configured); 2] =
            [|it| it.isolation = Isolation::Shared, |it| it.may_shutdown = true];
        for change in changes {
            let mut listener = replaced_by(change);
            let template = listener.server.slot.template().unwrap();
            assert!(template.is_explained() && template.failure().is_some(), "it is killed");
            let configured = listener.server.slot.configured().unwrap().clone();
            assert!(configured.isolation == Isolation::Connection && !configured.may_shutdown);
            listener.template_ends();
            assert!(listener.turn(), "the server goes on");
            assert_eq!(listener.server.workers.len(), 1);
            assert!(!listener.server.slot.is_starting());
            assert!(
                listener.server.slot.next_deadline(Instant::now()).is_some(),
                "it is tried again"
            );
        }
    }
}
