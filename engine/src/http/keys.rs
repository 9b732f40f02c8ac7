//! Static API keys: from flags, the environment and a file that is read again when it changes.
//!
//! Authenticates by headers alone, before a body is read. Keys are kept as BLAKE3 hashes and
//! compared in constant time; they never reach a log, an error or a metric.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderValue};
use pagoda_wire::gate::Admitted;
use subtle::{Choice, ConstantTimeEq};

use crate::api::error::ApiError;

/// Who may call.
#[derive(Debug)]
pub struct Keys {
    fixed: Vec<KeyHash>,
    file: Option<PathBuf>,
    from_file: RwLock<FileKeys>,
}

/// Keys as the file last had them.
#[derive(Debug, Default)]
struct FileKeys {
    content: Option<[u8; 32]>,
    hashes: Vec<KeyHash>,
}

type KeyHash = [u8; 32];

/// A caller that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Stable name of the caller for fairness and cache isolation; no part of the key.
    pub tenant: Arc<str>,
    /// What the control plane says of the caller, where there is one.
    pub admitted: Option<Admitted>,
}

impl Caller {
    /// Whoever calls where no key is asked for. All of them share one tenant.
    pub fn anonymous() -> Self {
        Caller { tenant: Arc::from(""), admitted: None }
    }

    /// Whether it may use the model that has these names.
    pub fn may_use(&self, names: &[String]) -> bool {
        let Some(admitted) = &self.admitted else { return true };
        names.iter().any(|name| admitted.may_use(name))
    }
}

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cannot read the API key file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than a key file can be.
    #[error("the API key file {path} is larger than {KEY_FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl Keys {
    /// Keys from flags and the environment, and a file with one key a line (`#` comments).
    pub fn new(fixed: &[String], file: Option<PathBuf>) -> Result<Arc<Self>, KeyFileError> {
        let keys = Keys {
            fixed: fixed.iter().map(|key| hash(key)).collect(),
            file,
            from_file: RwLock::default(),
        };
        keys.reload()?;
        Ok(Arc::new(keys))
    }

    /// No key was configured: everyone may call. A key file that is empty still locks the door.
    pub fn is_open(&self) -> bool {
        self.fixed.is_empty() && self.file.is_none()
    }

    /// Reads the file again; true if the keys changed. Blocks on the file system.
    pub fn reload(&self) -> Result<bool, KeyFileError> {
        let Some(path) = &self.file else { return Ok(false) };
        let read = |source| KeyFileError::Read { path: path.clone(), source };
        if std::fs::metadata(path).map_err(read)?.len() > KEY_FILE_BYTES_MAX {
            return Err(KeyFileError::TooLarge { path: path.clone() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let content = Some(hash(&text));
        let mut current = match self.from_file.write() {
            Ok(current) => current,
            Err(poisoned) => poisoned.into_inner(),
        };
        if current.content == content {
            return Ok(false);
        }
        // Some editors begin a file with a byte order mark.
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
        let hashes = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(hash);
        *current = FileKeys { content, hashes: hashes.collect() };
        Ok(true)
    }

    /// Lets a request in, or says why not.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.is_open() {
            return Ok(Caller::anonymous());
        }
        let header = only_authorization(headers)?;
        let key = bearer(header.as_bytes()).ok_or(ApiError::MissingKey)?;
        let given = blake3::hash(key);
        if !self.holds(given.as_bytes()) {
            return Err(ApiError::WrongKey);
        }
        // Eight bytes of a hash name the tenant and do not give the key away.
        Ok(Caller { tenant: Arc::from(&given.to_hex()[..16]), admitted: None })
    }

    /// Compares with every key, always all of them.
    fn holds(&self, given: &KeyHash) -> bool {
        let from_file = match self.from_file.read() {
            Ok(current) => current,
            Err(poisoned) => poisoned.into_inner(),
        };
        let mut found = Choice::from(0);
        for known in self.fixed.iter().chain(&from_file.hashes) {
            found |= known[..].ct_eq(&given[..]);
        }
        found.into()
    }
}

/// Largest key file, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

fn hash(text: &str) -> KeyHash {
    *blake3::hash(text.as_bytes()).as_bytes()
}

/// The one header of a credential: two could be read as either by whoever stands before us.
pub(crate) fn only_authorization(headers: &HeaderMap) -> Result<&HeaderValue, ApiError> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    match (given.next(), given.next()) {
        (Some(header), None) => Ok(header),
        _ => Err(ApiError::MissingKey),
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = header.split_at_checked(7)?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(keys: &Keys, header: Option<&'static str>) -> Result<Caller, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, HeaderValue::from_static(header));
        }
        keys.authenticate(&headers)
    }

    #[test]
    fn without_keys_everyone_may_call_and_any_bearer_is_ignored() {
        let keys = Keys::new(&[], None).unwrap();
        assert!(call(&keys, None).is_ok());
        assert!(call(&keys, Some("Bearer any-key")).is_ok());
    }

    #[test]
    fn with_keys_only_they_may_call() {
        let keys = Keys::new(&["sk-a".into(), "sk-b".into()], None).unwrap();
        let a = call(&keys, Some("Bearer sk-a")).unwrap();
        let b = call(&keys, Some("bearer sk-b")).unwrap();
        assert_ne!(a, b);
        assert!(!a.tenant.contains("sk-"));
        assert_eq!(call(&keys, None), Err(ApiError::MissingKey));
        for missing in ["", "Bearer", "Bearer ", "Basic sk-a", "sk-a"] {
            assert_eq!(call(&keys, Some(missing)), Err(ApiError::MissingKey), "{missing}");
        }
        let mut two = HeaderMap::new();
        for key in ["Bearer sk-a", "Bearer sk-b"] {
            two.append(AUTHORIZATION, HeaderValue::from_static(key));
        }
        assert_eq!(keys.authenticate(&two), Err(ApiError::MissingKey));
        for wrong in ["Bearer sk-c", "Bearer sk-", "Bearer sk-aa", "Bearer sk-a sk-b"] {
            assert_eq!(call(&keys, Some(wrong)), Err(ApiError::WrongKey), "{wrong}");
        }
    }

    #[test]
    fn a_changed_file_changes_the_keys_and_a_lost_one_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# none yet\n").unwrap();
        let keys = Keys::new(&[], Some(path.clone())).unwrap();
        assert!(!keys.is_open());
        assert_eq!(call(&keys, Some("Bearer new")), Err(ApiError::WrongKey));
        std::fs::write(&path, "\u{feff}old\n  new  \n").unwrap();
        assert!(keys.reload().unwrap());
        assert!(!keys.reload().unwrap());
        assert!(call(&keys, Some("Bearer new")).is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(keys.reload().is_err());
        assert!(call(&keys, Some("Bearer old")).is_ok());
        assert!(Keys::new(&[], Some(path)).is_err());
    }
}
