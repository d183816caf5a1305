//! The template: configures the stack, becomes the final user, and then makes a worker for every
//! client that the listener sends, or, with isolation `shared`, serves them all on threads.
//!
//! Trusts the listener. Single-threaded as long as it forks.

#![forbid(unsafe_code)]

mod reap;
mod replaced;
mod shared;
mod strays;
mod worker;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use nbdkit_api::paths::{self, Kept};
use nbdkit_api::{
    Isolation, Layer, ResultExt, Stack, ThreadModel, endpoints, log::error as log_error, strerror,
};
use nbdkit_ipc::messages::{Configure, Configured, EnterService, Hello, Parameter, Purpose, Serve};
use nbdkit_ipc::process::Process;
use nbdkit_ipc::{FromTemplate, Received, RecvError, StackId, ToTemplate};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::broker::ask::{Connecting, Link, Opening};
use crate::broker::{self, Broker};
use crate::log::{self, TemplateLink};
use crate::oom::OomScore;
use crate::sandbox::{self, Sandbox, skips};
use crate::settings::Settings;
use crate::tls::{MakeSessions, Material, Tls};
use crate::{configure, describe, privileges, process};
use replaced::Replaced;

/// Why the template ends early. The reason has been sent to the listener.
struct Failed;

/// Runs the template on its link to the listener until the server ends.
/// `pre_shared_keys`: what makes sessions with them, if this program can.
pub(crate) fn run(link: TemplateLink, pre_shared_keys: Option<MakeSessions>) -> ExitCode {
    match start(Arc::new(link), pre_shared_keys) {
        Ok(Some(mut service)) => {
            service.run();
            service.layer.cleanup();
            service.layer.unload();
            if let Some(strays) = &service.strays {
                strays.kill_all();
            }
            if let Some(broker) = service.broker {
                broker.reap();
            }
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(Failed) => ExitCode::FAILURE,
    }
}

/// Gets ready, and gives the link to the service alone, so that a worker can close it.
fn start(
    link: Arc<TemplateLink>,
    pre_shared_keys: Option<MakeSessions>,
) -> Result<Option<Service>, Failed> {
    match get_ready(&link, pre_shared_keys) {
        Ok(service) => Ok(service.map(|service| Service { link: Some(link), ..service })),
        Err(Failed) => {
            let _ = link.send(&FromTemplate::Failed, &[]);
            Err(Failed)
        }
    }
}

/// The start-up sequence of nbdkit-plugin(3). `None` if the purpose was only to print something.
fn get_ready(
    link: &Arc<TemplateLink>,
    pre_shared_keys: Option<MakeSessions>,
) -> Result<Option<Service>, Failed> {
    let _ = link.send(&FromTemplate::Hello(Hello::ours()), &[]);
    let (mut configure, mut parameters, material) = receive_configuration(link)?;
    log::use_template(Arc::clone(link), configure.verbose);
    nbdkit_api::client::set_stdio_safe(configure.stdio_safe);
    nbdkit_api::client::on_shutdown(Box::new(log::request_shutdown));
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));

    configure::expand_script(&mut configure, &mut parameters).map_err(failed)?;
    let mut stack = configure::load(&configure).map_err(failed)?;
    match configure.purpose {
        Purpose::Help => return printed(&stack, describe::help(&stack, &configure.introduction)),
        Purpose::Version => {
            return printed(&stack, describe::version(&stack, &configure.introduction));
        }
        Purpose::Serve | Purpose::DumpPlugin => {}
    }
    configure::parameters(&mut stack, &parameters).map_err(failed)?;
    if configure.purpose == Purpose::DumpPlugin {
        let model = stack.thread_model().map_err(failed)?;
        return printed(&stack, describe::dump_plugin(&stack, model));
    }
    stack.config_complete().map_err(failed)?;
    let model = stack.thread_model().map_err(failed)?;
    stack.get_ready(model).map_err(failed)?;
    let mut settings = Settings::new(&configure, model).map_err(failed)?;
    if let Some(tls) = &configure.tls {
        nbdkit_api::client::set_tls_required(tls.require);
        settings.tls = Some(Tls::new(tls, material, pre_shared_keys).map_err(failed)?);
    }

    let usual = stack.default_isolation();
    let wanted = configure.isolation.unwrap_or(usual);
    let isolation = match (configure.isolation, stack.isolation()) {
        (Some(Isolation::Connection), Isolation::Shared) => {
            log_error("--isolation=connection: this plugin keeps its state in one process");
            return Err(Failed);
        }
        (_, possible) => possible.min(wanted),
    };
    let needs = stack.checked_needs(configure.readonly).map_err(failed)?;
    let replaceable = !stack.keeps_state();
    let (may_shutdown, programs, undeclared) = (needs.shutdown, needs.programs, needs.undeclared);
    let sandbox = Sandbox::new(configure.sandbox, needs, isolation);
    let mut sandbox = sandbox.allowing(&configure.allowed).map_err(failed)?;
    let layer = stack.freeze();
    let told = Configured {
        stack: configure.stack,
        one_client: model == ThreadModel::SerializeConnections,
        isolation,
        replaceable,
        may_shutdown,
        programs,
        undeclared,
    };
    let _ = link.send(&FromTemplate::Configured(told), &[]);

    let service = match receive(link)? {
        Received { message: ToTemplate::EnterService(service), .. } => service,
        // Start-up failed elsewhere.
        Received { message: ToTemplate::Quiesce, .. } => return Ok(None),
        other => return Err(unexpected(&other.message)),
    };
    process::set_channel(&**link, false);
    let shared = isolation == Isolation::Shared;
    // Before its file is another user's.
    let oom_score = OomScore::take(configure.swap);
    let broker =
        enter(&service, configure.swap, settings.threads, &layer, &mut sandbox, link, shared)
            .map_err(failed)?;
    if isolation == Isolation::Connection && !process::is_single_threaded() {
        log_error(
            "--isolation=connection: the plugin or a filter has started threads, which a process of each client would not have",
        );
        return Err(Failed);
    }
    let strays = programs.then(strays::Strays::new).transpose().map_err(failed)?;
    let _ = link.send(&FromTemplate::Ready, &[]);
    Ok(Some(Service {
        link: None,
        layer,
        settings: Arc::new(settings),
        isolation,
        single: !configure.stdio_safe,
        swap: configure.swap,
        oom_score: oom_score.filter(|_| !shared),
        sandbox,
        strays,
        broker: broker.as_ref().map(|(broker, _)| *broker),
        replaced: broker.map(|(_, replaced)| replaced),
    }))
}

/// The end of a template that only had something to print.
fn printed(stack: &Stack, result: io::Result<()>) -> Result<Option<Service>, Failed> {
    stack.unload();
    if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // A reader that has seen enough, such as grep -q: not worth a line.
        return Err(Failed);
    }
    result.or_error(|| "standard output").map(|()| None).map_err(failed)
}

/// From start-up into service: out of the terminal and, in the background, the directory; to the
/// final user. Must not yet close what `after_fork` may open.
fn enter(
    service: &EnterService,
    swap: bool,
    threads: usize,
    layer: &Layer,
    sandbox: &mut Sandbox,
    link: &TemplateLink,
    shared: bool,
) -> nbdkit_api::Result<Option<(Broker, Replaced)>> {
    process::leave_signals_to_listener();
    let _ = nix::sys::prctl::set_name(c"nbdkit:template");
    if service.background {
        nix::unistd::chdir("/").or_error(|| "chdir: /")?;
    }
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .or_error(|| "open: /dev/null")?;
    nix::unistd::dup2_stdin(&null).or_error(|| "dup2")?;
    nix::unistd::dup2_stdout(&null).or_error(|| "dup2")?;
    nbdkit_api::client::set_forked(service.forked);
    if service.background {
        nix::unistd::dup2_stderr(&null).or_error(|| "dup2")?;
    }
    // The terminal is not for us any more, and nobody types into it by way of us. It can fail only
    // if we lead a session already.
    let _ = nix::unistd::setsid();
    for path in layer.temporary() {
        privileges::hand_down(&path, service)?;
    }
    // All of these need privileges that later lines take away.
    sandbox.separate();
    let plugin = layer.plugin_name();
    let broker = match sandbox.has_broker() {
        true => {
            let plan = broker::Plan { plugin, needs: sandbox.needs(), service, shared, swap };
            Some(broker::start(link, &plan)?)
        }
        false => None,
    };
    sandbox.separate_network();
    if swap {
        process::become_io_flusher();
    }
    let (capabilities, limits) = (
        sandbox.is_on() && !skips(sandbox::Layer::Capabilities),
        sandbox.is_on() && !skips(sandbox::Layer::Limits),
    );
    if capabilities {
        privileges::limit_bounding_set(service, &sandbox.files())?;
        // Threads need the right to do that, too, which another user does not have.
        nbdkit_sandbox::threads::confine(None).map_err(sandbox::failed)?;
    }
    privileges::become_user(service, swap)?;
    if capabilities {
        // What a broker opens files with, the template opens those with that it keeps.
        let for_broker =
            sandbox.opens_by_broker().then(|| privileges::overruling(sandbox.needs().writes()));
        let besides = for_broker.as_ref().map_or(&[][..], |it| it);
        privileges::drop_capabilities(&sandbox.files(), swap, besides)?;
    }
    if limits {
        privileges::lock_down(sandbox.descriptors(), sandbox.memory(threads))?;
    }
    if swap {
        process::keep_heap();
        privileges::lock_memory()?;
    }
    let broker = broker.map(|(broker, links)| {
        connect_through(links.connecting, sandbox);
        (broker, links.opening)
    });
    layer.after_fork()?;
    layer.warm_up()?;
    let broker = broker.map(|(broker, links)| (broker, open_through(links, sandbox)));
    if capabilities && broker.is_some() {
        privileges::drop_capabilities(&sandbox.files(), swap, &[])?;
    }
    sandbox.close()?;
    Ok(broker)
}

/// Has the broker asked for connections.
fn connect_through(links: Vec<Link>, sandbox: &Sandbox) {
    if sandbox.connects_by_broker() {
        let connecting = Connecting::new(sandbox.needs().endpoints.clone(), links);
        endpoints::connect_through(Box::new(connecting));
    }
}

/// Opens what can be kept open, and has the broker asked for the rest.
fn open_through(links: Vec<Link>, sandbox: &Sandbox) -> Replaced {
    if !sandbox.opens_by_broker() {
        return Replaced::watch(&[]);
    }
    let declared = &sandbox.needs().declared;
    let kept = Kept::new(declared);
    let replaced = Replaced::watch(&kept.paths());
    paths::serve_through(Box::new(Opening::new(declared.clone(), links)), kept);
    replaced
}

fn failed(mut error: nbdkit_api::Error) -> Failed {
    if error.take_for_log() {
        log_error(error.message());
    }
    Failed
}

fn unexpected(message: &ToTemplate) -> Failed {
    let text = format!("{message:?}");
    log_error(&format!(
        "unexpected message from the listener: {}",
        text.split('(').next().unwrap_or_default()
    ));
    Failed
}

fn receive(link: &TemplateLink) -> Result<Received<ToTemplate>, Failed> {
    loop {
        match link.recv() {
            Ok(received) => return Ok(received),
            Err(RecvError::Io(Errno::EINTR)) => {}
            // Without a listener there is nobody to tell.
            Err(_) => return Err(Failed),
        }
    }
}

fn receive_configuration(
    link: &TemplateLink,
) -> Result<(Configure, Vec<Parameter>, Material), Failed> {
    let ToTemplate::Hello(hello) = receive(link)?.message else { return Err(Failed) };
    if let Err(why) = hello.check() {
        eprintln!("nbdkit-worker: {why}");
        return Err(Failed);
    }
    let ToTemplate::Configure(configure) = receive(link)?.message else { return Err(Failed) };
    configure.stack.check().map_err(|_| Failed)?;
    let (mut parameters, mut material) = (Vec::new(), Material::default());
    loop {
        match receive(link)?.message {
            ToTemplate::TlsPiece(piece) => material.add(piece),
            ToTemplate::Parameter(parameter) => parameters.push(parameter),
            ToTemplate::ConfigureEnd => return Ok((*configure, parameters, material)),
            _ => return Err(Failed),
        }
    }
}

/// The template in service.
struct Service {
    /// `None` before service, and in workers, which must not speak as the template.
    link: Option<Arc<TemplateLink>>,
    layer: Arc<Layer>,
    settings: Arc<Settings>,
    isolation: Isolation,
    /// Whether there will be one client only (`-s`).
    single: bool,
    swap: bool,
    /// `None` where workers are no more likely to be killed than the template, or there are none.
    oom_score: Option<OomScore>,
    sandbox: Sandbox,
    /// What scripts leave behind, if the stack runs any.
    strays: Option<strays::Strays>,
    broker: Option<Broker>,
    /// Tells that what is kept open may have been replaced.
    replaced: Option<Replaced>,
}

impl Service {
    /// Tells the listener. If it is gone, there is nobody to tell, which is noticed elsewhere.
    fn say(&self, message: &FromTemplate) {
        if let Some(link) = &self.link {
            let _ = link.send(message, &[]);
        }
    }

    /// A client has come whose descriptors did not fit into this process. It is not served; others
    /// are.
    fn has_no_room(&self, connection: u64) {
        log_error(&format!(
            "client {connection} is refused: its descriptors were lost ({})",
            strerror(Errno::EMFILE)
        ));
        self.say(&FromTemplate::Exited { connection, exit: nbdkit_ipc::WorkerExit::Failed });
    }

    fn run(&mut self) {
        match self.isolation {
            Isolation::Connection => self.run_forking(),
            Isolation::Shared => shared::run(self),
        }
    }

    /// Makes a worker for every client until the listener sends `Quiesce` or is gone, then waits
    /// for the workers to end.
    fn run_forking(&mut self) {
        // std makes this when it is asked for; made here, it is not made anew in every worker.
        let _ = std::thread::current();
        let mut children = match reap::Children::new() {
            Ok(children) => children,
            Err(errno) => {
                log_error(&format!("signalfd: {}", strerror(errno)));
                return;
            }
        };
        let mut serving = true;
        let mut listener_lives = true;
        while serving || !children.is_empty() {
            self.oom_score.iter_mut().for_each(OomScore::for_template);
            // A closed link must not wake us again and again.
            let link = self.link.as_ref().filter(|_| listener_lives).map(|link| link.as_fd());
            let replaced = self.replaced.as_ref().and_then(Replaced::fd);
            let fds = [Some(children.as_fd()), link, replaced].into_iter().flatten();
            let mut fds: Vec<PollFd<'_>> =
                fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {
                    if replaced.is_some() && fds.last().and_then(PollFd::any) == Some(true) {
                        self.replaced.iter().for_each(Replaced::take);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    log_error(&format!("poll: {}", strerror(errno)));
                    return;
                }
            }
            let (ended, any) = children.reap();
            for (connection, exit) in ended {
                self.say(&FromTemplate::Exited { connection, exit });
                self.layer.worker_ended();
            }
            // After the end of a stray, too: it has left its own children.
            if let Some(strays) = self.strays.as_ref().filter(|_| any) {
                strays.kill(|pid| children.is_worker(pid));
            }
            while listener_lives {
                match self.link.as_ref().map_or(Err(RecvError::Closed), |link| link.try_recv()) {
                    Ok(Received { message: ToTemplate::Serve(serve), lost: true, .. })
                        if serving && serve.stack == StackId::ONLY =>
                    {
                        self.has_no_room(serve.connection);
                    }
                    Ok(Received { message: ToTemplate::Serve(serve), fds, .. })
                        if serving && serve.stack == StackId::ONLY =>
                    {
                        self.fork_worker(&serve, fds, &mut children);
                    }
                    Err(RecvError::Empty | RecvError::Io(Errno::EINTR)) => break,
                    Ok(Received { message: ToTemplate::Quiesce, .. }) => serving = false,
                    Ok(_) if !serving => {}
                    Ok(other) => {
                        let _ = unexpected(&other.message);
                        serving = false;
                    }
                    Err(error) => {
                        if !matches!(error, RecvError::Closed) {
                            log_error(&format!("control channel: {error}"));
                        }
                        (serving, listener_lives) = (false, false);
                        // Workers end by themselves, but nobody is left to end one that waits for a
                        // script. And whoever kills the server does not expect that its scripts go
                        // on.
                        if self.strays.is_some() {
                            children.kill();
                        }
                    }
                }
            }
        }
        // The scripts of `cleanup` and `unload` wait for their own children.
        children.forget();
    }

    fn fork_worker(&mut self, serve: &Serve, fds: Vec<OwnedFd>, children: &mut reap::Children) {
        let connection = serve.connection;
        let kept = paths::kept();
        let slot = kept.and_then(|kept| children.free_slot(kept.slots()));
        self.oom_score.iter_mut().for_each(OomScore::for_worker);
        match process::fork() {
            Ok(Some(pid)) => {
                children.add(pid, connection, slot);
                let message = FromTemplate::Forked { connection, pid: pid.as_raw() };
                // Without one the listener looks for the process by its number.
                let process = Process::open(pid).ok();
                let fds: Vec<BorrowedFd<'_>> = process.iter().map(AsFd::as_fd).collect();
                if let Some(link) = &self.link {
                    let _ = link.send(&message, &fds);
                }
            }
            Ok(None) => {
                children.forget();
                // It is the template's.
                drop(self.oom_score.take());
                if let Some(kept) = kept {
                    kept.use_slot(slot);
                    // What is open for others is not this client's business.
                    for range in kept.of_other_slots(slot) {
                        let _ = process::close_range(*range.start(), *range.end());
                    }
                }
                let link = self.link.take();
                process::exit_now(worker::run(self, link, serve, fds));
            }
            Err(errno) => {
                log_error(&format!("fork: {}", strerror(errno)));
                let exit = nbdkit_ipc::WorkerExit::Failed;
                self.say(&FromTemplate::Exited { connection, exit });
            }
        }
    }
}
