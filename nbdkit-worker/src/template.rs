//! The template: configures the stack, becomes the final user, and then makes a worker for every
//! client that the listener sends, or, with isolation `shared`, serves them all on threads.
//!
//! Trusts the listener. Single-threaded as long as it forks.

#![forbid(unsafe_code)]

mod enter;
mod orphaned;
mod parked;
mod reap;
mod replaced;
mod service;
mod shared;
mod strays;
mod worker;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use nbdkit_api::{Isolation, ResultExt, Stack, ThreadModel, log::error as log_error};
use nbdkit_ipc::messages::{Configure, Configured, Hello, Parameter, Purpose};
use nbdkit_ipc::{FromTemplate, Received, RecvError, ToTemplate};
use nix::errno::Errno;

use crate::log::{self, TemplateLink};
use crate::oom::OomScore;
use crate::sandbox::Sandbox;
use crate::settings::Settings;
use crate::tls::{MakeSessions, Material, Tls};
use crate::{code_pages, configure, describe, process};
use enter::{Companions, enter};
use service::Service;

/// The template ends early. The reason has been sent to the listener, for the log.
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
            if let Some(watchers) = service.watchers {
                watchers.end();
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
    nbdkit_api::client::set_replacement(configure.purpose == Purpose::ServeAgain);
    nbdkit_api::client::set_swap(configure.swap);
    nbdkit_api::client::on_shutdown(Box::new(log::request_shutdown));
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));

    configure::expand_script(&mut configure, &mut parameters).map_err(failed)?;
    let mut stack = configure::load(&configure).map_err(failed)?;
    match configure.purpose {
        Purpose::Help => return printed(&stack, describe::help(&stack, &configure.introduction)),
        Purpose::Version => {
            return printed(&stack, describe::version(&stack, &configure.introduction));
        }
        Purpose::Serve | Purpose::ServeAgain | Purpose::DumpPlugin => {}
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

    // Before isolation, which a module may declare with its needs.
    let needs = stack.checked_needs(configure.readonly).map_err(failed)?;
    let usual = stack.default_isolation();
    let wanted = configure.isolation.unwrap_or(usual);
    let isolation = match (configure.isolation, stack.isolation()) {
        (Some(Isolation::Connection), Isolation::Shared) => {
            log_error("--isolation=connection: this plugin keeps its state in one process");
            return Err(Failed);
        }
        (_, possible) => possible.min(wanted),
    };
    nbdkit_api::debug!("{}", stack.describe());
    let replaceable = !stack.keeps_state();
    let (may_shutdown, programs, undeclared) = (needs.shutdown, needs.programs, needs.undeclared);
    let sandbox = Sandbox::new(configure.sandbox, needs, isolation);
    let mut sandbox = sandbox.allowing(&configure.allowed).map_err(failed)?;
    let layer = stack.freeze();
    let configured = Configured {
        stack: configure.stack,
        one_client: model == ThreadModel::SerializeConnections,
        isolation,
        replaceable,
        may_shutdown,
        programs,
        undeclared,
        can_park: layer.can_park()
            && isolation == Isolation::Connection
            && !settings.one_client
            && !configure.swap,
    };
    let _ = link.send(&FromTemplate::Configured(configured), &[]);
    // While the listener opens its sockets.
    settings.count_processors();
    if isolation == Isolation::Connection
        && configure.stdio_safe
        && let Err(error) = code_pages::copy_at_fork()
    {
        nbdkit_api::debug!("page tables of code are not copied: {error}");
    }
    let watchers = layer.watchers();
    sandbox.prepare(configure.swap, !watchers.is_empty()).map_err(failed)?;

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
    let Companions { broker, watchers } =
        enter(&service, configure.swap, settings.threads, &layer, watchers, &mut sandbox, link)
            .map_err(failed)?;
    if isolation == Isolation::Connection && !process::is_single_threaded() {
        log_error(
            "--isolation=connection: the plugin or a filter has started threads, which a process of each client would not have",
        );
        return Err(Failed);
    }
    if shared {
        layer.in_service().map_err(failed)?;
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
        watchers: Some(watchers),
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
            // Without a listener no report is possible.
            Err(_) => return Err(Failed),
        }
    }
}

fn receive_configuration(
    link: &TemplateLink,
) -> Result<(Configure, Vec<Parameter>, Material), Failed> {
    let ToTemplate::Hello(hello) = receive(link)?.message else { return Err(Failed) };
    // The listener checks ours, and logs both builds.
    hello.check().map_err(|_| Failed)?;
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
