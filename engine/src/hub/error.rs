//! Why a model of the hub did not become a folder. Whoever started the server reads it, so each
//! says what to do. Holds no token and no address that was signed for somebody.

use std::path::PathBuf;

use crate::memory::gib;
use crate::model::config::ConfigError;

/// Why there is no folder of a model.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A setting cannot be what it is.
    #[error("{setting}: {reason}")]
    Setting {
        /// The flag, or the variable.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No place for a cache.
    #[error("there is no place for downloaded models: set HF_HOME to a folder")]
    NoCache,
    /// Nothing of that name is shown to us.
    #[error(
        "{id} is no folder here, and {hub} shows no model of that name; check the name{}",
        if *.has_token { ", and that the token may read it" }
        else { ", and set HF_TOKEN if the model is private" }
    )]
    NoModel {
        /// The model.
        id: String,
        /// Who was asked.
        hub: String,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// A model that people must be admitted to.
    #[error(
        "{id} is gated: ask for access at {hub}/{id}{}",
        if *.has_token { " with the account of the token that is set" }
        else { ", then set HF_TOKEN to a token of that account" }
    )]
    Gated {
        /// The model.
        id: String,
        /// Who was asked.
        hub: String,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// Refused for another reason.
    #[error(
        "{hub} refuses {id}{}", if *.has_token {
            ": the token that is set may not read it, or this network may not"
        } else {
            ": it may ask for a token (HF_TOKEN), or refuse this network"
        }
    )]
    Forbidden {
        /// The model.
        id: String,
        /// Who was asked.
        hub: String,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// Nobody vouches for the host, or it speaks no TLS.
    #[error(
        "{host} cannot be trusted: {why}; SSL_CERT_FILE may name a file of the certificates that are"
    )]
    Untrusted {
        /// The host.
        host: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The token was refused.
    #[error("{hub} does not accept the token for {id}: it is wrong, expired or may not read it")]
    Token {
        /// The model.
        id: String,
        /// Who was asked.
        hub: String,
    },
    /// The model has no such revision.
    #[error("{id} has no revision {revision}; {hub}/{id}/refs lists its branches and tags")]
    NoRevision {
        /// The model.
        id: String,
        /// What was asked for.
        revision: String,
        /// Who was asked.
        hub: String,
    },
    /// The model has no such file.
    #[error("{id} has no file {file}")]
    NoFile {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// An answer that makes no sense.
    #[error("{hub} gives no answer that can be used about {what}: {why}")]
    Answer {
        /// Who was asked.
        hub: String,
        /// The model or file.
        what: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// The network, again and again.
    #[error("{what} cannot be fetched: {why}; what was downloaded is kept, a new start goes on")]
    Unreachable {
        /// The model or file.
        what: String,
        /// What happened last.
        why: String,
    },
    /// Nothing may be asked, and it is not there.
    #[error(
        "{id} ({revision}) is no folder here and is not whole in {}: {missing} is missing, and \
         HF_HUB_OFFLINE forbids to fetch it", .cache.display()
    )]
    NotCached {
        /// The model.
        id: String,
        /// Which one of it.
        revision: String,
        /// Where it was looked for.
        cache: PathBuf,
        /// What of it is not there.
        missing: String,
    },
    /// A file that does not have its checksum, twice.
    #[error("{file} of {id} does not have its checksum, though it was fetched anew; deleted")]
    Damaged {
        /// The model.
        id: String,
        /// The file.
        file: String,
    },
    /// No weights that can be read.
    #[error("{id} has no safetensors that can be served ({found}); other formats are not read")]
    NoWeights {
        /// The model.
        id: String,
        /// What it has instead.
        found: String,
    },
    /// A configuration that cannot be served, seen before its weights are fetched.
    #[error("{id} cannot be served, its weights are not fetched")]
    Unusable {
        /// The model.
        id: String,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// Less room than the files take.
    #[error(
        "{} more of {id} do not fit the {} that are free at {}: free some, or set HF_HOME to a \
         larger disk", gib(*.needed), gib(*.free), .place.display()
    )]
    NoRoom {
        /// The model.
        id: String,
        /// Bytes to fetch.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// The cache.
        place: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot keep {}: {}", .path.display(), told(.cause))]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// Why; told in full above, so no source of its own.
        cause: std::io::Error,
    },
}

fn told(cause: &std::io::Error) -> String {
    match cause.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => format!(
            "{cause}; free some room and start again, which goes on where this ended, or set \
             HF_HOME to a larger disk"
        ),
        _ => cause.to_string(),
    }
}

impl HubError {
    /// Names the file that an operation failed on.
    pub(super) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> HubError {
        let path = path.into();
        move |cause| HubError::Disk { path, cause }
    }
}
