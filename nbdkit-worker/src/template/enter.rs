//! From start-up into service: the final user, no terminal, no privileges, the sandbox closed.

#![forbid(unsafe_code)]

use std::sync::Arc;

use nbdkit_api::paths::{self, Kept};
use nbdkit_api::{Layer, ResultExt, Watcher, endpoints};
use nbdkit_ipc::messages::EnterService;

use super::replaced::Replaced;
use crate::broker::ask::{Connecting, Link, Opening};
use crate::broker::{self, Broker};
use crate::log::TemplateLink;
use crate::sandbox::{self, Sandbox, skips};
use crate::watcher::{self, Watchers};
use crate::{privileges, process};

/// The processes beside a template in service.
pub(super) struct Companions {
    pub(super) broker: Option<(Broker, Replaced)>,
    pub(super) watchers: Watchers,
}

/// From start-up into service: leaves the terminal and, in the background, the directory; becomes
/// the final user; closes the sandbox. `after_fork` is called before that, since it may open more.
pub(super) fn enter(
    service: &EnterService,
    swap: bool,
    threads: usize,
    layer: &Arc<Layer>,
    watchers: Vec<(Arc<Layer>, Box<dyn Watcher>)>,
    sandbox: &mut Sandbox,
    link: &TemplateLink,
) -> nbdkit_api::Result<Companions> {
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
    // No process of the server has a terminal any more, into which an attacker could type.
    // setsid(2) fails only if this process leads a session already.
    let _ = nix::unistd::setsid();
    for path in layer.temporary() {
        privileges::hand_down(&path, service)?;
    }
    // All of this needs privileges that are dropped below.
    let plan = watcher::Plan { service, confined: sandbox.is_on() };
    let watchers = Watchers::start(watchers, plan)?;
    sandbox.separate();
    let plugin = layer.plugin_name();
    let broker = match sandbox.has_broker() {
        true => {
            let shared = sandbox.is_shared();
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
        // Other threads need CAP_SETPCAP for that, too, which another user does not have.
        nbdkit_sandbox::threads::confine(None).map_err(privileges::failed)?;
    }
    privileges::become_user(service, swap)?;
    if capabilities {
        // The template opens the files that it keeps open with the broker's capability.
        let for_broker =
            sandbox.opens_by_broker().then(|| privileges::dac_override(sandbox.needs().writes()));
        let besides = for_broker.as_ref().map_or(&[][..], |it| it);
        privileges::drop_capabilities(&sandbox.files(), swap, besides)?;
    }
    if limits {
        let at_start = sandbox.needs().memory_at_start;
        let memory = sandbox.memory(threads).map(|memory| memory.saturating_add(at_start));
        privileges::lock_down(sandbox.descriptors(), memory)?;
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
    if limits && sandbox.needs().memory_at_start > 0 {
        // What was needed to start is not there for those who serve clients.
        privileges::limit_memory(sandbox.memory(threads))?;
    }
    let broker = broker.map(|(broker, links)| (broker, open_through(links, sandbox)));
    if capabilities && broker.is_some() {
        privileges::drop_capabilities(&sandbox.files(), swap, &[])?;
    }
    sandbox.close()?;
    Ok(Companions { broker, watchers })
}

/// Has the broker asked for connections.
fn connect_through(links: Vec<Link>, sandbox: &Sandbox) {
    if sandbox.connects_by_broker() {
        let connecting = Connecting::new(sandbox.needs().endpoints.clone(), links);
        endpoints::connect_through(Box::new(connecting));
    }
}

/// Opens what can be kept open, and has the broker asked for everything else.
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
