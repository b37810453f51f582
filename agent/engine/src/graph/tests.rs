use std::path::Path;

use stowage_placement::gguf::{Header, TensorInfo};

use super::*;

/// The header of one of the small models that were made from `transformers`.
fn header(case: &str) -> Header {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/reference/models").join(case).join("model.gguf");
    stowage_placement::testing::read(&std::fs::read(path).unwrap())
}

#[test]
fn what_a_block_that_is_not_run_has_is_nobodys_business() {
    let mut header = header("glm4moe");
    let tensor = |name: &str| TensorInfo { name: name.into(), ..header.tensors[0].clone() };
    let (unused, unknown) = (tensor("blk.2.nextn.eh_proj.weight"), tensor("blk.1.nextn.eh_proj.weight"));
    header.tensors.push(unused);
    let graph = Graph::from_header(&header, Tokens(128)).unwrap();
    assert_eq!(graph.blocks.iter().map(|block| block.operations.is_empty()).collect::<Vec<bool>>(), [false, false, true]);
    header.tensors.push(unknown);
    let error = Graph::from_header(&header, Tokens(128)).unwrap_err();
    assert!(error.message.contains("blk.1.nextn.eh_proj.weight"), "{error}");
}
