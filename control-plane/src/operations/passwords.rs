//! Hashes of passwords: argon2id, on threads of their own, in memory whose bound is known.
//!
//! Each run takes 19 MiB, so that many passwords at once would take all there is: only so many run,
//! so many more wait, and whoever comes then is told to try again. A place is held by the run
//! itself, also when whoever asked has left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::{ParamsString, PasswordHash};
use argon2::{
    ARGON2ID_IDENT, Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version,
};
use pagoda_wire::secret::random;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fields::Password;
use crate::fault::Fault;

/// The one place where passwords are hashed.
#[derive(Clone)]
pub struct Passwords {
    hasher: Argon2<'static>,
    /// Of runs and of those that wait for one.
    queue: Arc<Semaphore>,
    running: Arc<Semaphore>,
    /// The hash of 256 random bits that were not kept, for names that nobody has.
    nobody: Arc<str>,
    runs: Arc<AtomicU64>,
}

/// What a password is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is another one.
    Wrong,
    /// It is the one.
    Right,
    /// It is the one, and its hash should be this.
    Rehash(String),
}

impl Passwords {
    /// At most `running` at once, each in [`RUN_BYTES`], and `waiting` more that wait.
    pub fn new(running: usize, waiting: usize) -> Result<Self, Fault> {
        let params = Params::new(RUN_KIB, PASSES, 1, None).map_err(Fault::internal)?;
        let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let nobody: [u8; 32] = random().map_err(Fault::internal)?;
        let nobody = hash(&hasher, &nobody)?;
        Ok(Passwords {
            hasher,
            queue: Arc::new(Semaphore::new(running + waiting)),
            running: Arc::new(Semaphore::new(running)),
            nobody: nobody.into(),
            runs: Arc::new(AtomicU64::new(0)),
        })
    }

    /// The hash of a new password, as a PHC string.
    pub async fn hash(&self, password: &Password) -> Result<String, Fault> {
        let password = password.clone();
        self.run(move |hasher| hash(hasher, password.bytes())).await?
    }

    /// Whether `password` belongs to `stored`. Without one it takes as long, and is wrong.
    pub async fn verify(&self, password: &str, stored: Option<&str>) -> Result<Verdict, Fault> {
        // Nobody has such a one, which tells nothing about anybody.
        if password.len() > Password::BYTES_MAX {
            return Ok(Verdict::Wrong);
        }
        let password = password.as_bytes().to_vec();
        let stored = stored.unwrap_or(&self.nobody).to_string();
        self.run(move |hasher| verify(hasher, &password, &stored)).await?
    }

    /// How many were hashed or verified.
    pub fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let full = Fault::Unavailable { what: "the password check", retry_after_s: 2 };
        let place = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| full)?;
        let turn = Arc::clone(&self.running).acquire_owned().await.map_err(Fault::internal)?;
        let (hasher, runs) = (self.hasher.clone(), Arc::clone(&self.runs));
        let run = move || {
            let _held: [OwnedSemaphorePermit; 2] = [place, turn];
            runs.fetch_add(1, Ordering::Relaxed);
            work(&hasher)
        };
        tokio::task::spawn_blocking(run).await.map_err(Fault::internal)
    }
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords")
    }
}

fn hash(hasher: &Argon2<'_>, password: &[u8]) -> Result<String, Fault> {
    hasher.hash_password(password).map(|hash| hash.to_string()).map_err(Fault::internal)
}

fn verify(hasher: &Argon2<'_>, password: &[u8], stored: &str) -> Result<Verdict, Fault> {
    let parsed = PasswordHash::new(stored).map_err(Fault::internal)?;
    if PasswordVerifier::<PasswordHash>::verify_password(hasher, password, &parsed).is_err() {
        return Ok(Verdict::Wrong);
    }
    let params = ParamsString::try_from(hasher.params()).map_err(Fault::internal)?;
    let is_current = parsed.algorithm == ARGON2ID_IDENT
        && parsed.version == Some(Version::V0x13.into())
        && parsed.params == params;
    if is_current { Ok(Verdict::Right) } else { hash(hasher, password).map(Verdict::Rehash) }
}

/// Memory of a run, in KiB,
const RUN_KIB: u32 = 19 * 1024;

/// and in bytes.
pub const RUN_BYTES: usize = RUN_KIB as usize * 1024;

/// How often a run goes over its memory.
const PASSES: u32 = 2;
