//! A data plane that follows the feed lets in whom the control plane would.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use pagoda_http::reply::Frames;
use pagoda_wire::gate::Refusal;
use pagoda_wire::known::Known;
use pagoda_wire::seal::Seal;
use pagoda_wire::snapshot::{Frame, Revision};
use pagoda_wire::token::Role;
use pagoda_wire::vault::Vault;
use uuid::Uuid;

use super::planes::{Report, laggards, report};
use super::stream::{PURPOSE, frames};
use super::{log, news};
use crate::database::change::Actor;
use crate::operations::api_keys::issue::create;
use crate::operations::api_keys::{Hand, KeyUpdate, Settings, delete, update};
use crate::operations::fields::Label;
use crate::operations::rbac::Reach;
use crate::operations::tests::Home;

/// A data plane without sockets: it opens what comes and keeps what it knows.
struct Plane {
    lines: Frames,
    seal: Seal,
    known: Known,
}

impl Plane {
    async fn follow(home: &Home, since: Option<Revision>) -> Self {
        let planes = home.operations.secrets.planes();
        let seal = Seal::new(planes, PURPOSE);
        let mut lines: Frames = Box::pin(frames(home.operations.clone(), since));
        let Frame::Full(snapshot) = next(&mut lines, &seal).await else { panic!("no whole first") };
        let vault = Arc::new(Vault::new(planes).unwrap());
        let known = Known::from_snapshot(snapshot, "pagoda", vault).unwrap();
        Plane { lines, seal, known }
    }

    /// Follows until it knows `revision`.
    async fn reach(&mut self, revision: Revision) {
        while self.known.revision() < revision {
            let frame = next(&mut self.lines, &self.seal).await;
            if let Some(known) = self.known.after(frame).unwrap() {
                self.known = known;
            }
        }
    }

    fn admits(&self, credential: &str) -> Result<Uuid, Refusal> {
        let now = jiff::Timestamp::now().as_second();
        let admitted = self.known.admit(credential, "198.51.100.1".parse().unwrap(), now);
        admitted.map(|admitted| admitted.user.id)
    }
}

async fn next(lines: &mut Frames, seal: &Seal) -> Frame {
    let line = tokio::time::timeout(Duration::from_secs(20), lines.next()).await;
    let line = line.expect("a sign of life each second").expect("the feed ended");
    let line = std::str::from_utf8(&line).unwrap();
    seal.open(line.strip_suffix('\n').unwrap()).unwrap()
}

#[tokio::test]
async fn whom_the_control_plane_lets_in_the_data_plane_does_too() {
    let home = Home::new().await;
    let operations = &home.operations;
    let following = tokio::spawn(news::follow(operations.clone(), home.address()));
    let by = Actor::operator();
    let hand = Hand { actor: &by, reach: Reach::Everyone, role: Role::Admin };
    let alice = home.user("alice", Role::User).await;
    let token = home.login("alice").await.access_token;

    let mut plane = Plane::follow(&home, None).await;
    assert_eq!(plane.admits(&token), Ok(alice.id));
    let settings = Settings::named(Label::required("name", "one").unwrap());
    let made = create(operations, hand, alice.id, settings).await.unwrap();
    let (id, key) = (made.value.key.id, made.value.secret);
    assert_eq!(plane.admits(&key), Err(Refusal::Wrong), "it does not know yet");
    plane.reach(made.revision.unwrap()).await;
    assert_eq!(plane.admits(&key), Ok(alice.id));

    let off = KeyUpdate { enabled: Some(false), ..KeyUpdate::default() };
    let written = update(operations, hand, id, off).await.unwrap();
    plane.reach(written.revision.unwrap()).await;
    assert_eq!(plane.admits(&key), Err(Refusal::Wrong));
    assert_eq!(plane.admits(&token), Ok(alice.id));
    let gone = delete(operations, hand, id).await.unwrap();
    plane.reach(gone.unwrap()).await;
    assert_eq!(plane.known.to_snapshot().items.len(), plane_items(&home).await);
    following.abort();
}

/// How many records a fresh data plane would get.
async fn plane_items(home: &Home) -> usize {
    Plane::follow(home, None).await.known.to_snapshot().items.len()
}

#[tokio::test]
async fn who_was_away_gets_what_it_missed_or_the_whole() {
    let home = Home::new().await;
    let operations = &home.operations;
    let client = operations.database.client().await.unwrap();
    let first = log::revision(&client).await.unwrap();
    for name in ["a", "b", "c"] {
        home.user(name, Role::User).await;
    }
    let frames = log::next(operations, Some(first)).await.unwrap().unwrap();
    let revisions: Vec<_> = frames.iter().map(revision_of_delta).collect();
    assert_eq!(revisions, [Some(first + 1), Some(first + 2), Some(first + 3)]);
    assert_eq!(log::next(operations, Some(first + 3)).await.unwrap(), None);
    // Ahead of us: it followed a database that was restored from an older copy since.
    let frames = log::next(operations, Some(first + 9)).await.unwrap().unwrap();
    assert!(matches!(&frames[..], [Frame::Full(whole)] if whole.revision == first + 3));
    // The writes between are not kept any more.
    let cut = "delete from change_log where revision = $1";
    client.execute(cut, &[&i64::try_from(first + 1).unwrap()]).await.unwrap();
    let frames = log::next(operations, Some(first)).await.unwrap().unwrap();
    assert!(matches!(&frames[..], [Frame::Full(_)]));
}

fn revision_of_delta(frame: &Frame) -> Option<Revision> {
    match frame {
        Frame::Delta(delta) => Some(delta.revision),
        Frame::Full(_) | Frame::Still(_) => None,
    }
}

#[tokio::test]
async fn a_feed_ends_when_its_server_stops() {
    let home = Home::new().await;
    let mut plane = Plane::follow(&home, None).await;
    home.operations.database.news().end();
    let end = async { while plane.lines.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), end).await.expect("it goes on");
}

#[tokio::test]
async fn a_write_names_those_who_have_not_applied_it() {
    let home = Home::new().await;
    let database = &home.operations.database;
    let plane = |name: &str, applied| Report {
        plane: Uuid::now_v7(),
        name: name.into(),
        version: "0.1.0".into(),
        applied,
    };
    let (mut slow, quick, silent) = (plane("slow", 4), plane("quick", 5), plane("silent", 1));
    for told in [&slow, &quick, &silent] {
        report(database, told, "127.0.0.1").await.unwrap();
    }
    let client = database.client().await.unwrap();
    let away = "update plane set last_seen = now() - interval '1 minute' where name = 'silent'";
    client.execute(away, &[]).await.unwrap();
    assert_eq!(laggards(database, 5).await.unwrap(), ["slow"]);
    slow.applied = 5;
    report(database, &slow, "127.0.0.1").await.unwrap();
    assert!(laggards(database, 5).await.unwrap().is_empty());
}
