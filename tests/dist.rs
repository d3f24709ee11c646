//! What is in `dist/`, each by its own linter, and against the program: units, proxies, images, metrics, manual,
//! completions, package. A linter that this machine lacks is left out, and said.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use regex::Regex;
use support::machine::{Folder, PATIENCE, clients, program};
use support::{Server, Sse, World, Ws, left_out, ours_alone, posts, wait_until};
use tidegate::config::variables::{self, Variable};

const BINARY: &str = env!("CARGO_BIN_EXE_tidegate");

fn top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(top(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Where a linter is, or a word that it is missing.
fn tool(name: &str) -> Option<PathBuf> {
    let beside = clients().join("venv/bin").join(name);
    let sbin = Path::new("/usr/sbin").join(name);
    let found = program(name).or_else(|| [beside, sbin].into_iter().find(|file| file.is_file()));
    if found.is_none() {
        left_out(&format!("needs {name}"));
    }
    found
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}:\n{}", said(&output));
    said(&output)
}

#[test]
fn systemd_units_are_right_and_hardened() {
    let Some(analyze) = tool("systemd-analyze") else { return };
    let folder = Folder::new("units");
    // The program is where cargo put it.
    for unit in ["tidegate.service", "tidegate@.service", "tidegate.socket"] {
        let text = read(&format!("dist/systemd/{unit}"));
        std::fs::write(folder.path().join(unit), text.replace("/usr/bin/tidegate", BINARY)).unwrap();
    }
    for unit in ["tidegate.service", "tidegate@4000.service", "tidegate.socket"] {
        let mut verify = Command::new(&analyze);
        verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(folder.path().join(unit));
        let output = said(&run(verify.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))));
        let ours: Vec<&str> = output.lines().filter(|line| line.contains("tidegate")).collect();
        assert!(ours.is_empty(), "{unit}: {ours:#?}");
    }
    for unit in ["tidegate.service", "tidegate@.service"] {
        let mut rate = Command::new(&analyze);
        rate.args(["security", "--offline=true", "--no-pager"]).arg(top("dist/systemd").join(unit));
        let text = said(&run(&mut rate));
        let score = text.lines().find_map(|line| line.split_once("exposure level for")?.1.split_once(": "));
        match score.and_then(|(_, rest)| rest.split(' ').next()?.parse::<f32>().ok()) {
            Some(score) => assert!(score <= 1.5, "{unit} is exposed: {score}\n{text}"),
            None => left_out("needs a systemd-analyze that rates files"),
        }
    }
}

/// What Mastodon's own unit, in which Tidegate may take Node's place by one line, forbids: there such a call ends
/// the process, under ours it fails.
const MASTODON_FORBIDS: &str =
    "@cpu-emulation @debug @keyring @ipc @memlock @mount @obsolete @privileged @resources @setuid";
const MASTODON_ALLOWS: &str = "@default pipe pipe2";

#[test]
fn the_server_makes_no_system_call_that_a_unit_forbids() {
    if !ours_alone() {
        return;
    }
    let (Some(strace), Some(analyze)) = (tool("strace"), tool("systemd-analyze")) else { return };
    let Some(world) = World::start() else { return };
    let folder = Folder::new("strace");
    let file = folder.path().join("calls");
    // By a tracer that is no parent, so that signals go to the server itself.
    let script = format!("exec {} -D -f -qq -o {} \"$0\"", strace.display(), file.display());
    let mut env = world.env.clone();
    env.insert("DRAIN_SECONDS".into(), "0".into());
    let mut server = Server::spawn_by(&script, Stdio::null(), &env).listening();
    let viewer = world.viewer("read");
    let mut home = Sse::open(&server, "/api/v1/streaming/user", &viewer.token);
    let mut public = Ws::open(&server, "/?stream=public", &viewer.token);
    world.redis.until_subscribed(&["timeline:public"]);
    world.publish(&viewer.home(), &posts::text_message("delete", "1"));
    home.expect("delete", "1");
    world.publish("timeline:public", &posts::message("update", &posts::status(1, world.account())));
    assert!(public.next().contains("update"));
    assert_eq!(server.get("/status").status(), 200);
    server.signal("TERM");
    assert!(server.until_exit().success());

    let ended = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("exit_group(0"));
    wait_until("strace has written all", PATIENCE, ended);
    let calls: BTreeSet<String> = Regex::new(r"(?m)^\d+ +(?:<\.\.\. )?([a-z0-9_]+)(?:\(| resumed)")
        .unwrap()
        .captures_iter(&std::fs::read_to_string(&file).unwrap())
        .map(|found| found[1].to_owned())
        .collect();
    assert!(calls.contains("epoll_wait") && calls.contains("accept4"), "{calls:?}");
    let expand = |words: &str| -> BTreeSet<String> {
        let words = words.split_whitespace();
        words
            .flat_map(
                |word| if word.starts_with('@') { group(&analyze, word) } else { [word.to_owned()].into() },
            )
            .collect()
    };
    let forbidden = &expand(MASTODON_FORBIDS) - &expand(MASTODON_ALLOWS);
    assert!(forbidden.contains("setpriority") && forbidden.contains("ptrace"), "{forbidden:?}");
    let (of_mastodons, none) = (&calls & &forbidden, BTreeSet::<String>::new());
    assert_eq!(of_mastodons, none, "under Mastodon's unit");
    for unit in ["tidegate.service", "tidegate@.service"] {
        let mut allowed = expand("@default");
        let text = read(&format!("dist/systemd/{unit}"));
        for words in text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
            match words.strip_prefix('~') {
                Some(words) => allowed = &allowed - &expand(words),
                None => allowed.extend(expand(words)),
            }
        }
        assert_eq!(&calls - &allowed, none, "under {unit}");
    }
}

/// What a group of system calls holds.
fn group(analyze: &Path, name: &str) -> BTreeSet<String> {
    let text = succeeds(Command::new(analyze).args(["syscall-filter", "--no-pager", name]));
    let lines = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .flat_map(|line| if line.starts_with('@') { group(analyze, line) } else { [line.to_owned()].into() })
        .collect()
}

#[test]
fn nginx_takes_its_configuration() {
    let Some(nginx) = tool("nginx") else { return };
    let folder = Folder::new("nginx-check");
    let text = format!(
        "pid {dir}/pid; error_log stderr; events {{}}\nhttp {{\n access_log off;\n include {http};\n \
         server {{ listen 127.0.0.1:8; include {server}; }}\n}}\n",
        dir = folder.path().display(),
        http = top("dist/nginx/tidegate-http.conf").display(),
        server = top("dist/nginx/tidegate-server.conf").display(),
    );
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    succeeds(Command::new(nginx).args(["-t", "-q", "-p"]).arg(folder.path()).arg("-c").arg(&file));
}

#[test]
fn caddy_takes_its_configuration() {
    let Some(caddy) = tool("caddy") else { return };
    let folder = Folder::new("caddy");
    let with_file = |command: &str| {
        let mut run = Command::new(&caddy);
        run.arg(command).args(["--adapter", "caddyfile", "--config"]).arg(top("dist/caddy/Caddyfile"));
        succeeds(run.env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path()))
    };
    let text = with_file("validate");
    assert!(text.contains("Valid configuration"), "{text}");
    // Not formatted as Caddy would have it is a warning there.
    assert!(!with_file("adapt").contains("\"level\":\"warn\""), "{text}");
}

#[test]
fn haproxy_takes_its_configuration() {
    let Some(haproxy) = tool("haproxy") else { return };
    let text = succeeds(Command::new(haproxy).args(["-c", "-f"]).arg(top("dist/haproxy.cfg")));
    assert!(!text.contains("WARNING"), "{text}");
}

#[test]
fn the_image_is_built_by_good_rules() {
    let Some(hadolint) = tool("hadolint") else { return };
    succeeds(Command::new(hadolint).arg(top("dist/docker/Dockerfile")));
}

#[test]
fn the_image_gets_what_its_build_needs() {
    let folder = Folder::new("image");
    // What the build copies is there, and not kept from it.
    let ignored = read("dist/docker/Dockerfile.dockerignore");
    for line in read("dist/docker/Dockerfile").lines().filter(|line| line.starts_with("COPY ")) {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        for source in &words[..words.len() - 1] {
            if source.starts_with("--") {
                break;
            }
            assert!(top(source).exists(), "{line}");
            assert!(ignored.lines().any(|kept| kept == format!("!{source}")), "{source} is ignored");
            succeeds(Command::new("cp").arg("-a").arg(top(source)).arg(folder.path()));
        }
    }
    // Whatever the manifest names, such as a test of its own, has to be among it: else there is no building anything.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--offline", "--bin", "nothing-but-the-manifest"]);
    let text = said(&run(cargo.current_dir(folder.path())));
    assert!(text.contains("no bin target named"), "{text}");
}

#[test]
fn yaml_is_yaml() {
    let Some(python) = tool("python3") else { return };
    if !run(Command::new(&python).args(["-c", "import yaml"])).status.success() {
        return left_out("needs python3-yaml");
    }
    let files = [
        "dist/docker/docker-compose.override.yml",
        "dist/kubernetes/values.yaml",
        "dist/kubernetes/kustomization.yaml",
        "dist/prometheus/tidegate.rules.yml",
    ];
    let load = "import sys, yaml\nfor name in sys.argv[1:]: yaml.safe_load(open(name))";
    succeeds(Command::new(python).args(["-c", load]).args(files.map(top)));
}

#[test]
fn the_kubernetes_patch_reaches_the_deployments_of_both_charts() {
    let Some(python) = tool("python3") else { return };
    if !run(Command::new(&python).args(["-c", "import yaml"])).status.success() {
        return left_out("needs python3-yaml");
    }
    let folder = Folder::new("kubernetes");
    for (from, name) in [("dist", "kustomization.yaml"), ("tests", "all.yaml")] {
        std::fs::copy(top(from).join("kubernetes").join(name), folder.path().join(name)).unwrap();
    }
    let json = |text: String| -> Vec<serde_json::Value> { serde_json::from_str(&text).unwrap() };
    let patched =
        json(succeeds(Command::new(&python).arg(top("tests/kubernetes/kustomize.py")).arg(folder.path())));
    let named = |kind: &str, name: &str| {
        let is =
            |resource: &&serde_json::Value| resource["kind"] == kind && resource["metadata"]["name"] == name;
        patched.iter().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    for name in ["mastodon-streaming", "social-mastodon-streaming"] {
        let pod = &named("Deployment", name)["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["command"], serde_json::json!(["/usr/local/bin/tidegate"]), "{name}");
        let ready = serde_json::json!({"httpGet": {"path": "/ready", "port": "streaming"}});
        assert_eq!(container["readinessProbe"], ready, "{name}");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/api/v1/streaming/health", "{name}");
        assert_eq!(pod["terminationGracePeriodSeconds"], 30, "{name}");
    }
    let count = |word: &str| serde_json::to_string(&patched).unwrap().matches(word).count();
    assert_eq!((count("/usr/local/bin/tidegate"), count("terminationGrace")), (2, 2), "and no other");

    // The program itself, where it is installed: Debian has none.
    if let Some(kubectl) = program("kubectl") {
        let text = succeeds(Command::new(kubectl).arg("kustomize").arg(folder.path()));
        let file = folder.path().join("patched.yaml");
        std::fs::write(&file, text).unwrap();
        let load = "import json, sys, yaml\nprint(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
        let theirs = json(succeeds(Command::new(&python).args(["-c", load]).arg(file)));
        for resource in &theirs {
            let (kind, name) =
                (resource["kind"].as_str().unwrap(), resource["metadata"]["name"].as_str().unwrap());
            assert_eq!(resource["spec"], named(kind, name)["spec"], "{kind} {name}");
        }
        assert_eq!(theirs.len(), patched.len());
    }
}

#[test]
fn alert_rules_are_rules() {
    let Some(promtool) = tool("promtool") else { return };
    let rules = top("dist/prometheus/tidegate.rules.yml");
    succeeds(Command::new(&promtool).args(["check", "rules"]).arg(&rules));
    // They fire when they should: Redis lost for a minute, and never without a cause.
    let folder = Folder::new("rules");
    let test = folder.path().join("test.yml");
    let text = format!(
        r#"
rule_files: ["{}"]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - series: 'up{{job="tidegate", instance="a"}}'
        values: '1x20'
      - series: 'tidegate_redis_connected{{job="tidegate", instance="a"}}'
        values: '1x4 0x10 1x6'
      - series: 'tidegate_gaps_total{{job="tidegate", instance="a", cause="connection_lost"}}'
        values: '0x20'
    alert_rule_test:
      - eval_time: 45s
        alertname: TidegateRedisAway
      - eval_time: 2m30s
        alertname: TidegateRedisAway
        exp_alerts:
          - exp_labels: {{severity: critical, job: tidegate, instance: a}}
            exp_annotations:
              summary: "a has lost Redis"
              description: "No messages come in, newcomers get 503. The log says why; `tidegate check` tries again."
      - eval_time: 4m45s
        alertname: TidegateRedisAway
      - eval_time: 4m45s
        alertname: TidegateGaps
      - eval_time: 4m45s
        alertname: TidegateDown
"#,
        rules.display()
    );
    std::fs::write(&test, text).unwrap();
    succeeds(Command::new(promtool).args(["test", "rules"]).arg(test));
}

/// The names of metrics in a query: everything with a prefix that one of ours has.
fn metrics_in(query: &str) -> BTreeSet<String> {
    let query = query.replace("${prefix}", "");
    // Label matchers, groupings and text hold no metrics.
    let outside = Regex::new(r#"\{[^}]*\}|"[^"]*"|\b(by|without) *\([^)]*\)"#).unwrap();
    let query = outside.replace_all(&query, " ");
    let word = Regex::new(r"[a-zA-Z_:][a-zA-Z0-9_:]*").unwrap();
    let known = ["tidegate_", "process_", "connected_", "redis_", "messages_", "pg_pool_"];
    let words = word.find_iter(&query).map(|found| found.as_str().to_owned());
    words.filter(|name| known.iter().any(|prefix| name.starts_with(prefix))).collect()
}

/// Every text under that key, however deep.
fn texts<'a>(value: &'a serde_json::Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, member) in members {
                if name == key {
                    found.extend(member.as_str());
                }
                texts(member, key, found);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        _ => {}
    }
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    if !ours_alone() {
        return;
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("dist/grafana/tidegate.json")).unwrap();
    let mut queries = Vec::new();
    texts(&dashboard, "expr", &mut queries);
    assert!(queries.len() > 50, "{}", queries.len());
    let rules = read("dist/prometheus/tidegate.rules.yml");
    queries.extend(rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")));

    let Some(world) = World::start() else { return };
    let page = world.server.get("/metrics").text();
    let families: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    // These two appear once reading has paused.
    let later = ["tidegate_redis_output_buffer_bytes", "tidegate_redis_output_buffer_limit_bytes"];
    let source = read("src/status/metrics.rs");
    let reasons = Regex::new(r#"(?:reason|channel|cause)(?:=~|!=|=)"([^"]*)""#).unwrap();
    for query in &queries {
        let names = metrics_in(query);
        assert!(!names.is_empty() || query.starts_with("up{"), "no metric in {query}");
        for name in names {
            let family = name.strip_suffix("_bucket").unwrap_or(&name).to_owned();
            let there = families.contains(family.as_str())
                || later.contains(&family.as_str()) && source.contains(&format!("\"{family}\""));
            assert!(there, "there is no metric {name}: {query}");
        }
        // Values of labels too.
        for found in reasons.captures_iter(query) {
            for value in found[1].split('|') {
                assert!(page.contains(&format!("=\"{value}\"")), "no {value}: {query}");
            }
        }
    }
}

/// Text as roff takes it.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn manual() -> String {
    let mut section = String::from(
        "Also read from\n.I .env.production\nor\n.IR .env .\nEach is Mastodon's own where it has one of that name.\n",
    );
    let groups = variables::ALL.chunk_by(|one: &&Variable, next: &&Variable| one.group == next.group);
    // The manual is that of the usual build.
    for members in groups.filter(|members| !members[0].group.is_optional()) {
        writeln!(section, ".SS {}", roff(members[0].group.title())).unwrap();
        for variable in members {
            writeln!(section, ".TP\n.B {}", roff(variable.name)).unwrap();
            section.push_str(&roff(variable.help));
            match variable.default {
                "" => section.push('\n'),
                default => writeln!(section, "\n[default: {}]", roff(default)).unwrap(),
            }
        }
    }
    read("dist/man/tidegate.1.in").replace("@VARIABLES@", &section)
}

#[test]
#[ignore = "writes dist/man/tidegate.1 from the table of variables; run it after changing that"]
fn write_the_manual() {
    std::fs::write(top("dist/man/tidegate.1"), manual()).unwrap();
}

#[test]
fn the_manual_is_current_and_well_formed() {
    assert!(
        read("dist/man/tidegate.1") == manual(),
        "dist/man/tidegate.1 is out of date: cargo test --test dist -- --ignored write_the_manual"
    );
    let Some(mandoc) = tool("mandoc") else { return };
    let mut lint = Command::new(mandoc);
    let output = run(lint.args(["-T", "lint", "-W", "warning"]).arg(top("dist/man/tidegate.1")));
    let lines = said(&output);
    // It has no date: it is the same however often it is made.
    let rest: Vec<&str> = lines.lines().filter(|line| !line.contains("missing date")).collect();
    assert!(rest.is_empty(), "{rest:#?}");
}

/// What `--help` names: commands and long options.
fn commands_and_options(arguments: &[&str]) -> BTreeSet<String> {
    let help = succeeds(Command::new(BINARY).args(arguments).arg("-h"));
    let option = Regex::new(r"--[a-z-]+").unwrap();
    let mut words: BTreeSet<String> =
        option.find_iter(&help).map(|found| found.as_str().to_owned()).collect();
    if let Some((_, rest)) = help.split_once("Commands:\n") {
        let lines = rest.lines().take_while(|line| line.starts_with("  "));
        words.extend(lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())));
    }
    words
}

fn all_words() -> Vec<(&'static str, BTreeSet<String>)> {
    ["", "demo", "check", "health"]
        .map(|command| {
            let arguments: Vec<&str> = [command].into_iter().filter(|word| !word.is_empty()).collect();
            (command, commands_and_options(&arguments))
        })
        .into()
}

#[test]
fn bash_completes_every_command_and_option() {
    let file = top("dist/completions/tidegate.bash");
    let Some(bash) = tool("bash") else { return };
    succeeds(Command::new(&bash).arg("-n").arg(&file));
    for (command, expected) in all_words() {
        let line =
            if command.is_empty() { "tidegate ''".to_owned() } else { format!("tidegate {command} ''") };
        let script = format!(
            "source {}; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _tidegate; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let offered = succeeds(Command::new(&bash).args(["--norc", "-c", &script]));
        let offered: BTreeSet<String> = offered.lines().map(str::to_owned).collect();
        assert_eq!(offered, expected, "after `tidegate {command}`");
    }
}

#[test]
fn zsh_and_fish_know_every_command_and_option() {
    for (name, shell) in [("_tidegate", "zsh"), ("tidegate.fish", "fish")] {
        let text = read(&format!("dist/completions/{name}"));
        for (_, words) in all_words() {
            for word in words {
                let word = word.trim_start_matches('-');
                assert!(text.contains(word), "{name} does not know {word}");
            }
        }
        let Some(shell) = tool(shell) else { continue };
        succeeds(Command::new(shell).arg("-n").arg(top("dist/completions").join(name)));
    }
}

#[test]
fn the_package_has_all_its_files() {
    let manifest = read("Cargo.toml");
    let assets = manifest.split_once("\nassets = [").unwrap().1.split_once("\n]").unwrap().0;
    let sources: Vec<&str> = assets.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(sources.len() > 10, "{sources:?}");
    for source in sources.iter().filter(|source| !source.starts_with("target/")) {
        match source.split_once('*') {
            None => assert!(top(source).is_file(), "{source}"),
            Some((folder, ending)) => {
                let files = std::fs::read_dir(top(folder)).unwrap().flatten();
                assert!(files.filter(|file| file.path().to_str().unwrap().ends_with(ending)).count() > 0);
            }
        }
    }
    // Every file of dist/ that an admin is to have is in it, but for images and charts.
    for file in ["systemd/tidegate.service", "systemd/tidegate@.service", "systemd/tidegate.socket"] {
        assert!(sources.contains(&format!("dist/{file}").as_str()), "{file}");
    }
}
