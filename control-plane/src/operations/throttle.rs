//! Attempts to log in, and when the next may come: the lock that cannot lock others out.
//!
//! Counted is who was meant *and* from where, so that whoever fails delays only itself: the owner
//! gets in from anywhere else. An address has a wider bound of its own, over all accounts, which
//! those who have logged in from it do not share. An attempt is charged before its password is
//! looked at, so that many at once are no more than many in a row.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use deadpool_postgres::GenericClient;
use sha2::{Digest, Sha256};

use crate::database::Client;
use crate::fault::Fault;

/// Who is meant and from where.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// A digest: whatever stood in the field of a name may be a password.
    account: Vec<u8>,
    network: IpAddr,
    /// Whether the address pays, too.
    is_stranger: bool,
}

impl Attempt {
    /// By the name that was given, which need be nobody's; so each answers alike.
    pub fn by_name(name: &str, address: Option<IpAddr>) -> Self {
        Attempt {
            account: Sha256::digest(name.to_lowercase().as_bytes()).to_vec(),
            network: network(address),
            is_stranger: address.is_some(),
        }
    }

    /// From an address that this account has been used from: its own bound is enough.
    pub fn known(mut self, is_known: bool) -> Self {
        self.is_stranger &= !is_known;
        self
    }

    /// Counts the attempt as one that fails. Too many: says when the next may come.
    pub async fn charge(&self, client: &Client) -> Result<(), Fault> {
        charge(client, &self.account, self.network, OF_ACCOUNT).await?;
        if self.is_stranger {
            charge(client, EVERYBODY, self.network, OF_ADDRESS).await?;
        }
        Ok(())
    }

    /// The attempt did not fail: with `is_owner` none before it did, either.
    pub async fn refund(&self, client: &impl GenericClient, is_owner: bool) -> Result<(), Fault> {
        if is_owner {
            let sql = "delete from login_attempt where account = $1 and network = $2";
            client.execute(sql, &[&self.account, &self.network]).await?;
        } else {
            back(client, &self.account, self.network, OF_ACCOUNT).await?;
        }
        if self.is_stranger {
            back(client, EVERYBODY, self.network, OF_ADDRESS).await?;
        }
        Ok(())
    }
}

/// Forgets attempts that count no more. Answers how many.
pub async fn sweep(client: &Client) -> Result<u64, Fault> {
    let sql = "delete from login_attempt where last_at < now() - interval '1 day'";
    Ok(client.execute(sql, &[]).await?)
}

/// So many failures are free, the next doubles the delay, up to a bound.
#[derive(Clone, Copy)]
struct Bound {
    free: i32,
    delay_max_s: f64,
}

const OF_ACCOUNT: Bound = Bound { free: 5, delay_max_s: 900.0 };

/// Many may sit behind one address.
const OF_ADDRESS: Bound = Bound { free: 50, delay_max_s: 60.0 };

/// The account that stands for all of an address. No digest is empty.
const EVERYBODY: &[u8] = b"";

async fn charge(
    client: &Client,
    account: &[u8],
    network: IpAddr,
    bound: Bound,
) -> Result<(), Fault> {
    // The row's lock puts attempts at once in a row; who comes while it is blocked changes nothing.
    let sql = "insert into login_attempt as a (account, network, failures, last_at, blocked_until)
         values ($1, $2, 1, now(), now())
         on conflict (account, network) do update set
             failures = case when a.last_at < now() - interval '1 day' then 1
                             else a.failures + 1 end,
             last_at = now(),
             blocked_until = case when a.last_at < now() - interval '1 day' then now()
                                  when a.failures + 1 < $3 then now()
                                  else now() + make_interval(secs =>
                                      least($4, power(2, least(a.failures + 1 - $3, 30)))) end
         where a.blocked_until <= now()";
    let statement = client.prepare_cached(sql).await?;
    let charged =
        client.execute(&statement, &[&account, &network, &bound.free, &bound.delay_max_s]).await?;
    if charged == 1 {
        return Ok(());
    }
    let sql = "select coalesce(max(ceil(extract(epoch from blocked_until - now()))::int), 1)
               from login_attempt where account = $1 and network = $2";
    let left: i32 = client.query_one(sql, &[&account, &network]).await?.get(0);
    Err(Fault::TooMany { retry_after_s: u32::try_from(left).unwrap_or(1).max(1) })
}

async fn back(
    client: &impl GenericClient,
    account: &[u8],
    network: IpAddr,
    bound: Bound,
) -> Result<(), Fault> {
    let sql = "update login_attempt set failures = greatest(failures - 1, 0),
                   blocked_until = case when failures <= $3 then now() else blocked_until end
               where account = $1 and network = $2";
    client.execute(sql, &[&account, &network, &bound.free]).await?;
    Ok(())
}

/// One caller has many addresses of version 6: all that differ behind the 64th bit.
fn network(address: Option<IpAddr>) -> IpAddr {
    match address.map(|address| address.to_canonical()) {
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        Some(address) => address,
    }
}
