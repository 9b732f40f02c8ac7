//! Reads a request body's JSON against a budget of memory for all bodies.
//!
//! What a body takes is reserved before it is taken: its text several times over, and its values
//! by a count that is made as the text arrives. Nobody queues for room: whoever finds too little
//! tries again for a while, so that a large body that waits holds up no other, and small bodies
//! have a part of their own, so that they never wait for large ones.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::body::Incoming;
use pagoda_http::body::{Arriving, BodyError, json_fault, open_json};
use pagoda_http::values::ValueCount;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::api::error::ApiError;
use crate::api::room::Room;
use crate::config::Limits;

/// Room for bodies that are in memory at the same time.
#[derive(Debug)]
pub struct BodyBudget {
    /// KiB for bodies of at most [`SMALL_ROOM_BYTES`], which take of the other when it is full.
    small: Arc<Semaphore>,
    /// KiB for all others.
    large: Arc<Semaphore>,
    limits: pagoda_http::limits::Limits,
    /// What one body may take.
    room_bytes_max: u64,
}

/// A parsed body. The room of its values is free again once this is dropped; that of its text goes
/// with the texts that were read from it.
#[derive(Debug)]
pub struct BodyObject {
    object: Map<String, Value>,
    _values: Option<OwnedSemaphorePermit>,
    room: Room,
}

impl BodyObject {
    /// Room for what is read from the body, to be held until that is gone.
    pub fn room(&self) -> Room {
        self.room.clone()
    }
}

impl std::ops::Deref for BodyObject {
    type Target = Map<String, Value>;

    fn deref(&self) -> &Self::Target {
        &self.object
    }
}

/// Bytes that a body of `text_bytes` with `values` values takes in memory at most, from its
/// arrival until its prompts are token ids. `tests/request_room.rs` measures it.
pub fn room_bytes(text_bytes: u64, values: u64) -> u64 {
    let text = text_bytes.saturating_mul(TEXT_COPIES);
    text.saturating_add(values.saturating_mul(VALUE_BYTES))
}

impl BodyBudget {
    /// Budget after the limits.
    pub fn new(limits: &Limits) -> Arc<Self> {
        let text = room_bytes(limits.http.body_bytes_max, 0).saturating_add(ROOM_STEP_BYTES);
        let largest = text.saturating_add(room_bytes(0, VALUES_MIN));
        let small = limits.body_bytes_total / SMALL_PARTS;
        // The largest body alone always fits.
        let large = (limits.body_bytes_total - small).max(largest);
        let pool = |bytes: u64| {
            let kib = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS)))
        };
        Arc::new(BodyBudget {
            small: pool(small),
            large: pool(large),
            limits: limits.http.clone(),
            room_bytes_max: largest.max(limits.body_bytes_total / BODY_PARTS) - ROOM_STEP_BYTES,
        })
    }

    /// Reads a JSON object. Its bytes are freed before this returns; the values stay.
    pub async fn read_object(
        &self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<BodyObject, ApiError> {
        let mut arriving = open_json(&self.limits, headers, body)?;
        let mut room = self.no_room()?;
        let bytes = self.read(&mut arriving, &mut room).await.inspect_err(|_| arriving.refuse())?;
        let text_kib = room_bytes(bytes.len() as u64, 0).div_ceil(1024) as usize;
        let (object, mut room) = parse(bytes, room).await?;
        let values = room.split(room.num_permits().saturating_sub(text_kib));
        Ok(BodyObject { object, _values: values, room: room.into() })
    }

    /// Room that nobody has taken.
    #[cfg(test)]
    pub(crate) fn left_kib(&self) -> usize {
        self.small.available_permits() + self.large.available_permits()
    }

    /// Takes all that is not kept for small bodies, as unfinished large ones do.
    #[cfg(test)]
    pub(crate) fn take_large(&self) -> OwnedSemaphorePermit {
        let kib = self.large.available_permits() as u32;
        self.large.clone().try_acquire_many_owned(kib).unwrap()
    }

    fn no_room(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.small.clone().try_acquire_many_owned(0).map_err(|_closed| ApiError::Internal)
    }

    /// Lets `room` be of at least `bytes`; tries for [`ROOM_WAIT_MAX`] at most.
    async fn grow(&self, room: &mut OwnedSemaphorePermit, bytes: u64) -> Result<(), ApiError> {
        let held = room.num_permits() as u64 * 1024;
        if bytes <= held {
            return Ok(());
        }
        let is_small = bytes <= SMALL_ROOM_BYTES;
        // At most what `new` found room for, below 4 TiB.
        let stepped = bytes.max(held.saturating_add(ROOM_STEP_BYTES));
        let kib = u32::try_from(stepped.div_ceil(1024)).unwrap_or(u32::MAX);
        let deadline = Instant::now() + ROOM_WAIT_MAX.min(self.limits.body_timeout);
        loop {
            if is_small && grow_in(&self.small, room, kib) || grow_in(&self.large, room, kib) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ApiError::Busy { retry_after_s: 1 });
            }
            tokio::time::sleep(ROOM_RETRY_EVERY).await;
        }
    }

    /// Room is taken as bytes arrive, so that a claim alone takes none from others.
    async fn read(
        &self,
        arriving: &mut Arriving,
        room: &mut OwnedSemaphorePermit,
    ) -> Result<Bytes, ApiError> {
        let (mut bytes, mut values) = (BytesMut::new(), ValueCount::default());
        while let Some(data) = arriving.next().await? {
            values.feed(&data);
            let num_bytes = (bytes.len() + data.len()) as u64;
            let left = self.room_bytes_max.saturating_sub(room_bytes(num_bytes, 0));
            if values.count() > left / VALUE_BYTES {
                return Err(ApiError::TooManyValues { limit: left / VALUE_BYTES });
            }
            self.grow(room, room_bytes(num_bytes, values.count())).await?;
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::WrongMediaType => ApiError::WrongMediaType,
            BodyError::WrongEncoding => ApiError::WrongEncoding,
            BodyError::TooLarge { limit } => ApiError::TooLarge { limit },
            BodyError::Late { time } => ApiError::BodyTimeout { seconds: time.as_secs() },
            BodyError::Broken => ApiError::BadJson(error.to_string()),
        }
    }
}

/// How often a body's text lies in memory at most: twice in the buffer that grew with it, once in
/// its values and once in what is being read, be it a string of the parser's, a prompt, or the ids
/// of two-byte numbers.
const TEXT_COPIES: u64 = 4;

/// Bytes that a comma, colon or bracket stands for at most, beside its text: a place in a list or map
/// that grew by doubling, or a list of its own, which begins with room for four values.
const VALUE_BYTES: u64 = 320;

/// Values that every installation reads in one body.
const VALUES_MIN: u64 = 1 << 16;

/// One body takes at most one of so many parts of the budget, if the largest text fits in that.
const BODY_PARTS: u64 = 4;

/// A body that takes at most this is small: 64 KiB of text with 800 values.
const SMALL_ROOM_BYTES: u64 = 512 << 10;

/// The share of the budget that is kept for small bodies is one of so many.
const SMALL_PARTS: u64 = 8;

/// Larger bodies are parsed on a thread that may block.
const PARSE_HERE_BYTES_MAX: usize = 64 << 10;

/// Room is taken in steps of this size, so that a body of many small frames asks seldom.
const ROOM_STEP_BYTES: u64 = 64 << 10;

/// How long a request waits for room in the budget before it is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);

/// How often it looks.
const ROOM_RETRY_EVERY: Duration = Duration::from_millis(10);

/// Lets `room` be of `kib` in `pool`, where it may or may not be yet; false if too little is left.
fn grow_in(pool: &Arc<Semaphore>, room: &mut OwnedSemaphorePermit, kib: u32) -> bool {
    let is_here = Arc::ptr_eq(room.semaphore(), pool);
    let held = if is_here { room.num_permits() as u32 } else { 0 };
    match pool.clone().try_acquire_many_owned(kib.saturating_sub(held)) {
        Ok(more) if is_here => room.merge(more),
        Ok(whole) => *room = whole,
        Err(_too_little) => return false,
    }
    true
}

/// The room goes along: a client that leaves does not stop the parser.
async fn parse(
    bytes: Bytes,
    room: OwnedSemaphorePermit,
) -> Result<(Map<String, Value>, OwnedSemaphorePermit), ApiError> {
    if bytes.len() <= PARSE_HERE_BYTES_MAX {
        return Ok((parse_object(&bytes)?, room));
    }
    let work = move || {
        let parsed = parse_object(&bytes);
        drop(bytes);
        (parsed, room)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok((parsed, room)) => Ok((parsed?, room)),
        Err(_panicked) => Err(ApiError::Internal),
    }
}

fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::BadJson("The request body must be a JSON object.".into())),
        Err(error) => Err(ApiError::BadJson(format!(
            "We could not parse the JSON body of your request: {}.",
            json_fault(&error)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_json_is_told_without_quoting_it() {
        let error = parse_object(br#"{"messages": [secret]}"#).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 1") && !text.contains("secret"), "{text}");
        assert!(parse_object(b"[]").is_err());
        assert!(parse_object(b"").is_err());
        assert!(parse_object(&[b'['; 100_000]).is_err());
        assert_eq!(parse_object(b"{}").unwrap().len(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_for_room_holds_up_nobody() {
        let budget = BodyBudget::new(&Limits::default());
        let mib = |count: u64| count << 20;
        let (mut held, mut hopes, mut other) =
            (budget.take_large(), budget.no_room().unwrap(), budget.no_room().unwrap());
        drop(held.split(3 << 10));
        let waits = tokio::spawn({
            let budget = budget.clone();
            async move { budget.grow(&mut hopes, mib(4)).await }
        });
        tokio::task::yield_now().await;
        budget.grow(&mut other, mib(2)).await.unwrap();
        assert!(!waits.is_finished(), "it waits for more than there is");
        drop(held);
        waits.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn room_moves_between_the_parts_and_comes_back() {
        let budget = BodyBudget::new(&Limits::default());
        let (small, large) = (budget.small.available_permits(), budget.large.available_permits());
        let left =
            || (small - budget.small.available_permits(), large - budget.large.available_permits());
        let mut room = budget.no_room().unwrap();
        budget.grow(&mut room, 1).await.unwrap();
        assert_eq!(left(), (64, 0));
        budget.grow(&mut room, 64 << 10).await.unwrap();
        assert_eq!(left(), (64, 0));
        budget.grow(&mut room, 300 << 10).await.unwrap();
        assert_eq!(left(), (300, 0));
        budget.grow(&mut room, 1 << 20).await.unwrap();
        assert_eq!(left(), (0, 1024));
        budget.grow(&mut room, 2 << 20).await.unwrap();
        assert_eq!(left(), (0, 2048));
        // Small bodies go where others are once their own part is full.
        let full = budget.small.clone().try_acquire_many_owned(small as u32).unwrap();
        let mut other = budget.no_room().unwrap();
        budget.grow(&mut other, 1).await.unwrap();
        assert_eq!(left(), (small, 2048 + 64));
        drop((room, other, full));
        assert_eq!(left(), (0, 0));
    }
}
