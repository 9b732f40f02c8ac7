//! As whom a private Postgres runs: it refuses to be root, so root runs it as another account.
//!
//! Never gives the server a right that its account has not, and leaves none of ours to it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ClusterError;
use super::installation::in_path;

/// The account of the server.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// Its name, and that of whoever starts it.
    pub(super) name: String,
    pub(super) starter: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether it is not ours.
    switch: bool,
    /// The program that has the kernel end a child with us, where there is one.
    pub(super) binder: Option<PathBuf>,
}

impl Account {
    /// Ours, or where that is root's the wanted one.
    pub(super) fn choose(wanted: Option<&str>) -> Result<Self, ClusterError> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let fail = |name: &str, reason: &str| ClusterError::Account {
            name: name.into(),
            reason: reason.into(),
        };
        let starter = ask(&["-un"]).unwrap_or_else(|| uid.to_string());
        let binder = binder();
        if uid != 0 {
            return match wanted {
                Some(name) if name != starter => Err(fail(name, "only root may switch to it")),
                _ => {
                    Ok(Account { name: starter.clone(), starter, uid, gid, switch: false, binder })
                }
            };
        }
        let names: &[&str] = wanted.as_ref().map_or(&["postgres", "nobody"], std::slice::from_ref);
        let number = |flag, name| ask(&[flag, name])?.parse().ok();
        let found = names.iter().find_map(|name| {
            Some((name, number("-u", name)?, number("-g", name)?)).filter(|(_, uid, _)| *uid != 0)
        });
        let Some((name, uid, gid)) = found else {
            return Err(fail(names[0], "there is no such account, or it is root's"));
        };
        Ok(Account { name: (*name).into(), starter, uid, gid, switch: true, binder })
    }

    /// A program run by the account, in the root folder and without our environment.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
        settle(&mut command);
        command
    }

    /// The same, ended (by SIGINT: in order) when the thread that spawned it ends, however that
    /// ends. Where the system cannot do that, the next start ends it.
    pub(super) fn command_of_a_child(&self, program: &Path) -> Command {
        let Some(binder) = &self.binder else { return self.command(program) };
        let mut command = Command::new(binder);
        command.args(["--pdeathsig", "INT"]);
        if self.switch {
            // Switched by the same program: a later switch would undo the binding.
            command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
            command.arg("--clear-groups");
        }
        command.arg("--").arg(program);
        settle(&mut command);
        command
    }
}

/// Apart from our terminal, whose Ctrl-C means us, and from our environment, whose variables
/// Postgres would heed.
fn settle(command: &mut Command) {
    command.process_group(0).current_dir("/").stdin(std::process::Stdio::null()).env_clear();
    for kept in ["PATH", "TZ", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
}

/// util-linux's `setpriv`; others of that name do not know what we need it for.
fn binder() -> Option<PathBuf> {
    let program = in_path("setpriv")?;
    let help = Command::new(&program).arg("--help").output().ok()?;
    String::from_utf8_lossy(&help.stdout).contains("--pdeathsig").then_some(program)
}

/// What `id` says: it knows all sources of accounts.
fn ask(arguments: &[&str]) -> Option<String> {
    let answer = Command::new("id").args(arguments).output().ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| answer.status.success() && !text.is_empty())
}
