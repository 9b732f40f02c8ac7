//! TLS on a listener: a certificate with its key, read again when the files change.
//!
//! Whatever is served was looked at first: the key belongs to the certificate, and the certificate
//! may be used now. A pair that fails that is told and not taken, so that a mistake in a running
//! process costs a line in the log. TLS 1.2 is the oldest that is spoken; a client needs to name no host.
//! Never shows a key.

/// From when until when a certificate may be used.
mod validity;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig, ServerConnection};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use validity::{Moment, Validity};

/// Where certificate and key lie, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and behind it those that lead to one that clients know.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// A pair of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate are those of different names or times.
    #[error("the key in {key} is not that of the certificate in {certificate}")]
    Mismatch {
        /// File of the key.
        key: PathBuf,
        /// File of the certificate.
        certificate: PathBuf,
    },
    /// TLS cannot be set up at all.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
}

/// What a listener's handshakes need.
pub struct Tls {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    pair: Arc<Pair>,
    /// What the files held when they were last taken.
    taken: Mutex<Contents>,
    acceptor: TlsAcceptor,
}

/// What the two files hold: the certificates, and the key.
#[derive(PartialEq, Eq)]
struct Contents(Vec<u8>, Vec<u8>);

/// The pair that is shown to clients, whatever host they name.
#[derive(Debug)]
struct Pair(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Reads the files, which must be fit to be served `now`. Blocks on the file system.
    pub fn load(files: TlsFiles, now: SystemTime) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let contents = files.read()?;
        let pair = files.pair(&contents, &provider, now)?;
        let pair = Arc::new(Pair(RwLock::new(pair)));
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(pair.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Arc::new(Tls { files, provider, pair, taken: Mutex::new(contents), acceptor }))
    }

    /// Reads the files again; true if what they hold now is shown to new connections. After an error
    /// all is as it was. Blocks on the file system.
    pub fn reload(&self, now: SystemTime) -> Result<bool, TlsError> {
        let contents = self.files.read()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken == contents {
            return Ok(false);
        }
        let pair = self.files.pair(&contents, &self.provider, now)?;
        *self.pair.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
        *taken = contents;
        Ok(true)
    }

    /// Reads the files again as long as it is polled: when they change, and on SIGHUP, which ends the
    /// process no more from this call on. Needs a runtime.
    pub fn keep_fresh(self: Arc<Self>) -> io::Result<impl Future<Output = ()> + Send> {
        let hangups = signal(SignalKind::hangup())?;
        Ok(look_again(self, hangups))
    }

    /// Shakes hands. The caller bounds the time.
    pub(crate) async fn accept(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let bound = |session: &mut ServerConnection| session.set_buffer_limit(Some(BUFFER_BYTES));
        self.acceptor.accept_with(socket, bound).await
    }
}

/// What a connection holds of an answer that its client does not take, in bytes: a record's worth.
const BUFFER_BYTES: usize = 16 << 10;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

async fn look_again(tls: Arc<Tls>, mut hangups: Signal) {
    let mut faults = Faults::default();
    loop {
        let is_asked = tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => false,
            _ = hangups.recv() => true,
        };
        let again = tls.clone();
        let work = move || again.reload(SystemTime::now());
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(is_new)) => {
                faults = Faults::default();
                if is_new || is_asked {
                    tracing::info!(is_new, "the TLS certificate was read again");
                }
            }
            Ok(Err(error)) => {
                if faults.is_to_tell(error.to_string(), is_asked) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "the TLS certificate stays as it was");
                }
            }
            Err(panicked) => tracing::error!(%panicked, "reading the TLS certificate failed"),
        }
    }
}

/// What was wrong with the files when they were last looked at.
#[derive(Default)]
struct Faults {
    last: String,
    is_told: bool,
}

impl Faults {
    /// A fault is told once, and only if it lasts: between one file's change and the other's there is
    /// always one. Who asks is told at once.
    fn is_to_tell(&mut self, fault: String, is_asked: bool) -> bool {
        let lasts = self.last == fault;
        if !lasts {
            *self = Faults { last: fault, is_told: false };
        }
        let tell = is_asked || lasts && !self.is_told;
        self.is_told |= tell;
        tell
    }
}

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl TlsFiles {
    fn read(&self) -> Result<Contents, TlsError> {
        Ok(Contents(read(&self.certificate)?, read(&self.key)?))
    }

    /// The pair, if it may be served.
    fn pair(
        &self,
        Contents(certificates, key): &Contents,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        let wrong = |path: &Path, reason: String| TlsError::File { path: path.into(), reason };
        let of_certificate = |reason: String| wrong(&self.certificate, reason);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = chain.map_err(|error| of_certificate(told(&error, "certificate")))?;
        let Some(first) = chain.first() else {
            return Err(of_certificate(told(&pem::Error::NoItemsFound, "certificate")));
        };
        let validity = Validity::of(first)
            .ok_or_else(|| of_certificate("does not begin with an X.509 certificate".into()))?;
        validity.check(Moment::of(now)).map_err(of_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| wrong(&self.key, told(&error, "unencrypted private key")))?;
        // A key that cannot be read never gets as far as being compared.
        let signs = provider.key_provider.load_private_key(key);
        let signs = signs.map_err(|error| wrong(&self.key, format!("cannot be used: {error}")))?;
        let pair = CertifiedKey::new(chain, signs);
        match pair.keys_match() {
            Ok(()) => Ok(Arc::new(pair)),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let TlsFiles { key, certificate } = self.clone();
                Err(TlsError::Mismatch { key, certificate })
            }
            Err(error) => Err(of_certificate(format!("cannot be used: {error}"))),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.into(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        let reason = format!("is larger than {FILE_BYTES_MAX} bytes");
        return Err(TlsError::File { path: path.into(), reason });
    }
    std::fs::read(path).map_err(failed)
}

/// What is wrong with a PEM file, without quoting it.
fn told(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {wanted} in PEM"),
        _ => "is damaged: it is no PEM".into(),
    }
}

#[cfg(test)]
mod tests;
