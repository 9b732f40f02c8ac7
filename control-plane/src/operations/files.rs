//! Files of users: a row in the database, bytes in the store.
//!
//! Bytes come before their row and go after it, and between the two the database knows them as
//! garbage: an upload that dies leaves bytes that are deleted later, never a row without bytes and
//! never bytes that nobody knows. The quota is counted under a lock on the owner, so uploads at once
//! do not exceed it together.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::{Database, TENANT};
use crate::fault::Fault;
use crate::operations::blobs::{BlobName, BlobStore, NewBlob};
use crate::operations::file_names::FileName;
use crate::operations::formats::{Format, Seen};
use crate::operations::owner::Owner;
use crate::operations::window::Window;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The file.
    pub id: Uuid,
    /// What its owner called it, cleaned.
    pub name: String,
    /// What its bytes are.
    pub media_type: String,
    /// How many they are.
    pub bytes: i64,
    /// Their SHA-256.
    pub sha256: Vec<u8>,
    /// When it was stored.
    pub created_at: Timestamp,
}

/// Bounds of what one owner may store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadRules {
    /// Bytes of one file.
    pub file_bytes_max: u64,
    /// Bytes of all files of an owner.
    pub owner_bytes_max: u64,
    /// Files of an owner.
    pub owner_files_max: u32,
    /// Formats that are taken; `None` is everything.
    pub formats: Option<&'static [Format]>,
}

/// A file on its way in. Dropped before [`Upload::finish`] it never was.
pub struct Upload {
    owner: Owner,
    name: FileName,
    rules: UploadRules,
    blob: BlobName,
    num_bytes: u64,
    parts: mpsc::Sender<Part>,
    written: oneshot::Receiver<std::io::Result<Written>>,
}

/// Bytes of a file on their way out.
pub struct Download {
    /// The file.
    pub file: File,
    /// Its bytes. Ends early only with an error.
    pub parts: mpsc::Receiver<std::io::Result<Bytes>>,
}

enum Part {
    Bytes(Bytes),
    End,
}

struct Written {
    sha256: Vec<u8>,
    seen: Seen,
}

impl Upload {
    /// Begins an upload.
    pub async fn begin(
        database: &Database,
        store: &Arc<dyn BlobStore>,
        owner: Owner,
        name: FileName,
        rules: UploadRules,
    ) -> Result<Upload, Fault> {
        let blob = BlobName::random().map_err(Fault::internal)?;
        let client = database.client().await?;
        // Who may store nothing more is told before the bytes come; who counts is `finish`.
        within_quota(&client, &owner, &rules, 1).await?;
        client
            .execute(
                "insert into file_garbage (blob, not_before)
                 values ($1, now() + make_interval(secs => $2))",
                &[&blob.as_str(), &UPLOAD_SECONDS_MAX],
            )
            .await?;
        let (parts, incoming) = mpsc::channel(PARTS);
        let (done, written) = oneshot::channel();
        let (store, to) = (store.clone(), blob.clone());
        tokio::task::spawn_blocking(move || {
            let result = store.create(&to).and_then(|new| write(new, incoming));
            // Nobody waits for an upload that was given up.
            let _ = done.send(result);
        });
        Ok(Upload { owner, name, rules, blob, num_bytes: 0, parts, written })
    }

    /// Takes the next bytes, as fast as the store does.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Fault> {
        self.num_bytes += bytes.len() as u64;
        if self.num_bytes > self.rules.file_bytes_max {
            let max = format!("{} bytes", self.rules.file_bytes_max);
            return Err(Fault::TooLarge { what: "the file", max });
        }
        if self.parts.send(Part::Bytes(bytes)).await.is_err() {
            // The writer has ended early: with an error, which it told.
            return Err(self.why().await);
        }
        Ok(())
    }

    /// Ends the upload: from now on there is the file.
    pub async fn finish(mut self, database: &Database) -> Result<File, Fault> {
        if self.parts.send(Part::End).await.is_err() {
            return Err(self.why().await);
        }
        let written = match (&mut self.written).await {
            Ok(Ok(written)) => written,
            Ok(Err(error)) => return Err(unstored(&error)),
            Err(_) => return Err(Fault::internal("the writer of an upload ended without a word")),
        };
        let format = Format::of(self.name.extension().as_deref(), &written.seen);
        if let Some(formats) = self.rules.formats
            && !format.is_some_and(|format| formats.contains(&format))
        {
            let message = "files of this type are not taken, or the name does not fit the bytes";
            return Err(Fault::invalid("file", message));
        }
        self.store(database, format, &written.sha256).await
    }

    async fn store(
        &self,
        database: &Database,
        format: Option<Format>,
        sha256: &[u8],
    ) -> Result<File, Fault> {
        let mut client = database.client().await?;
        let transaction = client.transaction().await?;
        let lock = format!("files of {}", self.owner.lock_name());
        let sql = "select pg_advisory_xact_lock(hashtextextended($1, 0))";
        transaction.execute(sql, &[&lock]).await?;
        within_quota(&transaction, &self.owner, &self.rules, self.num_bytes).await?;
        let media_type = format.map_or("application/octet-stream", Format::media_type);
        let num_bytes = i64::try_from(self.num_bytes).map_err(Fault::internal)?;
        let row = transaction
            .query_one(
                &format!(
                    "insert into file (id, tenant_id, user_id, profile, name, media_type, bytes,
                         sha256, blob)
                     values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning {COLUMNS}"
                ),
                &[
                    &Uuid::now_v7(),
                    &TENANT,
                    &self.owner.user,
                    &self.owner.profile,
                    &self.name.as_str(),
                    &media_type,
                    &num_bytes,
                    &sha256,
                    &self.blob.as_str(),
                ],
            )
            .await?;
        let sql = "delete from file_garbage where blob = $1";
        // An upload of more than an hour: somebody may have deleted its bytes already.
        if transaction.execute(sql, &[&self.blob.as_str()]).await? != 1 {
            return Err(Fault::Unavailable { what: "so slow an upload", retry_after_s: 1 });
        }
        transaction.commit().await?;
        Ok(file(&row))
    }

    async fn why(&mut self) -> Fault {
        match (&mut self.written).await {
            Ok(Err(error)) => unstored(&error),
            _ => Fault::internal("the writer of an upload ended without a word"),
        }
    }
}

/// The owner's files, the newest first.
pub async fn list(
    database: &Database,
    owner: &Owner,
    window: &Window<Uuid>,
) -> Result<Vec<File>, Fault> {
    let client = database.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "select {COLUMNS} from file where {} and ($2::uuid is null or id < $2)
             order by id desc offset $3 limit $4",
            owner.owns()
        ))
        .await?;
    let rows = client
        .query(&statement, &[owner.parameter(), &window.after, &window.skip(), &window.limit()])
        .await?;
    Ok(rows.iter().map(file).collect())
}

/// One file, without its bytes.
pub async fn find(database: &Database, owner: &Owner, id: Uuid) -> Result<File, Fault> {
    row(database, owner, id).await.map(|row| file(&row))
}

/// One file with its bytes.
pub async fn download(
    database: &Database,
    store: &Arc<dyn BlobStore>,
    owner: &Owner,
    id: Uuid,
) -> Result<Download, Fault> {
    let row = row(database, owner, id).await?;
    let blob = BlobName::parse(row.get("blob"));
    let blob = blob.ok_or_else(|| Fault::internal("a file's blob has no blob's name"))?;
    let store = store.clone();
    let opened = tokio::task::spawn_blocking(move || store.open(&blob)).await;
    let bytes = match opened.map_err(Fault::internal)? {
        Ok(bytes) => bytes,
        // Deleted between the row and the bytes.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            find(database, owner, id).await?;
            return Err(Fault::internal(format!("the bytes of file {id} are gone")));
        }
        Err(error) => return Err(unstored(&error)),
    };
    let (sender, parts) = mpsc::channel(PARTS);
    tokio::task::spawn_blocking(move || read(bytes, &sender));
    Ok(Download { file: file(&row), parts })
}

/// Deletes a file. Whoever reads it reads on.
pub async fn delete(
    database: &Database,
    store: &Arc<dyn BlobStore>,
    owner: &Owner,
    id: Uuid,
) -> Result<(), Fault> {
    let client = database.client().await?;
    let sql = format!("delete from file where {} and id = $2 returning blob", owner.owns());
    let gone = client.query_opt(&sql, &[owner.parameter(), &id]).await?;
    let name: String = gone.ok_or(Fault::NotFound("file"))?.get(0);
    // The row's trigger has put the bytes among the garbage. What fails here is done later.
    let (store, blob) = (store.clone(), BlobName::parse(&name));
    let deleted = tokio::task::spawn_blocking(move || blob.map(|blob| store.delete(&blob))).await;
    if let Ok(Some(Ok(()))) = deleted {
        let _ = client.execute("delete from file_garbage where blob = $1", &[&name]).await;
    }
    Ok(())
}

async fn row(database: &Database, owner: &Owner, id: Uuid) -> Result<Row, Fault> {
    let client = database.client().await?;
    let sql = format!("select {COLUMNS}, blob from file where {} and id = $2", owner.owns());
    let row = client.query_opt(&sql, &[owner.parameter(), &id]).await?;
    row.ok_or(Fault::NotFound("file"))
}

/// Whether so many bytes more are still the owner's to store.
async fn within_quota(
    client: &impl deadpool_postgres::GenericClient,
    owner: &Owner,
    rules: &UploadRules,
    num_bytes: u64,
) -> Result<(), Fault> {
    let sql = format!(
        "select count(*), coalesce(sum(bytes), 0)::bigint from file where {}",
        owner.owns()
    );
    let row = client.query_one(&sql, &[owner.parameter()]).await?;
    let (files, bytes): (i64, i64) = (row.get(0), row.get(1));
    if files >= i64::from(rules.owner_files_max) {
        let max = format!("{} files", rules.owner_files_max);
        return Err(Fault::TooLarge { what: "the list of your files", max });
    }
    if (bytes as u64).saturating_add(num_bytes) > rules.owner_bytes_max {
        let max = format!("{} bytes", rules.owner_bytes_max);
        return Err(Fault::TooLarge { what: "all your files together", max });
    }
    Ok(())
}

/// Writes what comes until its end. What ends otherwise is not kept.
fn write(
    mut new: Box<dyn NewBlob>,
    mut incoming: mpsc::Receiver<Part>,
) -> std::io::Result<Written> {
    let (mut hash, mut seen) = (Sha256::new(), Seen::default());
    loop {
        match incoming.blocking_recv() {
            Some(Part::Bytes(bytes)) => {
                hash.update(&bytes);
                seen.look(&bytes);
                new.write_all(&bytes)?;
            }
            Some(Part::End) => {
                new.keep()?;
                return Ok(Written { sha256: hash.finalize().to_vec(), seen });
            }
            None => return Err(std::io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// Reads to the end, or until nobody reads on.
fn read(mut bytes: Box<dyn Read + Send>, parts: &mpsc::Sender<std::io::Result<Bytes>>) {
    loop {
        let mut part = vec![0; PART_BYTES];
        let read = bytes.read(&mut part);
        let (part, is_last) = match read {
            Ok(0) => return,
            Ok(len) => {
                part.truncate(len);
                (Ok(part.into()), false)
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => (Err(error), true),
        };
        if parts.blocking_send(part).is_err() || is_last {
            return;
        }
    }
}

/// The store does not serve: no place, no rights, no disk.
fn unstored(error: &std::io::Error) -> Fault {
    tracing::error!(%error, "the store of files does not serve");
    Fault::Unavailable { what: "the store of files", retry_after_s: 5 }
}

const COLUMNS: &str = "id, name, media_type, bytes, sha256, created_at";

fn file(row: &Row) -> File {
    File {
        id: row.get(0),
        name: row.get(1),
        media_type: row.get(2),
        bytes: row.get(3),
        sha256: row.get(4),
        created_at: row.get(5),
    }
}

/// An upload that takes longer may find its bytes deleted.
const UPLOAD_SECONDS_MAX: f64 = 3600.0;

/// Parts between a socket and the disk.
const PARTS: usize = 4;

/// Bytes of a part on its way out.
const PART_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests;
