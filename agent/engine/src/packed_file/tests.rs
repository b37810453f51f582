use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use stowage_placement::{Request, Tokens};

use stowage_placement::gguf::GgmlType;

use super::*;
use crate::api::Start;
use crate::batch::Batch;
use crate::file_mmap::TensorView;
use crate::host_plan::on_host;
use crate::model::LoadedModel;
use crate::synthetic::{Shape, Synthetic, Weights};

const TYPES: [GgmlType; 8] =
    [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::Q4_1, GgmlType::IQ4_XS, GgmlType::F16, GgmlType::Q3_K, GgmlType::F32];

/// A model with matrices of many types, and what was packed of it.
struct Kept {
    folder: tempfile::TempDir,
    request: LoadRequest,
}

impl Kept {
    fn new() -> Kept {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        write(&model, 1);
        let request = Request { num_ctx: Tokens(64), num_gpu: 0, num_batch: 16, ..Request::default() };
        let request = on_host(&model, &request, 2).unwrap();
        let kept = Kept { request, folder };
        pack(&kept.request, File::create(kept.path()).unwrap(), &mut |_| {}).unwrap();
        kept
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.packed")
    }

    fn open(&self) -> Result<PackedFile, Unusable> {
        PackedFile::open(&self.path(), &ModelFile::open(&self.request.path).unwrap())
    }

    /// With what was kept.
    fn load(&self) -> LoadedModel {
        self.load_from(Start::InFiles { packed: Some(self.path()) })
    }

    fn load_from(&self, start: Start) -> LoadedModel {
        LoadedModel::load(&LoadRequest { start, ..self.request.clone() }, &mut |_| {}).unwrap()
    }
}

fn write(path: &Path, seed: u64) {
    let shape = Shape { blocks: 2, ..Shape::smallest() };
    Synthetic::new(&shape, |_, number| TYPES[number % TYPES.len()]).write(path, Weights::Random, seed).unwrap();
}

fn logits(model: &mut LoadedModel) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push_run(&[1, 5, 9, 2, 8], 0, 0, true);
    model.step(&batch).unwrap().to_vec()
}

#[test]
fn a_model_computes_the_same_from_either_file_while_it_is_brought_over_and_after() {
    let kept = Kept::new();
    let mut in_memory = kept.load_from(Start::InMemory);
    assert_eq!(in_memory.in_file(), 0);
    let wanted = logits(&mut in_memory);
    for packed in [Some(kept.path()), None] {
        let mut model = kept.load_from(Start::InFiles { packed: packed.clone() });
        assert_eq!(model.measured(), in_memory.measured());
        assert!(model.in_file() > 0);
        assert!(logits(&mut model) == wanted, "of {packed:?}");
        let mut times = 0;
        while model.in_file() > 0 {
            model.bring_over(50_000);
            assert!(logits(&mut model) == wanted, "of {packed:?} after {times} pieces");
            times += 1;
        }
        assert!(times > 5, "brought over in {times} pieces");
    }
}

#[test]
fn a_kept_file_has_every_matrix_and_little_else() {
    let kept = Kept::new();
    let weights: Bytes = kept.request.plan.devices.iter().map(|device| device.weights_bytes).sum();
    let size = fs::metadata(kept.path()).unwrap().len();
    assert!(size < weights.0 + (64 << 10), "{size} bytes of {weights}");
    let model = ModelFile::open(&kept.request.path).unwrap();
    let matrices = model.header().tensors.iter().filter(|tensor| tensor.rows() > 1).count();
    assert_eq!(kept.open().unwrap().tensors.len(), matrices);
}

#[test]
fn what_was_kept_of_another_model_or_is_not_whole_is_left_aside() {
    let kept = Kept::new();
    let wanted = logits(&mut kept.load_from(Start::InMemory));
    let whole = fs::read(kept.path()).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(kept.path(), bytes).unwrap();
        assert!(logits(&mut kept.load()) == wanted, "it is loaded from the model's own file");
        kept.open().err().unwrap().to_string()
    };
    let cut = refused(&whole[..whole.len() - 1]);
    assert!(cut.contains(&format!("it has {} bytes, and its description speaks of {}", whole.len() - 1, whole.len())), "{cut}");
    assert!(refused(&whole[..100]).contains("its description is cut off"));
    assert!(refused(b"GGUF").contains("it does not begin like one"));
    let older = String::from_utf8_lossy(&whole[16..4000]).find("\"version\":1").unwrap() + 16 + "\"version\":".len();
    let mut other_version = whole.clone();
    other_version[older] = b'9';
    assert_eq!(refused(&other_version), format!("it is of version 9; this build wants {VERSION}"));
    write(&kept.folder.path().join("other.gguf"), 2);
    fs::rename(kept.folder.path().join("other.gguf"), &kept.request.path).unwrap();
    fs::write(kept.path(), &whole).unwrap();
    assert!(matches!(kept.open(), Err(Unusable::Model)));
    assert!(logits(&mut kept.load()) != wanted, "it is the other model");
}

#[test]
fn packed_weights_are_those_of_this_version() {
    let mut digest = Sha256::new();
    for (at, ty) in TYPES.into_iter().chain([GgmlType::Q2_K, GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q5_K]).enumerate() {
        let (rows, columns) = (20, 256);
        let row_bytes = columns / ty.block_elements() as usize * ty.block_bytes() as usize;
        let data: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 31 + i / 7 + at) as u8).collect();
        let view = TensorView { name: "t", ggml_type: ty, rows, columns, data: &data, map: None };
        let packing = Packing::of(&view, 32 * row_bytes).unwrap();
        for tile in 0..packing.tiles() {
            let mut to = vec![0; packing.place(tile).1];
            packing.pack(tile, &mut to);
            digest.update(&to);
        }
    }
    let digest: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (VERSION, digest.as_str()),
        (1, "f97ef7092cc3301d"),
        "weights are packed in another way: raise `packing::VERSION`, and write down its digest here"
    );
}
