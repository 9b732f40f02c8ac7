//! What is done from time to time, by whichever control plane comes first: partitions, retention,
//! garbage. Each step is a batch that ends; what fails is tried again the next time.

use std::sync::Arc;

use crate::database::Database;
use crate::fault::Fault;
use crate::operations::blobs::BlobStore;
use crate::operations::partitions::{self, AUDIT, USAGE};
use crate::operations::retention;

/// How long things are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Days of the audit.
    pub audit_days: u16,
    /// Days of single events of usage; their sums stay.
    pub usage_days: u16,
    /// Profiles and the days that a session of theirs may be idle.
    pub idle_chats: Vec<(&'static str, i32)>,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { audit_days: 730, usage_days: 90, idle_chats: vec![("llmchat", 30)] }
    }
}

/// Does what is due. Without a store, bytes of files that are gone wait.
pub async fn tend(
    database: &Database,
    store: Option<&Arc<dyn BlobStore>>,
    keep: &Keep,
) -> Result<(), Fault> {
    let now = database.client().await?.query_one("select now()", &[]).await?.get(0);
    for (table, days) in [(AUDIT, keep.audit_days), (USAGE, keep.usage_days)] {
        let tended = partitions::tend(database, table, now, days).await?;
        if tended.moved > 0 {
            tracing::warn!(rows = tended.moved, "rows had come before their partition");
        }
        for name in tended.dropped {
            tracing::info!(partition = name, "dropped by age");
        }
    }
    for (profile, days) in &keep.idle_chats {
        let mut left = BATCHES;
        while left > 0 && retention::remove_idle_chats(database, profile, *days).await? > 0 {
            left -= 1;
        }
    }
    let mut left = BATCHES;
    while left > 0 && retention::delete_removed_chats(database).await? > 0 {
        left -= 1;
    }
    if let Some(store) = store {
        let mut left = BATCHES;
        while left > 0 && retention::delete_garbage(database, store).await? > 0 {
            left -= 1;
        }
    }
    Ok(())
}

/// Of one kind in one turn: the next turn comes soon enough.
const BATCHES: u32 = 100;
