//! Notices that a file which is kept open was replaced, renamed or removed, so that it does not
//! take up space on its file system for longer than its clients need it. inotify(7).

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use nbdkit_api::paths;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches for files that are replaced at their paths. Nothing is noticed where the kernel has no
/// more watches for this user.
#[derive(Debug)]
pub(super) struct Replaced(Option<Inotify>);

impl Replaced {
    /// Watches the files that are there now.
    pub(super) fn watch(paths: &[PathBuf]) -> Replaced {
        // A file with one name less has other attributes.
        let events =
            AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DELETE_SELF;
        let inotify = (!paths.is_empty())
            .then(|| Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok())
            .flatten();
        for path in paths {
            if let Some(Err(errno)) = inotify.as_ref().map(|it| it.add_watch(path, events)) {
                nbdkit_api::debug!("inotify: {}: {}", path.display(), nbdkit_api::strerror(errno));
            }
        }
        Replaced(inotify)
    }

    /// Readable when something has happened.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// Something has: what is not at its path any more is closed, unless `any_parked` may need it
    /// again.
    pub(super) fn take(&self, any_parked: bool) {
        let Some(inotify) = &self.0 else { return };
        while inotify.read_events().is_ok() {}
        if let Some(kept) = paths::kept() {
            kept.forget_replaced(any_parked);
        }
    }
}
