//! The control plane that is followed: its secret read, the folder of what it told opened.
//!
//! Nothing is asked here: a data plane starts also while there is no control plane.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pagoda_wire::secret::Secret;
use tokio::task::JoinHandle;

use crate::api::Api;
use crate::config::ControlPlaneSettings;
use crate::http::callers::Callers;
use crate::http::keys::Keys;
use crate::plane::Plane;
use crate::plane::follow::{Follower, Settings};
use crate::plane::saved::State;

/// A control plane cannot be followed with these settings.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The file of the planes' secret.
    #[error("cannot read the planes' secret in {path}: {source}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder of what was told.
    #[error("cannot use the state folder {path}: {source}")]
    State {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps current who may call, until dropped.
pub(super) struct Following(Option<JoinHandle<()>>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Who may call: whom the control plane names, if one is followed, else whoever has one of `keys`.
pub(super) fn callers(
    settings: Option<&ControlPlaneSettings>,
    keys: &Arc<Keys>,
    api: &Api,
) -> Result<(Callers, Following), FollowError> {
    let Some(settings) = settings else { return Ok((keys.clone().into(), Following(None))) };
    let (plane, follower) = open(settings)?;
    api.set_plane(plane.clone());
    Ok((Callers::Plane(plane), Following(Some(tokio::spawn(follower.run())))))
}

fn open(settings: &ControlPlaneSettings) -> Result<(Arc<Plane>, Follower), FollowError> {
    let of_secret = |source| FollowError::Secret { path: settings.secret_file.clone(), source };
    let text = std::fs::read_to_string(&settings.secret_file).map_err(of_secret)?;
    let damaged = || of_secret(io::Error::other("it does not hold 32 bytes as base64url"));
    let secret = Secret::from_text(text.trim()).ok_or_else(damaged)?;
    let of_state = |source| FollowError::State { path: settings.state_dir.clone(), source };
    let state = State::open(&settings.state_dir, &secret).map_err(of_state)?;
    let plane = Arc::new(Plane::new(settings.stale_max));
    let follow = Settings {
        address: settings.address.clone(),
        secret,
        issuer: settings.issuer.clone(),
        name: settings.name.clone(),
    };
    let follower = Follower::new(plane.clone(), follow, state).map_err(of_state)?;
    Ok((plane, follower))
}
