//! Which frames follow what is known.

use super::*;
use crate::snapshot::EndedLogin;

fn vault() -> Arc<Vault> {
    Arc::new(Vault::new(&Secret::from([1; 32])).unwrap())
}

fn known(revision: Revision) -> Known {
    Known::from_snapshot(Snapshot { revision, items: vec![] }, "pagoda", vault()).unwrap()
}

fn delta(revision: Revision) -> Frame {
    Frame::Delta(Delta { revision, changes: vec![] })
}

#[test]
fn revisions_are_taken_in_order_once() {
    let at = |frame| known(7).after(frame).map(|next| next.map(|next| next.revision()));
    assert_eq!(at(delta(8)), Ok(Some(8)));
    assert_eq!(at(delta(7)), Ok(None));
    assert_eq!(at(delta(9)), Err(Gap::Missed { known: 7, got: 9 }));
    assert_eq!(at(Frame::Still(7)), Ok(None));
    assert_eq!(at(Frame::Still(8)), Err(Gap::Missed { known: 7, got: 8 }));
    let full = |revision| Frame::Full(Snapshot { revision, items: vec![] });
    assert_eq!(at(full(7)), Ok(Some(7)));
    assert_eq!(at(full(30)), Ok(Some(30)));
    assert_eq!(at(full(6)), Err(Gap::Older { known: 7, got: 6 }));
}

#[test]
fn a_login_is_forgotten_once_its_tokens_are_over() {
    let login = |id, until| Item::EndedLogin(EndedLogin { id: Uuid::from_u128(id), until });
    let snapshot = Snapshot { revision: 1, items: vec![login(1, 100), login(2, 200)] };
    let known = Known::from_snapshot(snapshot, "pagoda", vault()).unwrap();
    assert!(known.without_old(99).is_none());
    let later = known.without_old(100).unwrap();
    assert_eq!(later.ended_logins.keys().collect::<Vec<_>>(), [&Uuid::from_u128(2)]);
}

#[test]
fn a_pepper_of_another_installation_is_refused() {
    let other = Vault::new(&Secret::from([2; 32])).unwrap();
    let pepper = PepperRecord::seal(Uuid::from_u128(1), &Secret::from([3; 32]), &other).unwrap();
    let snapshot = Snapshot { revision: 1, items: vec![Item::Pepper(pepper)] };
    assert_eq!(Known::from_snapshot(snapshot, "pagoda", vault()).unwrap_err(), Gap::Pepper);
}
