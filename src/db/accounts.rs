//! Whose a token is, and whose a list: the door's questions.
//!
//! Questions that arrive together share one statement: while [`FLIGHTS_MAX`] statements are on their way,
//! arrivals accumulate, and the next statement takes up to [`BATCH_MAX`] of them. One that arrives alone goes at
//! once. So the cost of a crowd that connects is a statement per batch, and a lone client waits for
//! nobody. Whoever stops waiting (a client that left) is left out of the next statement.
//!
//! Tested against a private PostgreSQL in `tests/db_accounts.rs`.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio_postgres::types::Type;

use super::pool::{DbError, Pool};
use super::rows::Columns;
use crate::core::slack::Slack;
use crate::core::stream::{Id, Scopes};

/// Statements of one kind on their way at once.
const FLIGHTS_MAX: usize = 2;

/// Questions in one statement.
const BATCH_MAX: usize = 512;

/// Longer text is no token: Doorkeeper's have 43 bytes. A batch of tokens as long as a request's head would be
/// megabytes, and a connection to PostgreSQL keeps the room that its largest statement took.
const TOKEN_BYTES_MAX: usize = 1024;

/// A good token: its row exists, it is neither revoked nor expired, its user is not disabled and its
/// account not suspended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// `oauth_access_tokens.id`, which names its system channel.
    pub id: Id,
    /// The account it speaks for.
    pub account: Id,
    /// What it may do; nothing where the column is null.
    pub scopes: Scopes,
    /// When it expires, in seconds since 1970; none for ever.
    pub expires_at: Option<u64>,
}

/// The door's look-ups. Clones share the batches. To be used on the pool's runtime.
#[derive(Clone, Debug)]
pub struct Accounts {
    tokens: Batcher<String, Option<Token>>,
    lists: Batcher<(Id, Id), bool>,
}

impl Accounts {
    /// Look-ups over that pool.
    pub fn new(pool: Pool) -> Accounts {
        let lists_pool = pool.clone();
        Accounts {
            tokens: Batcher::new(move |tokens| Box::pin(ask_tokens(pool.clone(), tokens))),
            lists: Batcher::new(move |pairs| Box::pin(ask_lists(lists_pool.clone(), pairs))),
        }
    }

    /// The token's owner and rights; none if it is not good. Text that no token can be is not good either.
    ///
    /// # Errors
    /// When PostgreSQL gave no answer.
    pub async fn look_up(&self, token: &str) -> Result<Option<Token>, DbError> {
        // Tokens are printable ASCII. PostgreSQL would refuse the whole batch for a NUL.
        let is_token = 1..=TOKEN_BYTES_MAX;
        if !is_token.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(None);
        }
        Ok(self.tokens.ask(token.to_owned()).await?.flatten())
    }

    /// Whether that list exists and is that account's.
    ///
    /// # Errors
    /// When PostgreSQL gave no answer.
    pub async fn owns_list(&self, account: Id, list: Id) -> Result<bool, DbError> {
        if i64::try_from(account).is_err() || i64::try_from(list).is_err() {
            return Ok(false);
        }
        Ok(self.lists.ask((account, list)).await?.unwrap_or(false))
    }
}

const TOKENS: &str = "\
SELECT t.token, t.id, u.account_id, t.scopes, \
 CASE WHEN t.expires_in IS NOT NULL \
 THEN CEIL(EXTRACT(EPOCH FROM t.created_at + t.expires_in * interval '1 second'))::bigint END \
FROM oauth_access_tokens t \
JOIN users u ON u.id = t.resource_owner_id \
JOIN accounts a ON a.id = u.account_id \
WHERE t.token = ANY($1) AND t.revoked_at IS NULL AND NOT u.disabled AND a.suspended_at IS NULL \
 AND (t.expires_in IS NULL \
 OR t.created_at + t.expires_in * interval '1 second' > now() AT TIME ZONE 'UTC')";

async fn ask_tokens(pool: Pool, tokens: Arc<Vec<String>>) -> Answers<String, Option<Token>> {
    let rows = pool.query(TOKENS, &[(&*tokens, Type::TEXT_ARRAY)]).await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let (name, token) = read_token(row)?;
        found.insert(name, Some(token));
    }
    Ok(found)
}

#[doc(hidden)]
pub fn read_token(row: &impl Columns) -> Result<(String, Token), DbError> {
    let scopes: Option<&str> = row.column(3)?;
    let expires_at: Option<i64> = row.column(4)?;
    let token = Token {
        id: row.column::<i64>(1)?.unsigned_abs(),
        account: row.column::<i64>(2)?.unsigned_abs(),
        scopes: Scopes::parse(scopes.unwrap_or_default()),
        expires_at: expires_at.map(|seconds| seconds.max(0).unsigned_abs()),
    };
    Ok((row.column(0)?, token))
}

const LISTS: &str = "\
SELECT l.account_id, l.id FROM unnest($1, $2) AS asked (account_id, list_id) \
JOIN lists l ON l.id = asked.list_id AND l.account_id = asked.account_id";

async fn ask_lists(pool: Pool, pairs: Arc<Vec<(Id, Id)>>) -> Answers<(Id, Id), bool> {
    // Both fit: they were checked before they came here.
    let accounts: Vec<i64> = pairs.iter().map(|pair| pair.0 as i64).collect();
    let lists: Vec<i64> = pairs.iter().map(|pair| pair.1 as i64).collect();
    let rows = pool.query(LISTS, &[(&accounts, Type::INT8_ARRAY), (&lists, Type::INT8_ARRAY)]).await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        found.insert(read_list(row)?, true);
    }
    Ok(found)
}

#[doc(hidden)]
pub fn read_list(row: &impl Columns) -> Result<(Id, Id), DbError> {
    let (account, list) = (row.column::<i64>(0)?, row.column::<i64>(1)?);
    Ok((account.unsigned_abs(), list.unsigned_abs()))
}

/// What was found, by question; questions without an entry have found nothing.
type Answers<K, V> = Result<HashMap<K, V>, DbError>;

type Ask<K, V> =
    Box<dyn Fn(Arc<Vec<K>>) -> Pin<Box<dyn Future<Output = Answers<K, V>> + Send>> + Send + Sync>;

/// Questions that arrive together, asked together.
struct Batcher<K, V> {
    shared: Arc<Shared<K, V>>,
}

impl<K, V> Clone for Batcher<K, V> {
    fn clone(&self) -> Batcher<K, V> {
        Batcher { shared: Arc::clone(&self.shared) }
    }
}

impl<K, V> std::fmt::Debug for Batcher<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batcher({} waiting)", self.shared.lock().waiting.len())
    }
}

struct Shared<K, V> {
    queue: Mutex<Queue<K, V>>,
    ask: Ask<K, V>,
}

struct Queue<K, V> {
    waiting: VecDeque<(K, Reply<V>)>,
    flights: usize,
}

type Reply<V> = oneshot::Sender<Result<Option<V>, DbError>>;

impl<K, V> Shared<K, V> {
    // Nothing can panic while the lock is held.
    fn lock(&self) -> MutexGuard<'_, Queue<K, V>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Batcher<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + 'static,
{
    fn new(
        ask: impl Fn(Arc<Vec<K>>) -> Pin<Box<dyn Future<Output = Answers<K, V>> + Send>> + Send + Sync + 'static,
    ) -> Batcher<K, V> {
        let queue = Mutex::new(Queue { waiting: VecDeque::new(), flights: 0 });
        Batcher { shared: Arc::new(Shared { queue, ask: Box::new(ask) }) }
    }

    async fn ask(&self, key: K) -> Result<Option<V>, DbError> {
        let (reply, answer) = oneshot::channel();
        let starts = {
            let mut queue = self.shared.lock();
            queue.waiting.push_back((key, reply));
            let starts = queue.flights < FLIGHTS_MAX;
            queue.flights += usize::from(starts);
            starts
        };
        if starts {
            tokio::spawn(Batcher::fly(Flight(Arc::clone(&self.shared))));
        }
        match answer.await {
            Ok(result) => result,
            // Only when the runtime is going away.
            Err(_) => Err(DbError::statement("the server is stopping")),
        }
    }

    /// Asks batch after batch, until nobody waits.
    async fn fly(flight: Flight<K, V>) {
        let shared = &flight.0;
        loop {
            let mut keys = Vec::new();
            let mut replies = Vec::new();
            {
                let mut queue = shared.lock();
                while keys.len() < BATCH_MAX {
                    let Some((key, reply)) = queue.waiting.pop_front() else { break };
                    if !reply.is_closed() {
                        keys.push(key);
                        replies.push(reply);
                    }
                }
                queue.waiting.give_back();
            }
            if keys.is_empty() {
                return;
            }
            let keys = Arc::new(keys);
            let answers = (shared.ask)(Arc::clone(&keys)).await;
            for (key, reply) in keys.iter().zip(replies) {
                let answer = match &answers {
                    Ok(found) => Ok(found.get(key).cloned()),
                    Err(error) => Err(error.clone()),
                };
                // Whoever stopped waiting meanwhile does not need it.
                let _ = reply.send(answer);
            }
        }
    }
}

/// Its end makes room for another, however it ends.
struct Flight<K, V>(Arc<Shared<K, V>>);

impl<K, V> Drop for Flight<K, V> {
    fn drop(&mut self) {
        self.0.lock().flights -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    type Noted = Arc<Mutex<Vec<Vec<u32>>>>;

    /// Doubles numbers; each batch waits for a permit and is noted.
    fn doubler(permits: Arc<tokio::sync::Semaphore>) -> (Batcher<u32, u32>, Noted) {
        let batches = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&batches);
        let batcher = Batcher::new(move |keys: Arc<Vec<u32>>| {
            let (permits, noted) = (Arc::clone(&permits), Arc::clone(&noted));
            Box::pin(async move {
                noted.lock().unwrap().push(keys.to_vec());
                permits.acquire().await.unwrap().forget();
                if keys.contains(&13) {
                    return Err(DbError::statement("thirteen"));
                }
                Ok(keys.iter().filter(|key| **key < 1000).map(|key| (*key, key * 2)).collect())
            })
        });
        (batcher, batches)
    }

    #[test]
    fn a_crowd_shares_batches_of_bounded_size_and_each_gets_its_own_answer() {
        runtime().block_on(async {
            let permits = Arc::new(tokio::sync::Semaphore::new(0));
            let (batcher, batches) = doubler(Arc::clone(&permits));
            let ask = |key: u32| {
                tokio::spawn({
                    let batcher = batcher.clone();
                    async move { batcher.ask(key).await }
                })
            };
            let first = ask(1);
            while batches.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            let second = ask(2);
            while batches.lock().unwrap().len() < 2 {
                tokio::task::yield_now().await;
            }
            let crowd: Vec<_> = (100..1100).map(ask).collect();
            tokio::task::yield_now().await;
            permits.add_permits(1000);
            assert_eq!(first.await.unwrap().unwrap(), Some(2));
            assert_eq!(second.await.unwrap().unwrap(), Some(4));
            for (key, answer) in (100..1100).zip(crowd) {
                let expected = (key < 1000).then_some(key * 2);
                assert_eq!(answer.await.unwrap().unwrap(), expected);
            }
            let sizes: Vec<usize> = batches.lock().unwrap().iter().map(Vec::len).collect();
            assert_eq!(sizes, [1, 1, 512, 488]);
        });
    }

    #[test]
    fn those_who_left_are_not_asked_about_and_an_error_reaches_its_batch_only() {
        runtime().block_on(async {
            let permits = Arc::new(tokio::sync::Semaphore::new(0));
            let (batcher, batches) = doubler(Arc::clone(&permits));
            let mut waiting = Vec::new();
            for key in [1, 2] {
                let batcher = batcher.clone();
                waiting.push(tokio::spawn(async move { batcher.ask(key).await }));
                while batches.lock().unwrap().len() < waiting.len() {
                    tokio::task::yield_now().await;
                }
            }
            let mut leaving = Box::pin(batcher.ask(3));
            tokio::select! { biased; _ = &mut leaving => panic!("not yet"), _ = std::future::ready(()) => {} }
            let staying = tokio::spawn({
                let batcher = batcher.clone();
                async move { batcher.ask(13).await }
            });
            tokio::task::yield_now().await;
            drop(leaving);
            permits.add_permits(10);
            assert!(staying.await.unwrap().is_err());
            assert_eq!(batcher.ask(4).await.unwrap(), Some(8));
            assert_eq!(*batches.lock().unwrap(), [vec![1], vec![2], vec![13], vec![4]]);
        });
    }
}
