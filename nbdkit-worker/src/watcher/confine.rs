//! What a watcher may do: what its filter has said, and nothing else.

#![forbid(unsafe_code)]

use std::path::Path;

use nbdkit_api::watcher::WatcherNeeds;
use nbdkit_api::{Access, Result, ResultExt};
use nbdkit_sandbox::landlock::{AccessFs, Restricts, Rules};
use nbdkit_sandbox::seccomp::{Action, Line, Program, compile, install};

use super::{Plan, policy};
use crate::privileges::{Files, failed};
use crate::sandbox::{Layer, Sandbox, has_filters, landlock, skips};
use crate::{privileges, process};

/// More descriptors than a watcher opens.
const DESCRIPTORS: u64 = 256;
/// Bytes of memory beyond what the template had.
const MEMORY: u64 = 64 << 20;

/// The user, capabilities and limits. What its programs print on standard error goes where the
/// server's would.
///
/// # Errors
/// The system's.
pub(super) fn give_up_privileges(needs: &WatcherNeeds, plan: Plan<'_>) -> Result<()> {
    if !needs.programs {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.or_error(|| "open: /dev/null")?;
        nix::unistd::dup2_stderr(&null).or_error(|| "dup2")?;
    }
    let files = files(needs);
    if plan.confined && !skips(Layer::Capabilities) {
        privileges::limit_bounding_set(plan.service, &files)?;
    }
    privileges::become_user(plan.service, false)?;
    if plan.confined && !skips(Layer::Capabilities) {
        // In a directory of another user root removes files by this capability.
        let removes = needs.removes.iter().flat_map(|_| privileges::dac_override(true));
        privileges::drop_capabilities(&files, false, &removes.collect::<Vec<_>>())?;
    }
    if plan.confined && !skips(Layer::Limits) {
        let memory = privileges::data().saturating_add(MEMORY);
        let limits = (Some(DESCRIPTORS), Some(memory));
        let (descriptors, memory) = if needs.programs { (None, None) } else { limits };
        privileges::lock_down(descriptors, memory)?;
        if !needs.programs {
            privileges::forbid_file_growth()?;
        }
    }
    Ok(())
}

/// The files that root may have to reach although another user owns their directories.
fn files(needs: &WatcherNeeds) -> Files {
    if needs.programs {
        return Files::OfPrograms;
    }
    let parents = needs.looks_for.iter().filter_map(|path| path.parent());
    Files::Declared(parents.map(|path| (path.to_path_buf(), Access::Look)).collect())
}

/// Confines the watcher. Called last.
///
/// # Errors
/// The kernel has a layer and refuses to install it.
pub(super) fn close(needs: &WatcherNeeds) -> Result<()> {
    if needs.programs {
        if !skips(Layer::Calls) && has_filters() {
            Sandbox::close_watcher_of_programs()?;
        }
        return Ok(());
    }
    process::report_refusals()?;
    if !skips(Layer::Paths) {
        let restricts = Restricts { tcp: true, scopes: true };
        let mut rules = Rules::new(landlock(), restricts).map_err(failed)?;
        if let Some(directory) = needs.removes.as_deref().and_then(Path::parent) {
            rules.allow(directory, AccessFs::RemoveFile.into()).map_err(failed)?;
        }
        rules.restrict().map_err(failed)?;
    }
    // The template logs which layers the kernel does not have.
    if skips(Layer::Calls) || !has_filters() {
        return Ok(());
    }
    install(&filter(needs)?).map_err(failed)
}

/// What it calls; a call that is on no list ends it.
fn filter(needs: &WatcherNeeds) -> Result<Program> {
    let mut lists: Vec<&[Line]> = vec![policy::WATCHER];
    for (wanted, list) in [
        (needs.accepts, policy::ACCEPTING),
        (!needs.looks_for.is_empty(), policy::LOOKING),
        (needs.removes.is_some(), policy::REMOVING),
    ] {
        if wanted {
            lists.push(list);
        }
    }
    compile(&lists, Action::Trap, Action::Allow).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_compile() {
        let some = || vec!["/tmp/file".into()];
        for (accepts, looks_for, removes) in [
            (false, vec![], None),
            (true, vec![], Some("/tmp/socket".into())),
            (true, some(), None),
        ] {
            let needs = WatcherNeeds { accepts, looks_for, removes, programs: false };
            assert!((1..4096).contains(&filter(&needs).unwrap().len()));
        }
    }
}
