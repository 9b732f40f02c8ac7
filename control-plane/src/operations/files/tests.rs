//! Files against a real Postgres and a real folder.

use super::*;
use crate::operations::blobs::FolderStore;
use crate::operations::retention::delete_garbage;
use crate::test_database::TestDatabase;

const RULES: UploadRules = UploadRules {
    file_bytes_max: 1000,
    owner_bytes_max: 2000,
    owner_files_max: 5,
    formats: Some(&[Format::Text, Format::Png]),
};

struct Place {
    test: TestDatabase,
    folder: tempfile::TempDir,
    store: Arc<dyn BlobStore>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(FolderStore::open(folder.path()).unwrap());
        Place { test: TestDatabase::new().unwrap(), folder, store }
    }

    async fn upload(&self, owner: &Owner, name: &str, bytes: Vec<u8>) -> Result<File, Fault> {
        let database = self.test.database();
        let name = FileName::clean(name)?;
        let mut upload = Upload::begin(database, &self.store, owner.clone(), name, RULES).await?;
        for part in bytes.chunks(300) {
            upload.push(Bytes::copy_from_slice(part)).await?;
        }
        upload.finish(database).await
    }

    /// Files that are on the disk.
    fn on_disk(&self) -> usize {
        let folders = std::fs::read_dir(self.folder.path()).unwrap();
        folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
    }

    /// Makes all garbage due, and deletes it.
    async fn sweep(&self) -> u64 {
        let client = self.test.database().client().await.unwrap();
        client.execute("update file_garbage set not_before = now()", &[]).await.unwrap();
        delete_garbage(self.test.database(), &self.store).await.unwrap()
    }

    async fn user(&self, name: &str) -> Owner {
        let id = Uuid::now_v7();
        let client = self.test.database().client().await.unwrap();
        client
            .execute(
                "insert into app_user (id, tenant_id, username, email, role)
                 values ($1, $2, $3, $3 || '@example.com', 'user')",
                &[&id, &TENANT, &name],
            )
            .await
            .unwrap();
        Owner::user(id, "llmchat")
    }
}

async fn whole(mut download: Download) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(part) = download.parts.recv().await {
        all.extend_from_slice(&part.unwrap());
    }
    all
}

#[tokio::test]
async fn a_file_comes_back_as_it_went_and_goes_whole() {
    let place = Place::new();
    let (database, ada) = (place.test.database(), place.user("ada").await);
    let bytes = b"text ".repeat(150);
    let made = place.upload(&ada, "../notes.txt", bytes.clone()).await.unwrap();
    assert_eq!(
        (made.name.as_str(), made.bytes, made.media_type.as_str()),
        ("notes.txt", 750, "text/plain")
    );
    assert_eq!(made.sha256, Sha256::digest(&bytes).to_vec());
    let download = download(database, &place.store, &ada, made.id).await.unwrap();
    assert_eq!(download.file, made);
    assert_eq!(whole(download).await, bytes);
    assert_eq!(
        list(database, &ada, &Window::first(9).unwrap()).await.unwrap(),
        std::slice::from_ref(&made)
    );
    assert_eq!((place.sweep().await, place.on_disk()), (0, 1));
    delete(database, &place.store, &ada, made.id).await.unwrap();
    assert_eq!(find(database, &ada, made.id).await, Err(Fault::NotFound("file")));
    assert_eq!((place.on_disk(), place.sweep().await), (0, 0));
}

#[tokio::test]
async fn attack_11_another_s_file_is_an_id_of_nothing() {
    let place = Place::new();
    let (database, ada, bob) =
        (place.test.database(), place.user("ada").await, place.user("bob").await);
    let made = place.upload(&ada, "a.txt", b"secret".to_vec()).await.unwrap();
    for stranger in [bob, Owner::anonymous("llmchat"), Owner::user(Uuid::nil(), "llmchat")] {
        let none = Fault::NotFound("file");
        assert_eq!(find(database, &stranger, made.id).await.unwrap_err(), none);
        let got = download(database, &place.store, &stranger, made.id).await;
        assert_eq!(got.err(), Some(none.clone()));
        let gone = delete(database, &place.store, &stranger, made.id).await;
        assert_eq!(gone.unwrap_err(), none);
        assert!(list(database, &stranger, &Window::first(9).unwrap()).await.unwrap().is_empty());
    }
    assert!(find(database, &ada, made.id).await.is_ok());
}

#[tokio::test]
async fn attack_13_what_is_too_large_or_not_what_it_says_leaves_nothing() {
    let place = Place::new();
    let ada = place.user("ada").await;
    let large = place.upload(&ada, "a.txt", vec![b'a'; 1001]).await.unwrap_err();
    assert!(matches!(large, Fault::TooLarge { .. }));
    for (name, bytes) in [
        ("a.png", b"<html><script>".to_vec()),
        ("a.html", b"<html><script>".to_vec()),
        ("a.txt", b"".to_vec()),
        ("a.txt", b"a\0b".to_vec()),
        ("a.gif", b"GIF89a".to_vec()),
        ("noending", b"text".to_vec()),
    ] {
        let fault = place.upload(&ada, name, bytes).await.unwrap_err();
        assert!(matches!(fault, Fault::Invalid { .. }), "{name}: {fault:?}");
    }
    // One that is given up midway.
    let name = FileName::clean("a.txt").unwrap();
    let begun = Upload::begin(place.test.database(), &place.store, ada.clone(), name, RULES);
    begun.await.unwrap().push(Bytes::from_static(b"half")).await.unwrap();
    assert!(
        list(place.test.database(), &ada, &Window::first(9).unwrap()).await.unwrap().is_empty()
    );
    assert_eq!((place.sweep().await, place.on_disk()), (8, 0));
}

#[tokio::test]
async fn attack_13_uploads_at_once_do_not_exceed_the_quota_together() {
    let place = Arc::new(Place::new());
    let ada = place.user("ada").await;
    let uploads = (0..8).map(|n| {
        let (place, ada) = (place.clone(), ada.clone());
        tokio::spawn(async move { place.upload(&ada, &format!("{n}.txt"), vec![b'a'; 900]).await })
    });
    let mut kept = 0;
    for upload in uploads.collect::<Vec<_>>() {
        match upload.await.unwrap() {
            Ok(_) => kept += 1,
            Err(fault) => assert!(matches!(fault, Fault::TooLarge { .. }), "{fault:?}"),
        }
    }
    assert_eq!(kept, 2);
    place.sweep().await;
    assert_eq!(place.on_disk(), 2);
    // By their number, too.
    let bob = place.user("bob").await;
    for n in 0..5 {
        place.upload(&bob, &format!("{n}.txt"), b"x".to_vec()).await.unwrap();
    }
    assert!(place.upload(&bob, "5.txt", b"x".to_vec()).await.is_err());
}

#[tokio::test]
async fn bytes_go_with_their_user_and_never_before_their_row() {
    let place = Place::new();
    let (database, ada) = (place.test.database(), place.user("ada").await);
    place.upload(&ada, "a.txt", b"a".to_vec()).await.unwrap();
    let client = database.client().await.unwrap();
    // Whatever the garbage says, bytes with a row stay.
    client.execute("insert into file_garbage select blob, now() from file", &[]).await.unwrap();
    assert_eq!((place.sweep().await, place.on_disk()), (0, 1));
    client.execute("delete from file_garbage", &[]).await.unwrap();
    client.execute("delete from app_user", &[]).await.unwrap();
    assert_eq!((place.sweep().await, place.on_disk()), (1, 0));
    // An upload whose bytes were deleted before it ended has no row.
    let bob = place.user("bob").await;
    let name = FileName::clean("a.txt").unwrap();
    let mut slow = Upload::begin(database, &place.store, bob.clone(), name, RULES).await.unwrap();
    slow.push(Bytes::from_static(b"slow")).await.unwrap();
    place.sweep().await;
    assert!(slow.finish(database).await.is_err());
    assert!(list(database, &bob, &Window::first(9).unwrap()).await.unwrap().is_empty());
}
