//! What the settings of sockets, keys and origins mean.
//!
//! Looks up the name of an address; opens nothing.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use pagoda_http::limits::Limits as HttpLimits;
use pagoda_http::proxies::TrustedProxies;
use pagoda_http::tls::TlsFiles;

use crate::config::flags::Written;
use crate::config::resolve::{ConfigError, positive, up_to, value};
use crate::config::{ControlPlaneSettings, Limits, NetworkSettings};

pub(super) fn network(written: &Written) -> Result<NetworkSettings, ConfigError> {
    let api_keys = keys("api-key", &written.api_key)?;
    let admin_keys = keys("admin-key", &written.admin_key)?;
    if admin_keys.iter().any(|key| api_keys.contains(key)) {
        return Err(value("admin-key", "must be no key that callers have"));
    }
    let listen = listen(written)?;
    let control_plane = control_plane(written, listen)?;
    if control_plane.is_some() && (!api_keys.is_empty() || written.api_key_file.is_some()) {
        return Err(value("control-plane", "stands instead of keys, not beside them"));
    }
    Ok(NetworkSettings {
        listen,
        control_plane,
        api_keys,
        api_key_file: written.api_key_file.clone(),
        admin_keys,
        metrics_public: written.metrics_public.unwrap_or(false),
        allowed_origins: written.allowed_origins.clone().unwrap_or_default(),
        tls: tls(written)?,
        trusted_proxies: trusted_proxies(written)?,
        shutdown_timeout: Duration::from_secs(written.shutdown_timeout.unwrap_or(30).into()),
    })
}

fn control_plane(
    written: &Written,
    listen: SocketAddr,
) -> Result<Option<ControlPlaneSettings>, ConfigError> {
    let needs = |setting: &'static str, what: &Option<PathBuf>| {
        what.clone().ok_or_else(|| value("control-plane", format!("needs --{setting} beside it")))
    };
    let Some(address) = written.control_plane.clone() else { return Ok(None) };
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    });
    if !has_port {
        return Err(value("control-plane", "must be host:port"));
    }
    Ok(Some(ControlPlaneSettings {
        address,
        secret_file: needs("plane-secret-file", &written.plane_secret_file)?,
        state_dir: needs("state-dir", &written.state_dir)?,
        name: written.plane_name.clone().unwrap_or_else(|| listen.to_string()),
        issuer: written.issuer.clone().unwrap_or_else(|| "pagoda".into()),
        stale_max: Duration::from_secs(written.max_stale.unwrap_or(86_400).into()),
    }))
}

fn keys(setting: &'static str, written: &Option<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let keys = written.clone().unwrap_or_default();
    if keys.iter().any(|key| key.trim() != key || key.is_empty()) {
        return Err(value(setting, "must not be empty or begin or end with a space"));
    }
    Ok(keys)
}

fn listen(written: &Written) -> Result<SocketAddr, ConfigError> {
    match (written.listen, &written.host, written.port) {
        (Some(listen), None, None) => Ok(listen),
        (Some(_), _, _) => Err(value("listen", "stands instead of host and port, not beside them")),
        (None, host, port) => {
            let host = host.as_deref().unwrap_or("127.0.0.1");
            let found = (host, port.unwrap_or(8000)).to_socket_addrs();
            let first = found.ok().and_then(|mut addresses| addresses.next());
            first.ok_or_else(|| value("host", format!("{host} is no address of this machine")))
        }
    }
}

pub(super) fn limits(written: &Written) -> Result<Limits, ConfigError> {
    let defaults = Limits::default();
    let connections = written.max_connections.unwrap_or(defaults.http.connections_max);
    let body = written.max_body_bytes.map_or(defaults.http.body_bytes_max, |bytes| bytes.0);
    if !(1024..=1 << 32).contains(&body) {
        return Err(value("max-body-bytes", "must be from 1KiB to 4GiB"));
    }
    let connections = positive("max-connections", connections.into())?;
    let connections_max = up_to("max-connections", connections, 1_000_000)?;
    Ok(Limits {
        http: HttpLimits { connections_max, body_bytes_max: body, ..defaults.http },
        body_bytes_total: defaults.body_bytes_total.max(body),
        ..defaults
    })
}

fn tls(written: &Written) -> Result<Option<TlsFiles>, ConfigError> {
    match (written.tls_cert.clone(), written.tls_key.clone()) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(value("tls-cert", "needs --tls-key with its private key")),
        (None, Some(_)) => Err(value("tls-key", "needs --tls-cert with its certificate")),
    }
}

fn trusted_proxies(written: &Written) -> Result<TrustedProxies, ConfigError> {
    let networks = written.trusted_proxies.as_deref().unwrap_or_default();
    TrustedProxies::new(networks).map_err(|error| value("trusted-proxies", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::flags::{Command, CommandLine};
    use clap::Parser;

    fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        let args = std::iter::once(&"pagoda").chain(args);
        match CommandLine::try_parse_from(args).unwrap().into_command() {
            Command::Serve(written) => written.resolve(),
            other => panic!("{other:?}"),
        }
    }

    fn refused(args: &[&str]) -> String {
        resolve(args).unwrap_err().to_string()
    }

    #[test]
    fn an_address_is_written_in_one_way_or_the_other() {
        let listen = |args: &[&str]| resolve(args).unwrap().network.listen.to_string();
        assert_eq!(listen(&["--listen", "0.0.0.0:1"]), "0.0.0.0:1");
        assert_eq!(listen(&["--host", "::1", "--port", "2"]), "[::1]:2");
        assert!(refused(&["--listen", "0.0.0.0:1", "--port", "2"]).starts_with("listen: "));
    }

    #[test]
    fn a_certificate_needs_its_key_and_the_key_its_certificate() {
        assert_eq!(resolve(&[]).unwrap().network.tls, None);
        let both = resolve(&["--tls-cert", "c.pem", "--tls-key", "k.pem"]).unwrap().network.tls;
        let files = TlsFiles { certificate: "c.pem".into(), key: "k.pem".into() };
        assert_eq!(both, Some(files));
        assert_eq!(
            refused(&["--tls-cert", "c.pem"]),
            "tls-cert: needs --tls-key with its private key"
        );
        assert_eq!(
            refused(&["--tls-key", "k.pem"]),
            "tls-key: needs --tls-cert with its certificate"
        );
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let proxies = |args: &[&str]| resolve(args).unwrap().network.trusted_proxies;
        let networks = ["10.0.0.0/8", "::1"];
        assert_eq!(
            proxies(&["--trusted-proxies", "10.0.0.0/8,::1"]),
            TrustedProxies::new(&networks).unwrap()
        );
        assert_eq!(proxies(&[]), TrustedProxies::default());
        assert_eq!(
            refused(&["--trusted-proxies", "10.0.0.0/8,proxy"]),
            "trusted-proxies: proxy is no address or network as in 10.0.0.0/8"
        );
    }

    #[test]
    fn keys_never_show_in_debug_output() {
        let config = resolve(&["--api-key", "sk-secret"]).unwrap();
        assert!(!format!("{config:?}").contains("sk-secret"));
        let config = resolve(&["--admin-key", "ak-secret"]).unwrap();
        assert!(!format!("{config:?}").contains("ak-secret"));
        let both = ["--admin-key", "k", "--api-key", "k"];
        assert!(resolve(&both).unwrap_err().to_string().starts_with("admin-key: must be no key"));
    }
}
