use std::path::Path;
use std::time::Duration;

use http::header;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

const KEY: &str = "0123456789abcdef";

fn keys(keys: &[&str]) -> (watch::Sender<Keys>, watch::Receiver<Keys>) {
    watch::channel(Some(keys.iter().map(|key| KeyHash::of(key)).collect()))
}

async fn ask(router: &Router, method: Method, path: &str, authorization: Option<&str>, body: Value) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    answered(router, request.body(body.to_string().into()).unwrap()).await
}

#[tokio::test]
async fn without_a_known_key_nothing_is_answered_but_probes_and_metrics() {
    let (_sender, keys) = keys(&["another", KEY]);
    let router = guarded(parrot(), keys);
    let body = |path| match path {
        "/api/generate" => json!({"model": "parrot", "prompt": "hello", "stream": false}),
        _ => json!({"model": "parrot", "messages": [{"role": "user", "content": "hello"}], "stream": false}),
    };
    for wrong in [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic 0123456789abcdef"), Some(KEY)] {
        for path in ["/api/generate", "/api/chat", "/api/nothing"] {
            let answer = ask(&router, Method::POST, path, wrong, body(path)).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} {wrong:?}");
            assert!(answer.json()["error"].as_str().unwrap().contains("API key"), "{}", answer.text);
            assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
            assert!(!answer.text.contains("wrong"), "{}", answer.text);
        }
        let answer = ask(&router, Method::POST, "/v1/chat/completions", wrong, body("/v1/chat/completions")).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"], &error["type"]),
            (StatusCode::UNAUTHORIZED, &json!("invalid_api_key"), &json!("invalid_request_error"))
        );
        for path in ["/", "/api/tags", "/api/version", "/v1/models"] {
            assert_eq!(ask(&router, Method::GET, path, wrong, json!({})).await.status, StatusCode::UNAUTHORIZED, "{path} {wrong:?}");
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(ask(&router, Method::GET, path, wrong, json!({})).await.status, StatusCode::OK, "{path}");
        }
    }
    for right in [format!("Bearer {KEY}"), format!("bearer {KEY}"), "Bearer another".to_owned()] {
        for path in ["/api/generate", "/api/chat", "/v1/chat/completions"] {
            assert_eq!(ask(&router, Method::POST, path, Some(&right), body(path)).await.status, StatusCode::OK, "{path} {right}");
        }
    }
}

#[tokio::test]
async fn a_key_that_is_taken_away_opens_nothing_any_more_and_no_keys_at_all_open_to_everybody() {
    let (sender, keys) = keys(&[KEY]);
    let router = guarded(parrot(), keys);
    let key = format!("Bearer {KEY}");
    assert_eq!(ask(&router, Method::GET, "/api/tags", Some(&key), json!({})).await.status, StatusCode::OK);
    sender.send_replace(Some(Vec::new()));
    assert_eq!(ask(&router, Method::GET, "/api/tags", Some(&key), json!({})).await.status, StatusCode::UNAUTHORIZED);
    sender.send_replace(None);
    assert_eq!(fetch(&router, "/api/tags").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_door_asks_its_workers_with_the_key_that_it_was_asked_with() {
    let (_sender, keys) = keys(&[KEY]);
    let names = ModelNames::new("birds", "parrot", Vec::new());
    let (worker, ..) = worker_with(Settings { names: names.clone(), defaults: RequestDefaults::default() });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let route = Route { replica: "parrot-0".into(), names, worker: listener.local_addr().unwrap(), ready: true };
    tokio::spawn(serve(listener, guarded(worker, keys.clone()), Patience::default(), std::future::pending()));
    let (_routes, routes) = watch::channel(vec![route]);
    let door = guarded(door_router(DoorState::new(routes, 4096)), keys);
    let key = format!("Bearer {KEY}");
    for path in ["/api/tags", "/api/ps"] {
        let list = ask(&door, Method::GET, path, Some(&key), json!({})).await;
        assert_eq!(list.json()["models"][0]["model"], "parrot:latest", "{path}");
    }
    let whole = ask(&door, Method::POST, "/api/generate", Some(&key), json!({"model": "parrot", "stream": false, "prompt": "hey"})).await;
    assert_eq!(whole.json()["response"], "hey");
    assert!(fetch(&door, "/metrics/workers").await.text.contains("replica=\"parrot-0\""));
    assert_eq!(fetch(&door, "/api/tags").await.status, StatusCode::UNAUTHORIZED);
}

/// As the kubelet writes a Secret's entries: files in a folder that changes as a whole, by a link.
fn mount(folder: &Path, version: &str, entries: &[(&str, &str)]) {
    use std::os::unix::fs::symlink;
    std::fs::create_dir(folder.join(version)).unwrap();
    for (name, key) in entries {
        std::fs::write(folder.join(version).join(name), key).unwrap();
        if !folder.join(name).is_symlink() {
            symlink(format!("..data/{name}"), folder.join(name)).unwrap();
        }
    }
    symlink(version, folder.join("..data_tmp")).unwrap();
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn keys_are_read_from_a_mounted_secret_and_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    mount(folder.path(), "..1", &[("alice", "first\n"), ("ci", "second")]);
    let keys = read_keys(folder.path()).unwrap();
    let mut expected = ["first", "second"].map(KeyHash::of);
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let (sender, mut receiver) = watch::channel(Some(keys));
    tokio::spawn(follow_keys(folder.path().to_owned(), Duration::from_millis(5), sender));
    mount(folder.path(), "..2", &[("alice", "third"), ("ci", "second")]);
    let mut expected = ["third", "second"].map(KeyHash::of);
    expected.sort_unstable();
    let changed = receiver.wait_for(|keys| keys.as_deref() == Some(&expected));
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap().unwrap();
}

#[test]
fn an_empty_key_is_no_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("alice"), " \n").unwrap();
    let error = read_keys(folder.path()).unwrap_err().to_string();
    assert!(error.contains("alice is empty"), "{error}");
}
