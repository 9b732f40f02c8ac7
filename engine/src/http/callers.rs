//! Who may call: static keys, or whom the control plane names.
//!
//! One of the two, never both: a credential has one meaning.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;

use crate::api::error::ApiError;
use crate::http::keys::{Caller, Keys};
use crate::plane::Plane;

/// Who may call.
#[derive(Clone, Debug)]
pub enum Callers {
    /// Whoever has one of these keys; everybody if there are none.
    Keys(Arc<Keys>),
    /// Whom the control plane names.
    Plane(Arc<Plane>),
}

impl Callers {
    /// Everybody may call.
    pub fn is_open(&self) -> bool {
        match self {
            Callers::Keys(keys) => keys.is_open(),
            Callers::Plane(_) => false,
        }
    }

    /// Lets a request in, or says why not.
    pub fn authenticate(&self, headers: &HeaderMap, from: IpAddr) -> Result<Caller, ApiError> {
        match self {
            Callers::Keys(keys) => keys.authenticate(headers),
            Callers::Plane(plane) => {
                let admitted = plane.authenticate(headers, from)?;
                // A user's keys and logins are one tenant: what they share is the user's own.
                let tenant = admitted.user.id.simple().to_string().into();
                Ok(Caller { tenant, admitted: Some(admitted) })
            }
        }
    }
}

impl From<Arc<Keys>> for Callers {
    fn from(keys: Arc<Keys>) -> Self {
        Callers::Keys(keys)
    }
}
