//! Whose certificates are trusted, by whatever speaks HTTPS to others: the hub, a collector.
//!
//! Reads the system's store, or what `SSL_CERT_FILE` and `SSL_CERT_DIR` name; sends nothing.

use ureq::tls::{Certificate, RootCerts};

/// The certificates that this machine trusts; Mozilla's where it has none.
pub fn trusted() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    let certificates = found.iter().map(|der| Certificate::from_der(der).to_owned());
    RootCerts::from(certificates.collect::<Vec<_>>())
}
