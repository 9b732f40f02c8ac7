//! Frames of one data plane: what is behind its revision, then each write as it comes, and a sign
//! of life each second. Ends with an error of the database; the data plane asks anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use pagoda_wire::seal::Seal;
use pagoda_wire::snapshot::{Frame, Revision};
use tokio::sync::watch;

use crate::feed::log;
use crate::operations::Operations;

/// What frames are sealed for.
pub const PURPOSE: &str = "feed";

struct Following {
    operations: Arc<Operations>,
    news: watch::Receiver<Revision>,
    known: Option<Revision>,
    ready: VecDeque<Frame>,
    seal: Seal,
}

/// Sealed frames, one a line, from behind `known` on.
pub fn frames(
    operations: Arc<Operations>,
    known: Option<Revision>,
) -> impl Stream<Item = Bytes> + Send {
    let news = operations.database.news().subscribe();
    let seal = Seal::new(operations.secrets.planes(), PURPOSE);
    let following = Following { operations, news, known, ready: VecDeque::new(), seal };
    unfold(following, |mut following| async move {
        let line = following.next().await?;
        Some((line, following))
    })
}

impl Following {
    /// `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ready.is_empty() {
            self.wait_and_read().await?;
        }
        let frame = match (self.ready.pop_front(), self.known) {
            (Some(frame), _) => frame,
            (None, known) => Frame::Still(known?),
        };
        self.known = Some(match &frame {
            Frame::Full(snapshot) => snapshot.revision,
            Frame::Delta(delta) => delta.revision,
            Frame::Still(revision) => *revision,
        });
        let mut line = self.seal.seal(&frame).ok()?;
        line.push('\n');
        Some(line.into())
    }

    async fn wait_and_read(&mut self) -> Option<()> {
        let is_behind = self.known.is_none_or(|known| *self.news.borrow_and_update() > known);
        if !is_behind {
            let is_over = self.operations.database.news().until_over();
            tokio::select! {
                () = is_over => return None,
                _ = tokio::time::timeout(STILL_EVERY, self.news.changed()) => {}
            }
        }
        match log::next(&self.operations, self.known).await {
            Ok(frames) => self.ready = frames.unwrap_or_default().into(),
            Err(fault) => {
                tracing::warn!(%fault, "a data plane's feed ends");
                return None;
            }
        }
        Some(())
    }
}

/// A data plane that hears nothing for some of these knows that nobody is there.
const STILL_EVERY: Duration = Duration::from_secs(1);
