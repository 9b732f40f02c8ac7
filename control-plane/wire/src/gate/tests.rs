//! Who is let in by what is known, and who is not.

use super::*;
use crate::snapshot::{
    Change, Delta, EndedLogin, Frame, Item, Kind, PepperRecord, RateClass, SigningKeyRecord,
    Snapshot,
};
use crate::token::Signer;
use crate::vault::Vault;

const NOW: i64 = 1_800_000_000;
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

struct World {
    key: ApiKey,
    signer: Signer,
    user: UserRecord,
    record: KeyRecord,
    pepper: PepperRecord,
    vault: Arc<Vault>,
}

impl World {
    fn new() -> Self {
        let key = ApiKey::generate().unwrap();
        let (id, secret) = (Uuid::from_u128(9), Secret::random().unwrap());
        let vault = Arc::new(Vault::new(&Secret::from([1; 32])).unwrap());
        let pepper = PepperRecord::seal(id, &secret, &vault).unwrap();
        let user = UserRecord {
            id: Uuid::from_u128(1),
            tenant: Uuid::nil(),
            role: Role::User,
            enabled: true,
            epoch: 3,
            rate_class: RateClass::User,
            networks: vec![],
        };
        let record = KeyRecord {
            id: Uuid::from_u128(2),
            public_id: key.public_id,
            mac: key.mac(&secret),
            pepper: pepper.id,
            owner: user.id,
            enabled: true,
            scopes: vec![Scope::Inference],
            models: None,
            networks: vec![],
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            budget: None,
            limits: Uuid::from_u128(2),
        };
        let signer = Signer::from_seed(&Secret::from([7; 32])).unwrap();
        World { key, signer, user, record, pepper, vault }
    }

    fn signing_key(&self, not_after: Option<i64>) -> Item {
        let key = self.signer.public_key();
        Item::SigningKey(SigningKeyRecord { id: Uuid::from_u128(5), key, not_after })
    }

    fn known(&self) -> Known {
        let items = vec![
            Item::User(self.user.clone()),
            Item::Key(self.record.clone()),
            Item::Pepper(self.pepper.clone()),
            self.signing_key(None),
        ];
        Known::from_snapshot(Snapshot { revision: 4, items }, "pagoda", self.vault.clone()).unwrap()
    }

    fn token(&self) -> String {
        let (sub, sid) = (self.user.id, Uuid::from_u128(3));
        let (iss, aud) = ("pagoda".into(), "pagoda".into());
        let (role, epoch) = (self.user.role, self.user.epoch);
        let times = (NOW, NOW, NOW + 300);
        let (iat, nbf, exp) = times;
        self.signer.sign(&Claims { iss, aud, sub, sid, role, epoch, iat, nbf, exp })
    }
}

fn after(known: &Known, changes: Vec<Change>) -> Known {
    let delta = Delta { revision: known.revision() + 1, changes };
    known.after(Frame::Delta(delta)).unwrap().unwrap()
}

fn put(item: Item) -> Vec<Change> {
    vec![Change::Put(Box::new(item))]
}

#[test]
fn a_key_and_a_token_open_for_their_user() {
    let world = World::new();
    let known = world.known();
    let by_key = known.admit(&world.key.reveal(), HERE, NOW).unwrap();
    assert_eq!((by_key.user.id, by_key.is_admin()), (world.user.id, false));
    assert!(by_key.has(Scope::Inference) && !by_key.has(Scope::ModelsWrite));
    let by_token = known.admit(&world.token(), HERE, NOW).unwrap();
    assert_eq!(by_token.by, By::Login(Uuid::from_u128(3)));
    assert_eq!(known.admit(&world.token(), HERE, NOW + 300), Err(Refusal::Expired));
}

#[test]
fn what_was_taken_back_opens_nothing_from_the_next_revision_on() {
    let world = World::new();
    let known = world.known();
    let (key, token) = (world.key.reveal(), world.token());
    let opens = |known: &Known| {
        (known.admit(&key, HERE, NOW).is_ok(), known.admit(&token, HERE, NOW).is_ok())
    };
    assert_eq!(opens(&known), (true, true));
    let user = |change: fn(&mut UserRecord)| {
        let mut user = world.user.clone();
        change(&mut user);
        put(Item::User(user))
    };
    let record = |change: fn(&mut KeyRecord)| {
        let mut record = world.record.clone();
        change(&mut record);
        put(Item::Key(record))
    };
    let ended = EndedLogin { id: Uuid::from_u128(3), until: NOW + 300 };
    let cases = [
        (user(|user| user.enabled = false), (false, false)),
        (user(|user| user.epoch += 1), (true, false)),
        (vec![Change::Remove(Kind::User, world.user.id)], (false, false)),
        (record(|key| key.enabled = false), (false, true)),
        (record(|key| key.expires_at = Some(NOW)), (false, true)),
        (vec![Change::Remove(Kind::Key, world.record.id)], (false, true)),
        (vec![Change::Remove(Kind::Pepper, world.pepper.id)], (false, true)),
        (put(Item::EndedLogin(ended)), (true, false)),
        (put(world.signing_key(Some(NOW))), (true, false)),
        (put(world.signing_key(Some(NOW + 1))), (true, true)),
        (vec![Change::Remove(Kind::SigningKey, Uuid::from_u128(5))], (true, false)),
    ];
    for (changes, expected) in cases {
        let next = after(&known, changes.clone());
        assert_eq!(opens(&next), expected, "{changes:?}");
        assert_eq!(opens(&known), (true, true), "what was known before is as it was");
        let saved =
            Known::from_snapshot(next.to_snapshot(), "pagoda", world.vault.clone()).unwrap();
        assert_eq!(opens(&saved), expected, "{changes:?}");
    }
}

#[test]
fn a_key_with_another_secret_leaves_the_old_one_nothing() {
    let world = World::new();
    let new = ApiKey::generate().unwrap();
    let mac = new.mac(&world.pepper.open(&world.vault).unwrap());
    let record = KeyRecord { public_id: new.public_id, mac, ..world.record.clone() };
    let known = after(&world.known(), put(Item::Key(record)));
    assert_eq!(known.admit(&world.key.reveal(), HERE, NOW), Err(Refusal::Wrong));
    assert!(known.admit(&new.reveal(), HERE, NOW).is_ok());
}

#[test]
fn wrong_credentials_are_told_alike() {
    let world = World::new();
    let known = world.known();
    let key = world.key.reveal();
    let other = ApiKey::generate().unwrap().reveal();
    let wrong_secret = format!("{}{}", &key[..16], &other[16..]);
    for wrong in
        [other, wrong_secret, key[..20].into(), String::new(), "sk-".into(), "a.b.c".into()]
    {
        assert_eq!(known.admit(&wrong, HERE, NOW), Err(Refusal::Wrong), "{wrong}");
    }
}

#[test]
fn addresses_are_of_the_user_and_of_the_key() {
    let world = World::new();
    let net = |text: &str| vec![text.parse::<IpNet>().unwrap()];
    let from = |address: &str, user: &[IpNet], key: &[IpNet]| {
        let changes = vec![
            Change::Put(Box::new(Item::User(UserRecord {
                networks: user.into(),
                ..world.user.clone()
            }))),
            Change::Put(Box::new(Item::Key(KeyRecord {
                networks: key.into(),
                ..world.record.clone()
            }))),
        ];
        let known = after(&world.known(), changes);
        known.admit(&world.key.reveal(), address.parse().unwrap(), NOW).is_ok()
    };
    let (home, office) = (net("192.0.2.0/24"), net("2001:db8::/32"));
    assert!(from("192.0.2.7", &home, &[]) && from("192.0.2.7", &[], &home));
    assert!(from("::ffff:192.0.2.7", &home, &home));
    assert!(!from("198.51.100.1", &home, &[]) && !from("198.51.100.1", &[], &home));
    assert!(!from("192.0.2.7", &home, &office) && !from("::1", &[], &office));
}

#[test]
fn models_are_of_the_key() {
    let world = World::new();
    let record = KeyRecord { models: Some(vec!["small".into()]), ..world.record.clone() };
    let known = after(&world.known(), put(Item::Key(record)));
    let admitted = known.admit(&world.key.reveal(), HERE, NOW).unwrap();
    assert!(admitted.may_use("small") && !admitted.may_use("large"));
    assert!(known.admit(&world.token(), HERE, NOW).unwrap().may_use("large"));
}
