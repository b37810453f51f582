use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use stowage_placement::gguf::GgmlType;
use stowage_placement::gguf::write::HeaderWriter;
use tempfile::TempDir;

use super::*;

struct Fixture {
    models: TempDir,
    cache: TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let (models, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let addresses = AddressPolicy::parse(["127.0.0.0/8"]).unwrap();
    let store = Store::new(StoreConfig::new(Some(models.path().to_owned()), cache.path(), addresses));
    Fixture { models, cache, store }
}

impl Fixture {
    fn put(&self, path: &str, content: &[u8]) {
        let path = self.models.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    async fn ensure(&self, source: &AssignedSource) -> Result<PathBuf, StoreError> {
        self.store.ensure(source, |_| {}).await
    }

    fn cached(&self) -> Vec<PathBuf> {
        fs::read_dir(self.cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn model() -> HeaderWriter {
    HeaderWriter::architecture("llama").u32("llama.block_count", 1).tensor("token_embd.weight", GgmlType::F32, &[64, 100])
}

fn in_directory(path: &str) -> AssignedSource {
    AssignedSource { model: ModelSource { path: Some(path.into()), ..ModelSource::default() }, ..AssignedSource::default() }
}

fn behind(url: String, sha256: Option<String>) -> AssignedSource {
    AssignedSource { model: ModelSource { http: Some(HttpSource { url, sha256 }), ..ModelSource::default() }, ..AssignedSource::default() }
}

/// Serves a file, and counts how often.
async fn serve(file: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let handler = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(file.clone())
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/m.gguf", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/m.gguf", get(handler))).await });
    (url, count)
}

#[tokio::test]
async fn a_file_of_the_model_directory_is_given_where_it_lies() {
    let fixture = fixture();
    fixture.put("sub/m.gguf", &model().file(|_, _| 0));
    let path = fixture.ensure(&in_directory("sub/m.gguf")).await.unwrap();
    assert_eq!(path, fixture.models.path().canonicalize().unwrap().join("sub/m.gguf"));
}

#[tokio::test]
async fn nothing_outside_the_model_directory_is_given() {
    let fixture = fixture();
    let outside = fixture.cache.path().join("secret.gguf");
    fs::write(&outside, model().file(|_, _| 0)).unwrap();
    std::os::unix::fs::symlink(&outside, fixture.models.path().join("link.gguf")).unwrap();
    std::os::unix::fs::symlink(fixture.cache.path(), fixture.models.path().join("links")).unwrap();
    for path in ["link.gguf", "links/secret.gguf", "../secret.gguf", outside.to_str().unwrap(), ".", "", "a/../../x"] {
        let error = fixture.ensure(&in_directory(path)).await.unwrap_err();
        assert_eq!(error.reason, Reason::InvalidRequest, "{path}: {error}");
    }
    let listed = Scanner::new(fixture.models.path().to_owned()).scan().files;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].reason, Some(Reason::InvalidRequest));
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_told_with_both_sizes() {
    let fixture = fixture();
    let mut file = model().file(|_, _| 0);
    let whole = file.len();
    file.truncate(whole - 64);
    fixture.put("m.gguf", &file);
    let error = fixture.ensure(&in_directory("m.gguf")).await.unwrap_err();
    assert_eq!(error.reason, Reason::InvalidModelFile);
    assert!(error.message.contains(&format!("file has {} bytes, tensors end at {whole}", whole - 64)), "{error}");
}

#[tokio::test]
async fn a_file_of_another_size_than_was_planned_with_is_not_loaded() {
    let fixture = fixture();
    let file = model().file(|_, _| 0);
    fixture.put("m.gguf", &file);
    let source = AssignedSource { size_bytes: Bytes(file.len() as u64 + 5), ..in_directory("m.gguf") };
    assert_eq!(fixture.ensure(&source).await.unwrap_err().reason, Reason::ModelFileChanged);
    let source = AssignedSource { size_bytes: Bytes(file.len() as u64), ..in_directory("m.gguf") };
    fixture.ensure(&source).await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_not_found_be_it_the_file_or_the_directory() {
    let fixture = fixture();
    assert_eq!(fixture.ensure(&in_directory("m.gguf")).await.unwrap_err().reason, Reason::ModelNotFound);
    fs::remove_dir(fixture.models.path()).unwrap();
    let error = fixture.ensure(&in_directory("m.gguf")).await.unwrap_err();
    assert_eq!(error.reason, Reason::ModelNotFound);
    assert!(error.message.contains("the model directory"), "{error}");
    fs::create_dir(fixture.models.path()).unwrap();
}

#[tokio::test]
async fn the_directory_is_listed_in_order_with_what_is_wrong_and_again_when_it_changed() {
    let fixture = fixture();
    fixture.put("b/no.gguf", b"no model");
    fixture.put("a.gguf", &model().header());
    fixture.put("readme.txt", b"hello");
    let mut scanner = Scanner::new(fixture.models.path().to_owned());
    let listed = scanner.scan().files;
    let shown: Vec<(&str, Option<Reason>)> = listed.iter().map(|model| (model.path.as_str(), model.reason)).collect();
    assert_eq!(shown, [("a.gguf", Some(Reason::InvalidModelFile)), ("b/no.gguf", Some(Reason::InvalidModelFile))]);
    assert!(listed[0].message.contains("truncated"), "{}", listed[0].message);
    assert_eq!(scanner.scan().files, listed);
    fs::remove_file(fixture.models.path().join("a.gguf")).unwrap();
    fixture.put("b/no.gguf", b"GGUF");
    let again = scanner.scan().files;
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].message, listed[1].message);
}

#[tokio::test]
async fn a_model_directory_that_is_gone_lists_nothing_and_says_so_until_it_is_back() {
    let fixture = fixture();
    let mut scanner = Scanner::new(fixture.models.path().to_owned());
    assert_eq!(scanner.scan(), Models::default());
    fs::remove_dir(fixture.models.path()).unwrap();
    let gone = scanner.scan();
    assert!(gone.files.is_empty() && gone.message.contains("can't be read: No such file"), "{}", gone.message);
    fs::create_dir(fixture.models.path()).unwrap();
    assert_eq!(scanner.scan(), Models::default());
}

#[tokio::test]
async fn no_more_models_are_listed_than_a_node_may_publish() {
    let fixture = fixture();
    for i in 0..70 {
        fixture.put(&format!("{i:03}.gguf"), b"x");
    }
    let listed = Scanner::new(fixture.models.path().to_owned()).scan();
    assert_eq!(listed.files.len(), stowage_crds::model_node::MAX_MODELS);
    assert_eq!(listed.files[63].path, "063.gguf");
    assert!(listed.message.contains("holds 70 models, of which the first 64 are published"), "{}", listed.message);
}

#[tokio::test]
async fn a_file_behind_a_url_is_downloaded_once_whoever_asks() {
    let fixture = fixture();
    let file = model().file(|_, i| i as u8);
    let (url, count) = serve(file.clone()).await;
    let source = behind(url, None);
    let (first, second) = tokio::join!(fixture.ensure(&source), fixture.ensure(&source));
    assert_eq!(first.as_ref().unwrap(), second.as_ref().unwrap());
    assert_eq!(fs::read(first.unwrap()).unwrap(), file);
    // The header, then the file.
    assert_eq!(count.load(Ordering::SeqCst), 2);
    fixture.ensure(&source).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

/// Serves the parts of a small model, and counts the requests for each.
async fn serve_parts(parts: &[Vec<u8>]) -> (String, Vec<Arc<AtomicUsize>>) {
    let mut router = Router::new();
    let mut counts = Vec::new();
    for (index, part) in parts.iter().cloned().enumerate() {
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(count.clone());
        let handler = move || {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(part.clone())
        };
        router = router.route(&format!("/m-{:05}-of-{:05}.gguf", index + 1, parts.len()), get(handler));
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/m-00001-of-{:05}.gguf", listener.local_addr().unwrap(), parts.len());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, counts)
}

fn parts() -> Vec<Vec<u8>> {
    let parts = model().tensor("output_norm.weight", GgmlType::F32, &[64]).into_parts(2);
    parts.iter().map(|part| part.file(|_, i| i as u8)).collect()
}

#[tokio::test]
async fn all_parts_of_a_split_model_are_downloaded_and_those_that_are_there_are_not_again() {
    let fixture = fixture();
    let parts = parts();
    let (url, counts) = serve_parts(&parts).await;
    let total = parts.iter().map(Vec::len).sum::<usize>() as u64;
    let source = AssignedSource { size_bytes: Bytes(total), ..behind(url, None) };
    let last = Arc::new(Mutex::new(None));
    let seen = last.clone();
    let path = fixture.store.ensure(&source, move |progress| *seen.lock().unwrap() = Some(progress)).await.unwrap();
    assert_eq!(*last.lock().unwrap(), Some(Progress { done: Bytes(total), total: Some(Bytes(total)) }));
    let files = model_header::files(&path);
    assert_eq!(files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>(), parts);
    // The header of each, then each.
    let asked = || counts.iter().map(|count| count.load(Ordering::SeqCst)).collect::<Vec<_>>();
    assert_eq!(asked(), [2, 2]);
    fixture.ensure(&source).await.unwrap();
    assert_eq!(asked(), [2, 2]);
    fs::remove_file(&path).unwrap();
    fixture.ensure(&source).await.unwrap();
    assert_eq!(asked(), [4, 3]);
    let other = AssignedSource { size_bytes: Bytes(total + 1), ..source };
    fs::remove_file(&path).unwrap();
    let error = fixture.ensure(&other).await.unwrap_err();
    assert!(error.message.contains(&format!("has {total} bytes; {} were expected", total + 1)), "{error}");
}

#[tokio::test]
async fn a_split_model_in_the_directory_is_one_entry_and_is_given_by_its_first_part() {
    let fixture = fixture();
    let parts = parts();
    let total = parts.iter().map(Vec::len).sum::<usize>() as u64;
    fixture.put("sub/m-00001-of-00002.gguf", &parts[0]);
    let mut scanner = Scanner::new(fixture.models.path().to_owned());
    let alone = scanner.scan().files;
    assert_eq!(alone[0].reason, Some(Reason::ModelNotFound));
    assert!(alone[0].message.contains("sub/m-00002-of-00002.gguf"), "{}", alone[0].message);
    fixture.put("sub/m-00002-of-00002.gguf", &parts[1]);
    let listed = scanner.scan().files;
    assert_eq!((listed.len(), listed[0].path.as_str(), listed[0].size_bytes), (1, "sub/m-00001-of-00002.gguf", Bytes(total)));
    assert_ne!(listed[0].reason, Some(Reason::ModelNotFound));
    let path = fixture.ensure(&in_directory("sub/m-00001-of-00002.gguf")).await.unwrap();
    assert_eq!(path, fixture.models.path().canonicalize().unwrap().join("sub/m-00001-of-00002.gguf"));
    let error = fixture.ensure(&in_directory("sub/m-00002-of-00002.gguf")).await.unwrap_err();
    assert!(error.message.contains("is part 2 of 2"), "{error}");
}

#[tokio::test]
async fn parts_without_their_first_are_listed_with_what_is_missing() {
    let fixture = fixture();
    fixture.put("m-00002-of-00002.gguf", &parts()[1]);
    let listed = Scanner::new(fixture.models.path().to_owned()).scan().files;
    assert_eq!((listed.len(), listed[0].reason), (1, Some(Reason::InvalidModelFile)));
    assert!(listed[0].message.contains("named by its first part, m-00001-of-00002.gguf"), "{}", listed[0].message);
}

#[tokio::test]
async fn a_part_that_leads_out_of_the_directory_by_a_link_is_not_read() {
    let fixture = fixture();
    let parts = parts();
    fixture.put("m-00001-of-00002.gguf", &parts[0]);
    let outside = fixture.cache.path().join("other");
    fs::write(&outside, &parts[1]).unwrap();
    std::os::unix::fs::symlink(&outside, fixture.models.path().join("m-00002-of-00002.gguf")).unwrap();
    let error = fixture.ensure(&in_directory("m-00001-of-00002.gguf")).await.unwrap_err();
    assert_eq!(error.reason, Reason::InvalidRequest);
}

#[tokio::test]
async fn a_wrong_sha256_leaves_nothing_in_the_cache() {
    let fixture = fixture();
    let (url, _) = serve(model().file(|_, _| 0)).await;
    let error = fixture.ensure(&behind(url, Some("0".repeat(64)))).await.unwrap_err();
    assert_eq!(error.reason, Reason::DigestMismatch);
    assert_eq!(fixture.cached(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_is_no_model_is_not_downloaded() {
    let fixture = fixture();
    let (url, count) = serve(b"<html>".repeat(100)).await;
    let error = fixture.ensure(&behind(url, None)).await.unwrap_err();
    assert_eq!(error.reason, Reason::InvalidModelFile);
    assert_eq!((fixture.cached().len(), count.load(Ordering::SeqCst)), (0, 1));
}
