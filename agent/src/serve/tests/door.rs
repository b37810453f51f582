use std::net::SocketAddr;

use serde_json::json;
use tokio::net::TcpListener;

use super::*;

/// Serves a router on a free port for as long as the test lasts.
async fn listen(router: Router) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, router, Patience::default(), std::future::pending()));
    address
}

fn names(namespace: &str, name: &str) -> ModelNames {
    ModelNames::new(namespace, name, vec![format!("{name}-of-{namespace}")])
}

fn route(namespace: &str, name: &str, worker: SocketAddr) -> Route {
    Route { replica: format!("{name}-0"), names: names(namespace, name), worker, ready: true }
}

/// A door to `a/parrot`, `b/parrot` and `b/owl`.
async fn door() -> (Router, watch::Sender<Vec<Route>>) {
    let mut routes = Vec::new();
    for (namespace, name) in [("a", "parrot"), ("b", "parrot"), ("b", "owl")] {
        let names = names(namespace, name);
        let (router, ..) = worker_with(Settings { names: names.clone(), defaults: RequestDefaults::default() });
        routes.push(Route { replica: format!("{name}-of-{namespace}-0"), names, worker: listen(router).await, ready: true });
    }
    let (sender, receiver) = watch::channel(routes);
    (door_router(DoorState::new(receiver, 4096)), sender)
}

#[tokio::test]
async fn a_request_goes_to_the_model_it_names_and_streams_back() {
    let (door, _routes) = door().await;
    let answer = post(&door, "/api/generate", json!({"model": "owl", "prompt": "hoo"})).await;
    let text: String = answer.lines().iter().map(|line| line["response"].as_str().unwrap()).collect();
    assert_eq!((text.as_str(), answer.headers["content-type"].to_str().unwrap()), ("hoo", "application/x-ndjson"));
    let whole = post(&door, "/api/generate", json!({"model": "owl", "stream": false, "prompt": "hoo"})).await;
    assert_eq!(whole.json()["response"], "hoo");
    // As Ollama's command-line client asks.
    assert_eq!(post(&door, "/api/show", json!({"model": "", "name": "owl"})).await.status, StatusCode::OK);
    let body = json!({"model": "b/parrot", "stream": true, "messages": [{"role": "user", "content": "hey"}]});
    assert_eq!(post(&door, "/v1/chat/completions", body).await.events()[0]["model"], "b/parrot");
    assert_eq!(fetch(&door, "/v1/models/b/owl").await.json()["owned_by"], "b");
}

#[tokio::test]
async fn an_ambiguous_name_is_refused_with_the_full_ones_and_an_unknown_one_with_what_is_there() {
    let (door, _routes) = door().await;
    let ambiguous = post(&door, "/api/chat", json!({"model": "parrot"})).await;
    assert_eq!(ambiguous.status, StatusCode::BAD_REQUEST);
    assert!(ambiguous.json()["error"].as_str().unwrap().contains("a/parrot or b/parrot"), "{}", ambiguous.text);
    let unknown = post(&door, "/v1/chat/completions", json!({"model": "eagle"})).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (StatusCode::NOT_FOUND, &json!("model_not_found")));
    assert!(unknown.text.contains("a/parrot, parrot-of-a, owl, owl-of-b, b/parrot, parrot-of-b"), "{}", unknown.text);
    assert_eq!(post(&door, "/api/chat", json!({})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(post(&door, "/api/chat", json!({"model": "owl", "prompt": "x".repeat(5000)})).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn lists_show_every_model_by_names_that_work_at_the_door() {
    let (door, _routes) = door().await;
    for (path, expected) in [
        (
            "/api/tags",
            vec!["a/parrot:latest", "parrot-of-a:latest", "owl:latest", "owl-of-b:latest", "b/parrot:latest", "parrot-of-b:latest"],
        ),
        ("/api/ps", vec!["a/parrot:latest", "b/parrot:latest", "owl:latest"]),
    ] {
        let list = fetch(&door, path).await.json();
        let mut names: Vec<&str> = list["models"].as_array().unwrap().iter().map(|model| model["model"].as_str().unwrap()).collect();
        let mut expected = expected;
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{path}");
        for name in names {
            assert_eq!(post(&door, "/api/show", json!({"model": name})).await.status, StatusCode::OK, "{name}");
        }
    }
    let models = fetch(&door, "/v1/models").await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn a_replica_that_is_gone_or_draining_is_passed_over() {
    let gone = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let (draining, phase) = worker("a", "parrot");
    phase.send_replace(Phase::Draining);
    let routes = vec![
        route("a", "parrot", gone),
        route("a", "parrot", listen(draining).await),
        route("a", "parrot", listen(worker("a", "parrot").0).await),
    ];
    let (sender, receiver) = watch::channel(routes);
    let door = door_router(DoorState::new(receiver, 4096));
    for _ in 0..6 {
        let answer = post(&door, "/api/generate", json!({"model": "parrot", "stream": false, "prompt": "x"})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    sender.send_modify(|routes| drop(routes.pop()));
    let answer = post(&door, "/api/generate", json!({"model": "parrot", "prompt": "x"})).await;
    assert_eq!((answer.status, answer.headers.contains_key("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, true));
    sender.send_modify(Vec::clear);
    assert_eq!(post(&door, "/api/generate", json!({"model": "parrot"})).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_generation_behind_the_door() {
    let (behind, _phase) = worker("a", "parrot");
    let address = listen(behind.clone()).await;
    let (_routes, receiver) = watch::channel(vec![route("a", "parrot", address)]);
    let door = door_router(DoorState::new(receiver, 4096));
    let request = Request::post("/api/generate").body(Body::from(json!({"model": "parrot", "prompt": "forever"}).to_string())).unwrap();
    let mut body = door.clone().oneshot(request).await.unwrap().into_body().into_data_stream();
    futures::StreamExt::next(&mut body).await.unwrap().unwrap();
    drop(body);
    // The worker learns of it when its next write fails; nothing here takes longer than the runtime's turns.
    let cancelled = r#"api="ollama.generate",outcome="cancelled"} 1"#;
    while !fetch(&behind, "/metrics").await.text.contains(cancelled) {
        tokio::task::yield_now().await;
    }
    assert!(fetch(&door, "/metrics").await.text.contains(&format!("stowage_door_requests_total{{model=\"a/parrot\",{cancelled}")));
}

#[tokio::test]
async fn the_trace_that_a_request_belongs_to_is_passed_on() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let tell = |headers: HeaderMap| async move { headers["traceparent"].to_str().unwrap().to_owned() };
    let worker = Router::new().route("/api/show", axum::routing::post(tell));
    let (_routes, receiver) = watch::channel(vec![route("a", "parrot", listen(worker).await)]);
    let door = door_router(DoorState::new(receiver, 4096));
    let request = Request::post("/api/show").header("traceparent", TRACE).body(Body::from(r#"{"model": "parrot"}"#)).unwrap();
    let body = door.oneshot(request).await.unwrap().into_body();
    assert_eq!(axum::body::to_bytes(body, usize::MAX).await.unwrap(), TRACE);
}

#[tokio::test]
async fn the_metrics_of_all_workers_are_at_the_door_told_apart_by_replica() {
    let (door, routes) = door().await;
    post(&door, "/api/generate", json!({"model": "owl", "stream": false, "prompt": "hoo"})).await;
    // One that is gone is left out.
    routes.send_modify(|routes| routes.push(route("c", "gone", ([127, 0, 0, 1], 1).into())));
    let text = fetch(&door, "/metrics/workers").await.text;
    for line in [
        "stowage_requests_total{replica=\"owl-of-b-0\",model=\"b/owl\",api=\"ollama.generate\",outcome=\"ok\"} 1",
        "stowage_generations_running{replica=\"parrot-of-a-0\"} 0",
        "stowage_generations_running{replica=\"parrot-of-b-0\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let types = text.lines().filter(|line| line.starts_with("# TYPE stowage_generations_running ")).count();
    assert_eq!((types, text.lines().last()), (1, Some("# EOF")), "{text}");
    assert!(!text.contains("gone-0"), "{text}");
}
