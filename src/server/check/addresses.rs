//! Names with several addresses: whether each of them takes a connection. The server uses the first that does, but pays
//! for each dead one before it, and nobody would notice.

use super::Report;
use crate::config::{Config, DatabaseHost, HostPort, Mode, RedisEndpoint};
use crate::limits::CONNECT_TIMEOUT;
use crate::net;

pub(super) async fn check(report: &mut Report<'_>, config: &Config) {
    let mut named: Vec<(String, &str, u16)> = Vec::new();
    if config.mode != Mode::Demo {
        let about = format!("Redis ({})", config.redis.variable);
        match &config.redis.endpoint {
            RedisEndpoint::Tcp { at: HostPort { host, port }, .. } => named.push((about, host, *port)),
            RedisEndpoint::Sentinel(sentinel) => {
                named.extend(sentinel.sentinels.iter().map(|at| (about.clone(), &*at.host, at.port)));
            }
            RedisEndpoint::Unix(_) => {}
        }
    }
    if let Some(database) = &config.database
        && let DatabaseHost::Tcp(host) = &database.host
    {
        named.push(("PostgreSQL".into(), host, database.port));
    }
    #[cfg(feature = "otel")]
    if let Some(traces) = &config.traces
        && let Some((host, port)) = traces.receiver()
    {
        named.push((format!("Traces ({})", traces.variable), host, port));
    }
    for (about, host, port) in named {
        // A name that leads nowhere has had its line.
        let Ok(found) = net::probe(host, port, CONNECT_TIMEOUT).await else { continue };
        let dead: Vec<String> = found
            .iter()
            .filter_map(|(address, result)| Some(format!("{} ({})", address.ip(), result.as_ref().err()?)))
            .collect();
        if !dead.is_empty() && dead.len() < found.len() {
            report.warn(
                &about,
                format_args!(
                    "{} of the {} addresses of {host} take no connection: {}; those that do are used, but each new \
                     connection may wait for them first",
                    dead.len(),
                    found.len(),
                    dead.join(", ")
                ),
            );
        }
    }
}
