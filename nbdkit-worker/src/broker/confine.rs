//! What a broker may do: read anywhere, for links may lead anywhere, and write if the stack may; and nothing else.

#![forbid(unsafe_code)]

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nbdkit_api::{Errno, Error, Result, ResultExt};
use nbdkit_sandbox_policy::{Action, compile, install};
use nix::sys::resource::{Resource, getrlimit};

use super::desk::MOST_CHANNELS;
use super::{Plan, policy};
use crate::privileges::Files;
use crate::sandbox::{Layer, has_filters, skips};
use crate::{privileges, process};

/// Descriptors besides channels: standard streams, its own, one that is being opened; with room to spare.
const DESCRIPTORS: u64 = 64;
/// Bytes of memory beyond what the template had.
const MEMORY: u64 = 64 << 20;

/// Streams, memory, capabilities and limits.
///
/// # Errors
/// The system's.
pub(super) fn give_up_privileges(plan: &Plan<'_>) -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.or_error(|| "open: /dev/null")?;
    nix::unistd::dup2_stderr(&null).or_error(|| "dup2")?;
    if plan.swap {
        process::become_io_flusher();
        privileges::lock_memory()?;
    }
    if !skips(Layer::Capabilities) {
        let keep = privileges::overruling(plan.needs.writes());
        privileges::drop_capabilities(&Files::Declared(Vec::new()), false, &keep)?;
    }
    if !skips(Layer::Limits) {
        let declared = plan.needs.declared.len() as u64;
        let descriptors = MOST_CHANNELS as u64 + DESCRIPTORS + declared;
        privileges::lock_down(Some(descriptors), Some(privileges::data().saturating_add(MEMORY)))?;
        privileges::forbid_file_growth()?;
    }
    Ok(())
}

/// How many channels there is room for.
pub(super) fn channels(plan: &Plan<'_>) -> usize {
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((DESCRIPTORS, DESCRIPTORS));
    let others = DESCRIPTORS + plan.needs.declared.len() as u64;
    usize::try_from(most.saturating_sub(others)).unwrap_or(MOST_CHANNELS)
}

/// Closes the sandbox. Called last.
///
/// # Errors
/// The kernel has a layer and refuses to install it.
pub(super) fn close(plan: &Plan<'_>) -> Result<()> {
    process::report_refusals()?;
    if !skips(Layer::Paths) {
        let status = restrict(plan.needs.writes())
            .map_err(|error| Error::new(Errno::EPERM, format!("landlock: {error}")))?;
        if status == RulesetStatus::NotEnforced {
            nbdkit_api::debug!("sandbox: no Landlock for the broker");
        }
    }
    // What a kernel does not have, the template says.
    if skips(Layer::Calls) || !has_filters() {
        return Ok(());
    }
    let opening = if plan.needs.writes() { policy::WRITING } else { policy::READING };
    let lists = [policy::BROKER, opening];
    let failed =
        |error: nbdkit_sandbox_policy::Broken| Error::new(Errno::EINVAL, error.to_string());
    let filter = compile(&lists, Action::Trap, Action::Allow).map_err(failed)?;
    install(&filter).map_err(failed)
}

/// No execution, no TCP, nothing made, removed or moved, anywhere; nothing written if the stack does not write.
///
/// Descriptors keep the rights that they were opened with: what a worker gets cannot be truncated.
fn restrict(writes: bool) -> std::result::Result<RulesetStatus, RulesetError> {
    let mut rights = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    if writes {
        rights |= AccessFs::WriteFile;
    }
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let ruleset = match PathFd::new(Path::new("/")) {
        Ok(root) => ruleset.add_rule(PathBeneath::new(root, rights))?,
        Err(_) => ruleset,
    };
    Ok(ruleset.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    #[test]
    fn both_lists_compile() {
        for opening in [policy::READING, policy::WRITING] {
            let filter = compile(&[policy::BROKER, opening], Action::Trap, Action::Allow).unwrap();
            assert!(filter.len() < 4096);
        }
    }

    /// Landlock holds for the thread that asks for it, here one of the test's own.
    #[test]
    fn what_a_broker_of_a_read_only_stack_may_open() {
        let path = std::env::temp_dir().join(format!("nbdkit-broker-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let shown = path.clone();
        let outcome = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            if restrict(false).unwrap() == RulesetStatus::NotEnforced {
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
}
