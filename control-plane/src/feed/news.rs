//! When there is something new: a connection that listens, and a look each second beside it.
//!
//! A notification is a hint and never believed to be all: a connection that broke silently tells
//! nothing. So the revision is read anyway, and a listener that ended is replaced.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::poll_fn;
use pagoda_wire::snapshot::Revision;
use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::feed::log;
use crate::operations::Operations;

/// Tells the last known revision to whoever waits for it, and that there will be no further ones.
#[derive(Clone, Debug)]
pub struct News {
    revision: watch::Sender<Revision>,
    is_over: watch::Sender<bool>,
}

impl Default for News {
    fn default() -> Self {
        News { revision: watch::Sender::new(0), is_over: watch::Sender::new(false) }
    }
}

impl News {
    /// For whoever waits for the next one.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// Feeds end, so that a server that stops need not wait for those who follow it.
    pub fn end(&self) {
        self.is_over.send_replace(true);
    }

    /// Returns once feeds shall end.
    pub async fn until_over(&self) {
        let mut is_over = self.is_over.subscribe();
        // The sender lives as long as this.
        let _ = is_over.wait_for(|over| *over).await;
    }

    fn tell(&self, revision: Revision) {
        self.revision.send_if_modified(|known| {
            let is_new = *known != revision;
            *known = revision;
            is_new
        });
    }
}

/// Looks and listens until dropped.
pub async fn follow(operations: Arc<Operations>, address: tokio_postgres::Config) {
    let hint = Arc::new(tokio::sync::Notify::new());
    let listening = listen_again(address, hint.clone());
    let looking = async {
        loop {
            if let Ok(client) = operations.database.client().await
                && let Ok(revision) = log::revision(&client).await
            {
                operations.database.news().tell(revision);
            }
            let _ = tokio::time::timeout(LOOK_EVERY, hint.notified()).await;
        }
    };
    tokio::join!(listening, looking);
}

async fn listen_again(address: tokio_postgres::Config, hint: Arc<tokio::sync::Notify>) {
    loop {
        if let Err(error) = listen(&address, &hint).await {
            tracing::debug!(%error, "nobody tells of changes; looking each second instead");
        }
        // Whatever was told meanwhile is found by the next look.
        hint.notify_one();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn listen(
    address: &tokio_postgres::Config,
    hint: &tokio::sync::Notify,
) -> Result<(), tokio_postgres::Error> {
    let (client, mut connection) = address.connect(NoTls).await?;
    let mut messages = std::pin::pin!(poll_fn(move |cx| connection.poll_message(cx)));
    let reading = async {
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(_) = message? {
                hint.notify_one();
            }
        }
        Ok(())
    };
    let asking = async {
        client.batch_execute("listen pagoda_revision").await?;
        loop {
            // A peer that is gone tells nothing: only asking finds out.
            tokio::time::sleep(ASK_EVERY).await;
            client.batch_execute("").await?;
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = asking => ended,
    }
}

/// How often a listening connection is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// How soon a change is seen that nobody told of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
