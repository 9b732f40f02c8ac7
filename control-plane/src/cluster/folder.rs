//! Files of a private Postgres: who owns it, its data, its socket, who may connect, its log.
//!
//! The outer folder is ours, `data` and the socket's are the server's account's alone. Data are made
//! beside their place and moved there whole, so a start that was cut leaves none that look made.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::account::Account;
use super::installation::Installation;
use super::{ClusterError, SUPERUSER, leftover};

/// The folder of one private Postgres.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    data: PathBuf,
    socket: PathBuf,
}

impl Folder {
    /// The folder at `path`, made where it is missing, which `account` must be able to enter.
    pub(super) fn open(path: &Path, account: &Account) -> Result<Self, ClusterError> {
        let fail = |source| ClusterError::Folder { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(fail)?;
        let path = path.canonicalize().map_err(fail)?;
        let data = path.join("data");
        let socket = socket_folder(&path);
        let folder = Folder { path, data, socket };
        folder.check_the_way(account)?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where clients connect.
    pub(super) fn address(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket).user(SUPERUSER).dbname(database);
        config
    }

    pub(super) fn access_file(&self) -> PathBuf {
        self.path.join("access.conf")
    }

    pub(super) fn names_file(&self) -> PathBuf {
        self.path.join("names.conf")
    }

    /// Makes this process the owner, for as long as the file is open: also the kernel ends it.
    pub(super) fn own(&self) -> Result<File, ClusterError> {
        let path = self.path.join("owner.lock");
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let fail = |source| ClusterError::Folder { path: path.clone(), source };
        let file = file.map_err(fail)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(ClusterError::Owned(self.path.clone())),
            Err(TryLockError::Error(source)) => Err(fail(source)),
        }
    }

    /// The version that made the data; none: there are no data.
    pub(super) fn major(&self) -> Result<Option<u32>, ClusterError> {
        let path = self.data.join("PG_VERSION");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.data.exists() => {
                return Ok(None);
            }
            Err(source) => return Err(ClusterError::Folder { path, source }),
        };
        let source = || io::Error::other(format!("{:?} is no version", text.trim()));
        text.trim().parse().map(Some).map_err(|_| ClusterError::Folder { path, source: source() })
    }

    /// Says anew who may connect: the server's account and ours, over the socket.
    pub(super) fn configure(&self, account: &Account) -> Result<(), ClusterError> {
        self.make_socket_folder(account)?;
        let names: String = [&account.name, &account.starter]
            .map(|name| format!("owner \"{}\" {SUPERUSER}\n", name.replace('"', "\"\"")))
            .concat();
        let files = [
            (self.access_file(), format!("local all {SUPERUSER} peer map=owner\n")),
            (self.names_file(), names),
        ];
        for (path, text) in files {
            let fail = |source| ClusterError::Folder { path: path.clone(), source };
            fs::write(&path, text).map_err(fail)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(fail)?;
        }
        Ok(())
    }

    /// Makes the data; where they need not outlive the machine, without waiting for its disk.
    pub(super) fn make_data(
        &self,
        installation: &Installation,
        account: &Account,
        lasting: bool,
    ) -> Result<(), ClusterError> {
        let unfinished = self.path.join("data.unfinished");
        let fail = |source| ClusterError::Folder { path: unfinished.clone(), source };
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&unfinished).map_err(fail)?;
        give(&unfinished, account).map_err(fail)?;
        let mut initdb = account.command(&installation.program("initdb"));
        // Text is ordered by its bytes, whatever libraries the system gets; letters are Unicode's.
        initdb.args(["--username", SUPERUSER, "--encoding=UTF8", "--locale=C"]);
        initdb.args(["--lc-ctype=C.UTF-8", "--auth-local=peer", "--auth-host=reject"]);
        initdb.args(["--data-checksums", "--no-instructions", "--pgdata"]).arg(&unfinished);
        if !lasting {
            initdb.arg("--no-sync");
        }
        let answer = initdb.output().map_err(fail)?;
        if !answer.status.success() {
            let output = [answer.stdout, answer.stderr].concat();
            let output = String::from_utf8_lossy(&output).trim().to_owned();
            return Err(ClusterError::Program { program: "initdb".into(), output });
        }
        fs::rename(&unfinished, &self.data).map_err(fail)?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(fail)
    }

    /// The process of a server that answers, as that wrote it down.
    pub(super) fn serving(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data.join(leftover::PROCESS_FILE)).ok()?;
        let mut lines = text.lines();
        let process = lines.next()?.trim().parse().ok()?;
        let status = lines.nth(6)?;
        (status.trim() == "ready").then_some(process)
    }

    /// The server's log, for more to be written to it; a long one is put aside first.
    pub(super) fn log(&self) -> Result<File, ClusterError> {
        let path = self.log_path();
        let fail = |source| ClusterError::Folder { path: path.clone(), source };
        if path.metadata().is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::rename(&path, path.with_extension("log.old")).map_err(fail)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(fail)
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// The last lines of the log.
    pub(super) fn end_of_log(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.log_path())?;
            let from = file.metadata()?.len().saturating_sub(2000);
            file.seek(SeekFrom::Start(from))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            Ok(String::from_utf8_lossy(&end).trim().to_owned())
        };
        read().unwrap_or_default()
    }

    /// The server's account must be able to enter every folder above its own.
    fn check_the_way(&self, account: &Account) -> Result<(), ClusterError> {
        for folder in self.path.ancestors() {
            let fail = |source| ClusterError::Folder { path: folder.into(), source };
            let mode = folder.metadata().map_err(fail)?;
            let right = match (mode.uid() == account.uid, mode.gid() == account.gid) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            if mode.mode() & right == 0 {
                let account = account.name.clone();
                return Err(ClusterError::Closed { path: folder.into(), account });
            }
        }
        Ok(())
    }

    fn make_socket_folder(&self, account: &Account) -> Result<(), ClusterError> {
        let path = &self.socket;
        let fail = |source| ClusterError::Folder { path: path.clone(), source };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => give(path, account).map_err(fail),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // In a folder that everybody writes to, somebody may have been first.
                let found = path.symlink_metadata().map_err(fail)?;
                let ours = found.is_dir() && found.uid() == account.uid;
                match ours && found.mode() & 0o077 == 0 {
                    true => Ok(()),
                    false => Err(ClusterError::Foreign(path.clone())),
                }
            }
            Err(error) => Err(fail(error)),
        }
    }
}

fn give(path: &Path, account: &Account) -> io::Result<()> {
    chown(path, Some(account.uid), Some(account.gid))
}

/// Below the folder if a socket's address has room for that, else among the temporary ones.
fn socket_folder(path: &Path) -> PathBuf {
    let near = path.join("socket");
    let file = near.join(".s.PGSQL.5432");
    // Postgres splits its list of folders at commas.
    if file.as_os_str().len() <= SOCKET_BYTES_MAX && !near.as_os_str().as_bytes().contains(&b',') {
        return near;
    }
    let name = Sha256::digest(path.as_os_str().as_bytes());
    let name: String = name[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new("/tmp").join(format!("pagoda-socket-{name}"))
}

/// Linux's 108 bytes without the last, zero.
const SOCKET_BYTES_MAX: usize = 107;

/// Past that a start begins a new log.
const LOG_BYTES_MAX: u64 = 16 << 20;
