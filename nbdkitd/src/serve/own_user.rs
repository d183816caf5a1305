//! Whose process the listener is, once it serves: `--listener-user`.

#![forbid(unsafe_code)]

use nix::unistd::getppid;

use super::Server;
use crate::cli::command_line::ServiceMode;
use crate::identity::ListenerUser;
use crate::privileges::{self, NotLeft};
use crate::{preflight, strerror};

impl Server {
    /// Gives up root's user id, and the rest of what was for start-up. Must not yet be called while there are programs to be run.
    ///
    /// # Errors
    /// One line for the user: another user was asked for by name and cannot be had, or nobody knows what the process has become.
    pub(super) fn leave_root(&self) -> Result<(), String> {
        privileges::empty_bounding_set()?;
        match &self.context.plan().listener_user {
            ListenerUser::Same => {}
            ListenerUser::Root(why) => self.stays_root(why),
            ListenerUser::Other { account, name, demanded } => {
                let parent = getppid();
                match privileges::leave_root(*account) {
                    Ok(()) => {
                        self.context.log().debug(|| format!("the listener has become user {name}"));
                        if self.context.plan().options.exit_with_parent {
                            // The change of user has undone it.
                            preflight::exit_with_parent(parent)?;
                        }
                        return Ok(());
                    }
                    Err(NotLeft::Unmapped(errno)) if !demanded => {
                        let why = strerror(errno);
                        self.stays_root(&format!(
                            "the listener cannot become user {name} ({why}): it stays root"
                        ));
                    }
                    Err(NotLeft::Unmapped(errno)) => {
                        let why = strerror(errno);
                        return Err(format!(
                            "--listener-user option: cannot change to {name}: {why}"
                        ));
                    }
                    Err(NotLeft::Failed(why)) => {
                        return Err(format!("the listener cannot become user {name}: {why}"));
                    }
                }
            }
        }
        privileges::settle()
    }

    /// Says that the listener stays root although it need not: to the log of a service. Whoever types a command sees nothing new.
    fn stays_root(&self, why: &str) {
        let is_activated =
            matches!(self.context.plan().mode, Some(ServiceMode::SocketActivation { .. }));
        if !self.context.plan().options.foreground || is_activated || self.manager.is_there() {
            self.context.log().notice(why);
        } else {
            self.context.log().debug(|| why.to_owned());
        }
    }
}
