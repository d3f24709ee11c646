//! Every stream: its name, its path, and the channels that carry it.

use serde_json::{Value, json};

use super::world::Viewer;

/// A stream as a table row.
pub struct Stream {
    /// Its name on a WebSocket.
    pub name: &'static str,
    /// Its path and query for SSE; none for those that only WebSockets know.
    pub path: Option<String>,
    /// What a subscribe message holds besides `type`.
    pub request: Value,
    /// What stands in `stream` of each message.
    pub label: Value,
    pub channels: Vec<String>,
    /// Whether statuses are filtered for each viewer.
    pub filtered: bool,
    /// Whether statuses for this instance alone pass.
    pub local_only: bool,
}

/// All streams for a viewer whose token has the scope `read`.
pub fn all(viewer: &Viewer) -> Vec<Stream> {
    let account = viewer.account;
    let list = viewer.list();
    let plain = |name: &'static str, path: &str, channels: &[String], filtered, local_only| Stream {
        name,
        path: Some(format!("/api/v1/streaming/{path}")),
        request: json!({"stream": name}),
        label: json!([name]),
        channels: channels.to_vec(),
        filtered,
        local_only,
    };
    let tagged = |name: &'static str, path: &str, channel: &str| Stream {
        name,
        path: Some(format!("/api/v1/streaming/{path}?tag=Caf%C3%A9")),
        request: json!({"stream": name, "tag": "Café"}),
        label: json!([name, "Café"]),
        channels: vec![channel.into()],
        filtered: true,
        local_only: true,
    };
    let websocket_only = |name: &'static str, channel: &str| Stream {
        name,
        path: None,
        request: json!({"stream": name}),
        label: json!([name]),
        channels: vec![channel.into()],
        filtered: true,
        local_only: true,
    };
    let notifications = format!("timeline:{account}:notifications");
    let channel = |text: &str| [format!("timeline:{text}")];
    vec![
        plain("user", "user", &[format!("timeline:{account}"), notifications.clone()], false, true),
        plain("user:notification", "user/notification", &[notifications], false, true),
        plain("direct", "direct", &channel(&format!("direct:{account}")), false, true),
        plain("public", "public", &channel("public"), true, false),
        plain("public:media", "public?only_media=true", &channel("public:media"), true, false),
        plain("public:local", "public/local", &channel("public:local"), true, true),
        plain("public:local:media", "public/local?only_media=1", &channel("public:local:media"), true, true),
        plain("public:remote", "public/remote", &channel("public:remote"), true, false),
        plain(
            "public:remote:media",
            "public/remote?only_media=on",
            &channel("public:remote:media"),
            true,
            false,
        ),
        tagged("hashtag", "hashtag", "timeline:hashtag:cafe"),
        tagged("hashtag:local", "hashtag/local", "timeline:hashtag:cafe:local"),
        Stream {
            name: "list",
            path: Some(format!("/api/v1/streaming/list?list={list}")),
            request: json!({"stream": "list", "list": list.to_string()}),
            label: json!(["list", list.to_string()]),
            channels: vec![format!("timeline:list:{list}")],
            filtered: false,
            local_only: true,
        },
        websocket_only("public:allow_local_only", "timeline:public"),
        websocket_only("public:allow_local_only:media", "timeline:public:media"),
    ]
}
