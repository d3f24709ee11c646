//! The demo's page: one HTML file without outside assets.

use std::net::SocketAddr;

use serde_json::json;

use super::directory::{ALICES_LIST, directory};

/// A Content-Security-Policy for the page: its own script and style, connections to its own server only.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     img-src data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const TEMPLATE: &str = include_str!("page.html");

/// The page, for that broker.
pub fn html(broker: SocketAddr) -> String {
    let accounts: Vec<_> = directory()
        .iter()
        .map(|account| json!({"name": account.name, "token": account.token, "id": account.account_id.to_string()}))
        .collect();
    let settings =
        json!({"accounts": accounts, "list": ALICES_LIST.to_string(), "brokerPort": broker.port()});
    // Inside a script element, `<` could end it.
    TEMPLATE.replace("\"{{SETTINGS}}\"", &settings.to_string().replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_knows_the_broker_and_the_accounts_and_needs_nothing_else() {
        let html = html(([127, 0, 0, 1], 6389).into());
        assert!(html.contains("\"brokerPort\":6389"));
        assert!(html.contains("\"token\":\"demo-alice\""));
        assert!(!html.contains("{{"));
        for outside in ["src=\"http", "href=\"http", "url(http", "@import", "innerHTML"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
