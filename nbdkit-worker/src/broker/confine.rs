//! What a broker may do: read anywhere, for links may lead anywhere, and write if the stack may,
//! where paths are declared; connect to the ports that are declared, where endpoints are; and
//! nothing else.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;

use nbdkit_api::endpoints::direct::may_wait;
use nbdkit_api::{Endpoint, Error, Result, ResultExt};
use nbdkit_sandbox::capabilities::Capability;
use nbdkit_sandbox::landlock::{self, AccessFs, BitFlags, Restricts, Rules};
use nbdkit_sandbox::seccomp::{Action, Line, Program, compile, install};
use nix::sys::resource::{Resource, getrlimit};

use super::desk::MOST_CHANNELS;
use super::{Plan, policy};
use crate::privileges::Files;
use crate::privileges::failed;
use crate::sandbox::{Layer, has_filters, skips};
use crate::{privileges, process};

/// Descriptors besides channels: more than standard streams, the broker's own, and one that is
/// being opened.
const DESCRIPTORS: u64 = 64;
/// Bytes of memory beyond what the template had.
const MEMORY: u64 = 64 << 20;

/// What a resolver reads: resolver(3), nsswitch.conf(5), gai.conf(5). All of /etc: a rule is for
/// the file that exists at the start, and most of these files are replaced by rename.
const RESOLVER: [&str; 4] =
    ["/etc", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"];
/// The port of DNS.
const DNS: u16 = 53;

/// The user, streams, memory, capabilities and limits.
///
/// # Errors
/// The system's.
pub(super) fn give_up_privileges(plan: &Plan<'_>) -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.or_error(|| "open: /dev/null")?;
    nix::unistd::dup2_stderr(&null).or_error(|| "dup2")?;
    if plan.swap {
        process::become_io_flusher();
    }
    let none = Files::Declared(Vec::new());
    if !skips(Layer::Capabilities) {
        privileges::limit_bounding_set(plan.service, &none)?;
    }
    privileges::become_user(plan.service, plan.swap)?;
    if plan.swap {
        privileges::lock_memory()?;
    }
    if !skips(Layer::Capabilities) {
        privileges::drop_capabilities(&none, false, &dac_override(plan))?;
    }
    if !skips(Layer::Limits) {
        let declared = plan.declared().len() as u64;
        let descriptors = MOST_CHANNELS as u64 + DESCRIPTORS + declared;
        privileges::lock_down(Some(descriptors), Some(privileges::data().saturating_add(MEMORY)))?;
        privileges::forbid_file_growth()?;
    }
    Ok(())
}

/// The capabilities that root without `-u` keeps: to open the files of others, and to connect to
/// their sockets, for which the kernel checks the right to write (unix(7)).
fn dac_override(plan: &Plan<'_>) -> Vec<Capability> {
    let is_unix = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Unix(_));
    let writes = plan.writes() || plan.endpoints().iter().any(is_unix);
    let nothing = plan.declared().is_empty() && !writes;
    if nothing { Vec::new() } else { privileges::dac_override(writes).to_vec() }
}

/// How many channels RLIMIT_NOFILE leaves room for.
pub(super) fn channels(plan: &Plan<'_>) -> usize {
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((DESCRIPTORS, DESCRIPTORS));
    let others = DESCRIPTORS + plan.declared().len() as u64;
    usize::try_from(most.saturating_sub(others)).unwrap_or(MOST_CHANNELS)
}

/// Confines the broker. Called last.
///
/// # Errors
/// The kernel has a layer and refuses to install it.
pub(super) fn close(plan: &Plan<'_>) -> Result<()> {
    process::report_refusals()?;
    if !skips(Layer::Paths) {
        let opens = (!plan.declared().is_empty()).then(|| plan.writes());
        if !restrict(opens, plan.endpoints()).map_err(failed)? {
            nbdkit_api::debug!("sandbox: no Landlock for the broker");
        }
    }
    // The template logs which layers the kernel does not have.
    if skips(Layer::Calls) || !has_filters() {
        return Ok(());
    }
    for filter in filters(plan.writes(), plan.endpoints())? {
        install(&filter).map_err(failed)?;
    }
    Ok(())
}

/// First the filters of calls that fail, which libraries try and do without; last the filter of
/// calls that are allowed, which do not include installing another filter.
fn filters(writes: bool, endpoints: &[Endpoint]) -> Result<Vec<Program>> {
    let opening = if writes { policy::WRITING } else { policy::READING };
    let mut lists: Vec<&[Line]> = vec![policy::BROKER, opening];
    let (mut inet, mut resolves, mut unix) = (false, false, false);
    for endpoint in endpoints {
        match endpoint {
            Endpoint::Tcp { .. } => (inet, resolves) = (true, resolves || may_wait(endpoint)),
            Endpoint::Unix(_) => unix = true,
            Endpoint::Vsock { .. } => lists.push(policy::VSOCK),
        }
    }
    for (wanted, list) in [
        (!endpoints.is_empty(), policy::CONNECTING),
        (inet, policy::INET),
        (resolves, policy::RESOLVING),
        (unix || resolves, policy::UNIX),
    ] {
        if wanted {
            lists.push(list);
        }
    }
    let mut filters = Vec::new();
    let mut fails = |list: &[Line], errno| {
        let filter = compile(&[list], Action::Allow, Action::Fail(errno)).map_err(failed)?;
        filters.push(filter);
        Ok::<_, Error>(())
    };
    if !endpoints.is_empty() {
        fails(policy::ABSENT, libc::ENOSYS)?;
        fails(policy::FAST_OPEN, libc::EOPNOTSUPP)?;
        fails(policy::CODE, libc::EACCES)?;
    }
    if resolves && !unix {
        fails(policy::NO_UNIX, libc::EAFNOSUPPORT)?;
    }
    filters.push(compile(&lists, Action::Trap, Action::Allow).map_err(failed)?);
    Ok(filters)
}

/// Denies, everywhere, executing, making, removing and moving files; writing, unless the stack
/// writes; reading anything but what the resolver needs, if the stack `opens` no paths; TCP to
/// other ports than those of `endpoints` and of DNS; listening.
///
/// Descriptors keep the rights that they were opened with: what a worker gets cannot be truncated.
///
/// Returns whether Landlock is in force.
fn restrict(opens: Option<bool>, endpoints: &[Endpoint]) -> nbdkit_sandbox::Result<bool> {
    let (paths, rights) = match opens {
        Some(writes) => {
            let writing = if writes { AccessFs::WriteFile.into() } else { BitFlags::EMPTY };
            (&["/"][..], landlock::READ | AccessFs::IoctlDev | writing)
        }
        None => (&RESOLVER[..], landlock::READ),
    };
    let mut rules = Rules::new(landlock::version(), Restricts { tcp: true, scopes: true })?;
    for path in paths {
        rules.allow(Path::new(path), rights)?;
    }
    for port in ports(endpoints) {
        rules.allow_connect(port)?;
    }
    rules.restrict()
}

/// The ports that TCP connects to: those of DNS, too, whose answers may be too long for UDP.
fn ports(endpoints: &[Endpoint]) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for endpoint in endpoints {
        if let Endpoint::Tcp { port, .. } = endpoint {
            ports.insert(*port);
            ports.extend(may_wait(endpoint).then_some(DNS));
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    fn endpoints() -> Vec<Endpoint> {
        vec![
            Endpoint::tcp("disks.example", "10809").unwrap(),
            Endpoint::tcp("127.0.0.1", "7").unwrap(),
            Endpoint::unix("/run/socket").unwrap(),
            Endpoint::Vsock { cid: 2, port: 7 },
        ]
    }

    #[test]
    fn all_lists_compile() {
        let all = endpoints();
        for endpoints in [&[][..], &all[..1], &all[1..2], &all[2..3], &all[3..], &all] {
            for writes in [false, true] {
                for filter in filters(writes, endpoints).unwrap() {
                    assert!((1..4096).contains(&filter.len()));
                }
            }
        }
    }

    #[test]
    fn tcp_reaches_what_is_declared_and_dns_if_names_are() {
        let all = endpoints();
        let ports = |endpoints: &[Endpoint]| ports(endpoints).into_iter().collect::<Vec<_>>();
        assert_eq!(ports(&all), [7, 53, 10809]);
        assert_eq!(ports(&all[1..]), [7]);
        assert_eq!(ports(&all[2..]), [] as [u16; 0]);
    }

    /// Landlock holds for the thread that asks for it, here one of the test's own.
    #[test]
    fn what_a_broker_of_a_read_only_stack_may_open() {
        let path = std::env::temp_dir().join(format!("nbdkit-broker-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let shown = path.clone();
        let outcome = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            if !restrict(Some(false), &[]).unwrap() {
                return None;
            }
            let opened = |flags| open(&shown, flags, Mode::empty()).err();
            Some((
                opened(OFlag::O_RDONLY),
                opened(OFlag::O_RDWR),
                opened(OFlag::O_RDONLY | OFlag::O_TRUNC),
                std::fs::remove_file(&shown).is_err(),
                std::process::Command::new("/bin/true").status().is_err(),
            ))
        })
        .join()
        .unwrap();
        std::fs::remove_file(&path).unwrap();
        let refused = Some(Errno::EACCES);
        if let Some(outcome) = outcome {
            assert_eq!(outcome, (None, refused, refused, true, true));
        }
    }

    #[test]
    fn what_a_broker_that_only_connects_may_reach() {
        let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (declared, other) = (listener(), listener());
        let [port, other] = [&declared, &other].map(|it| it.local_addr().unwrap().port());
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".into(), port };
        let outcome = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            // Landlock restricts TCP since version 4.
            if !restrict(None, &[endpoint]).unwrap() || landlock::version() < 4 {
                return None;
            }
            let connected = |port| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            let opened = |path| open(path, OFlag::O_RDONLY, Mode::empty()).err();
            Some((
                (connected(port), connected(other), connected(DNS)),
                std::net::TcpListener::bind("127.0.0.1:0").is_ok(),
                opened("/etc/passwd"),
                opened("/usr"),
            ))
        })
        .join()
        .unwrap();
        if let Some(outcome) = outcome {
            assert_eq!(outcome, ((true, false, false), false, None, Some(Errno::EACCES)));
        }
    }
}
