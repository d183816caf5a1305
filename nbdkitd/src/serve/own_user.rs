//! The user of the listener once it serves: `--listener-user`.

#![forbid(unsafe_code)]

use nix::unistd::getppid;

use super::Server;
use crate::cli::command_line::ServiceMode;
use crate::confine::ConfineError;
use crate::identity::ListenerUser;
use crate::privileges::{self, NotLeft};
use crate::{preflight, strerror};

impl Server {
    /// Drops root's user id, and the other privileges that only start-up needs. Must not yet be
    /// called while there are programs to be started.
    ///
    /// # Errors
    /// The command line names a user that the process cannot become, or a change of user has failed
    /// half-way.
    pub(super) fn leave_root(&self) -> Result<(), ConfineError> {
        privileges::empty_bounding_set()?;
        match self.context.plan().listener_user() {
            ListenerUser::Same => {}
            ListenerUser::Root(why) => self.stays_root(why),
            ListenerUser::Other { account, name, demanded } => {
                let parent = getppid();
                match privileges::leave_root(*account) {
                    Ok(()) => {
                        self.context.log().debug(|| format!("the listener has become user {name}"));
                        if self.context.plan().options.exit_with_parent {
                            // The change of user has cleared it.
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
                    Err(why @ NotLeft::Unmapped(_)) => {
                        return Err(ConfineError::Demanded { name: name.clone(), why });
                    }
                    Err(why) => return Err(ConfineError::HalfWay { name: name.clone(), why }),
                }
            }
        }
        Ok(privileges::settle()?)
    }

    /// Logs that the listener stays root although it need not, if the server is a service. On a
    /// terminal it is a debug line.
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
