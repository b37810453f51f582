//! The control plane is real: it takes objects, and leaves no process behind.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use stowage_control_plane::{ControlPlane, Options};

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_control_planes_run_side_by_side_and_end_without_a_trace() {
    let (one, two) = tokio::join!(
        ControlPlane::start(Options::default()),
        ControlPlane::start(Options { controller_manager: false, ..Options::default() })
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    let map = ConfigMap { metadata: kube::api::ObjectMeta { name: Some("only-here".into()), ..Default::default() }, ..Default::default() };
    let maps = |plane: &ControlPlane| Api::<ConfigMap>::namespaced(plane.client.clone(), "default");
    maps(&one).create(&PostParams::default(), &map).await.unwrap();
    assert!(maps(&one).get_opt("only-here").await.unwrap().is_some());
    assert!(maps(&two).get_opt("only-here").await.unwrap().is_none());

    let output = one.kubectl().args(["get", "configmap", "only-here", "-o", "name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "configmap/only-here");

    let pids = [one.pids(), two.pids()].concat();
    let folders = [one.directory().to_owned(), two.directory().to_owned()];
    one.stop();
    drop(two);
    assert_eq!(pids.into_iter().filter(|pid| alive(*pid)).collect::<Vec<_>>(), Vec::<u32>::new());
    assert!(folders.iter().all(|folder| !folder.exists()));
}
