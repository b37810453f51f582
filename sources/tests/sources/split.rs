use std::collections::BTreeMap;

use stowage_placement::gguf::write::HeaderWriter;
use stowage_placement::gguf::{GgmlType, Keep};
use stowage_placement::{Bytes, Reason};
use stowage_sources::{SourceError, header};

use crate::server::{Script, Server};
use crate::with_loopback;

fn part(number: u16, tensors: i32) -> HeaderWriter {
    let writer = if number == 0 { HeaderWriter::architecture("llama") } else { HeaderWriter::new() };
    writer.split(number, 3, tensors).tensor(&format!("tensor.{number}"), GgmlType::F32, &[64])
}

fn path(number: u16) -> String {
    format!("/sub%20dir/m-0000{}-of-00003.gguf", number + 1)
}

fn files(tensors: i32) -> BTreeMap<String, Vec<u8>> {
    (0..3).map(|number| (path(number), part(number, tensors).file(|_, _| 0))).collect()
}

async fn refused(files: BTreeMap<String, Vec<u8>>, path: &str) -> SourceError {
    let server = Server::start(Script { files, ..Script::default() }).await;
    header(&format!("{}{path}", server.url), Keep::Sizing, &with_loopback()).await.unwrap_err()
}

#[tokio::test]
async fn all_parts_of_a_split_model_are_read_as_one() {
    let (files, total) = (files(3), files(3).values().map(Vec::len).sum::<usize>());
    let server = Server::start(Script { files: files.clone(), ..Script::default() }).await;
    let read = header(&format!("{}{}?token=1", server.url, path(0)), Keep::Sizing, &with_loopback()).await.unwrap();
    assert_eq!(read.size, Bytes(total as u64));
    assert_eq!(read.header.tensors.len(), 3);
    let urls: Vec<String> = read.files.iter().map(|file| file.url.clone()).collect();
    assert_eq!(urls, [0, 1, 2].map(|number| format!("{}{}?token=1", server.url, path(number))));
    assert_eq!(server.paths(), [path(0), path(1), path(2)]);
}

#[tokio::test]
async fn a_part_that_is_not_there_is_named() {
    let mut files = files(3);
    files.remove(&path(1));
    let error = refused(files, &path(0)).await;
    assert_eq!(error.reason(), Reason::ModelNotFound);
    assert!(error.to_string().contains("m-00002-of-00003.gguf") && error.to_string().contains("404"), "{error}");
}

#[tokio::test]
async fn a_part_that_is_cut_off_is_named() {
    let mut files = files(3);
    files.get_mut(&path(2)).unwrap().pop();
    let error = refused(files, &path(0)).await;
    assert_eq!(error.reason(), Reason::InvalidModelFile);
    assert!(error.to_string().contains("m-00003-of-00003.gguf is truncated"), "{error}");
}

#[tokio::test]
async fn parts_that_are_no_model_are_refused() {
    let error = refused(files(4), &path(0)).await;
    assert_eq!(error.reason(), Reason::InvalidModelFile);
    assert!(error.to_string().contains("all parts have 4 tensors; they have 3"), "{error}");
    let error = refused(files(3), &path(1)).await;
    assert!(error.to_string().contains("a split model is named by its first part, /sub%20dir/m-00001-of-00003.gguf"), "{error}");
}
